"""Whether a checkpoint can be edited: its files are weights, all of them are there, and every number is one.

Asked before a run begins, by ``errata doctor``, and of what a load has left open. Nothing is repaired: the library
would fill a missing tensor with random numbers, each process with others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from errata.editing.checkpoint.kept import cache_root
from errata.editing.errors import UserError, in_words
from errata.editing.wording import counted

_LFS = b"version https://git-lfs"
_SHOWN = 3
_CHUNK = 1 << 24
"""Elements looked at together: 64 MB of float32."""


def check_files(directory: Path, name: str) -> None:
    """Raise unless the directory holds weights of a form that can be edited; reads headers only.

    Raises:
        UserError: Git LFS pointers, quantized weights, or no safetensors.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".model") and path.is_file() and _is_pointer(path):
            raise UserError(
                f"model {name!r}: {path.name} is a Git LFS pointer and not the file itself; fetch it: git lfs pull"
            )
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model {name!r}: its config.json cannot be read ({type(error).__name__})") from error
    quantized = config.get("quantization_config") if isinstance(config, dict) else None
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise UserError(
            f"model {name!r}: its weights are quantized ({method}); a quantized matrix cannot be edited. Give the "
            "model it was made from"
        )
    if not any(directory.glob("*.safetensors")):
        others = sorted(path.name for path in directory.glob("*.bin"))
        if not others:
            raise UserError(f"model {name!r}: {str(directory)!r} holds no weights (*.safetensors)")
        raise UserError(
            f"model {name!r}: its weights are only there as {', '.join(others[:_SHOWN])}, which is a pickle: code that "
            "would be run. Convert it once where you trust it: load it with transformers and save_pretrained it, which "
            "writes model.safetensors"
        )


def check_tensors(directory: Path, name: str) -> int:
    """Raise unless every tensor of the model is in the files, in its shape; no weights are read.

    Returns:
        Rows of the embedding.

    Raises:
        UserError: names the tensors that are missing or of another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, device_map="meta", output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # the library's, safetensors' and pickle's own errors: for the user they mean one thing
        raise UserError(f"model {name!r}: its checkpoint cannot be loaded ({in_words(error)})") from error
    model, told = loaded
    require_whole(told, name)
    return int(model.get_input_embeddings().weight.shape[0])


def require_whole(told: Any, name: str) -> None:
    """Raise UserError where a loading report of the library names tensors that it made up or could not use."""
    missing, mismatched = sorted(told["missing_keys"]), sorted(map(str, told["mismatched_keys"]))
    if missing:
        raise UserError(f"model {name!r}: the checkpoint lacks {_listed(missing)}")
    if mismatched:
        raise UserError(f"model {name!r}: tensors of another shape than the configuration says: {_listed(mismatched)}")


def check_numbers(directory: Path, name: str, *, digest: str | None = None) -> None:
    """Raise unless every weight is finite. All weights are read, once per digest on this machine.

    Raises:
        UserError: names the tensors that hold NaN or infinities.
    """
    from safetensors import SafetensorError, safe_open

    seen = None if digest is None else cache_root() / "sound" / digest
    if seen is not None and seen.is_file():
        return
    bad = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names: list[str] = list(file.keys())
                bad += [key for key in names if not _finite(file.get_tensor(key))]
        except SafetensorError as error:
            raise UserError(f"model {name!r}: {path.name} is no safetensors file ({in_words(error)})") from error
    if bad:
        raise UserError(f"model {name!r}: NaN or infinite numbers in {_listed(bad)}")
    if seen is not None:
        try:
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.touch()
        except OSError:
            return  # looked at again the next time


def not_finite(model: torch.nn.Module) -> list[str]:
    """Names of a loaded model's tensors that hold NaN or infinities."""
    return [key for key, tensor in model.state_dict().items() if not _finite(tensor)]


def strange_tokens(text: Any, rows: int) -> list[str]:
    """Tokens of a `errata.editing.model.text.TextCodec` for which embeddings of so many rows have none."""
    vocabulary: dict[str, int] = text.tokenizer.get_vocab()
    return sorted((token for token, number in vocabulary.items() if number >= rows), key=vocabulary.__getitem__)


def check_checkpoint(directory: Path, name: str) -> int:
    """`check_files` and `check_tensors`; returns the rows of the embedding."""
    check_files(directory, name)
    return check_tensors(directory, name)


def told_of_tokens(text: Any, rows: int, say: Callable[[str], None]) -> None:
    """Tell of tokens without an embedding; a text with one is refused when it comes."""
    strange = strange_tokens(text, rows)
    if strange:
        say(
            f"the tokenizer has {counted(len(strange), 'token')} that the model has no embedding for "
            f"({_listed(strange)}); texts with them are refused"
        )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[at : at + _CHUNK]).all()) for at in range(0, max(1, flat.numel()), _CHUNK))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
