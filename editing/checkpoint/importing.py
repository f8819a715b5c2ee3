"""Models as people have them, made once into a directory that is loaded like any other.

* a GGUF file, dequantized to float32;
* ``pytorch_model.bin``, in one file or several, read as tensors only: no code in it is run;
* safetensors, in one file or several;
* a multimodal model with a text part of a supported type (Gemma-3): that part alone;
* a name on the Hugging Face hub.

The result lies under `cache_root()/imported/NAME` beside a record of where it came from, has passed the check that
every load makes, and appears by one rename: it is whole or absent.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.checkpoint.gguf import convert_gguf
from errata.editing.checkpoint.kept import (
    RECORD,
    Progress,
    imported_dir,
    imported_root,
    install,
    made_directory,
    make_record,
    only_one,
    remove_stale,
)
from errata.editing.checkpoint.slices import INDEX
from errata.editing.errors import ErrataError, UserError
from errata.editing.model.decoder import FAMILIES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BESIDE = (".json", ".model", ".txt", ".jinja")
"""Suffixes of what stands beside the weights: configuration and tokenizer."""
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
"""Where multimodal checkpoints keep their text part, by release of the library."""
_HUB_FILES = ["*.safetensors", "pytorch_model*.bin", *(f"*{suffix}" for suffix in _BESIDE)]

Tensors = Callable[[], dict[str, Tensor]]


def import_model(path: Path, name: str, progress: Progress | None = None, *, hub_id: str | None = None) -> Path:
    """Make a model from a file or a directory available under a name.

    Args:
        path: a ``.gguf`` file, or a directory with one, or a directory with a config.json and weights.
        progress: called with one short line before each step that takes time.
        hub_id: the model's name on the hub, where it came from there.

    Returns:
        The directory; `resolve_model` finds it by ``name``.

    Raises:
        UserError: the name is taken or not allowed, or there is no model that can be read; nothing is kept then.
    """
    from errata.editing.checkpoint.fetch import fetchable_name

    say = progress or (lambda _: None)
    if not _NAME.fullmatch(name) or fetchable_name(name) is not None:
        raise UserError(f"--name {name!r}: want letters, digits, '.', '_', '-', and no name of `errata models list`")
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{str(path)!r} is not there; give a GGUF file or a directory with a config.json and weights")
    root = made_directory(imported_root(), "ERRATA_HOME")
    with only_one(root / f".{name}.lock", say):
        if (root / name).exists():
            raise UserError(
                f"--name {name!r} is taken by {str(root / name)!r}; choose another, or delete that directory"
            )
        remove_stale(root, name)
        scratch = Path(tempfile.mkdtemp(prefix=f".fetch-{name}-", dir=root))
        try:
            kind = _convert(path, scratch / "model", say)
            say(f"{name}: checking")
            _check(scratch / "model", path)
            source = {"kind": kind, "file": path.name}
            record = make_record(name, scratch / "model", hub_id=hub_id, source=source)
            (scratch / "model" / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
            install(scratch / "model", root / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    say(f"{name}: ready in {root / name}")
    return root / name


def fetch_from_hub(hub_id: str, name: str, progress: Progress | None = None, *, token: str | None = None) -> Path:
    """Import a model from the Hugging Face hub; one that is there already is not fetched again.

    Args:
        token: for models that ask for one; null for what ``HF_TOKEN`` or a login of the hub's own client holds.

    Raises:
        UserError: the hub does not give it, or it is no model that can be read.
    """
    present = imported_dir(hub_id)
    if present is not None:
        return present
    say = progress or (lambda _: None)
    root = made_directory(imported_root(), "ERRATA_HOME")
    remove_stale(root, f"hub-{name}")
    scratch = Path(tempfile.mkdtemp(prefix=f".fetch-hub-{name}-", dir=root))
    try:
        say(f"{hub_id}: downloading")
        try:
            from huggingface_hub import snapshot_download

            snapshot_download(hub_id, token=token, allow_patterns=_HUB_FILES, local_dir=scratch / "snapshot")
        except Exception as error:  # every way the hub client fails means the same to the user
            said = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"model {hub_id!r} could not be fetched from the hub ({type(error).__name__}: {said}); a model that "
                "asks for a license needs --token or HF_TOKEN"
            ) from error
        return import_model(scratch / "snapshot", name, progress, hub_id=hub_id)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---------------------------------------------------------------- what it is


def _convert(path: Path, out: Path, say: Progress) -> str:
    """Write the model at ``path`` as a directory of safetensors; what kind it was."""
    ggufs = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if path.is_dir() and (path / "config.json").is_file():
        return _from_directory(path, out, say)
    if len(ggufs) == 1:
        say(f"{ggufs[0].name}: converting to float32 safetensors")
        try:
            convert_gguf(ggufs[0].parent, ggufs[0].name, out)
        except Exception as error:  # the library's reader fails in many ways
            raise UserError(f"{str(ggufs[0])!r} cannot be converted ({_first_line(error)})") from error
        return "gguf"
    many = f" ({len(ggufs)} GGUF files; name one)" if ggufs else ""
    raise UserError(f"{str(path)!r} is no model{many}: give a GGUF file or a directory with a config.json and weights")


def _from_directory(path: Path, out: Path, say: Progress) -> str:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path / 'config.json')!r} cannot be read ({_first_line(error)})") from error
    multimodal = config.get("model_type") not in FAMILIES and isinstance(config.get("text_config"), dict)
    tied = bool(config.get("tie_word_embeddings"))
    parts, kind = _weights(path)
    out.mkdir(parents=True)
    for file in sorted(path.iterdir()):
        if file.suffix in _BESIDE and not file.name.endswith(".index.json") and file.name != RECORD and file.is_file():
            shutil.copyfile(file, out / file.name)
    if multimodal:
        say(f"{path.name}: taking the text part")
        tied = _write_text_config(path, out)
        kind = f"text part of {config.get('model_type')} ({kind})"
    say(f"{path.name}: writing safetensors")
    _write_weights(parts, out, rename=_text_name if multimodal else str, tied=tied)
    _write_fast_tokenizer(out)
    return kind


def _weights(path: Path) -> tuple[list[Tensors], str]:
    """Readers of the weight files in order, and their kind; what an index names, else all of a kind."""
    for kind, pattern, index, read in (
        ("safetensors", "*.safetensors", INDEX, _read_safetensors),
        ("bin", "pytorch_model*.bin", "pytorch_model.bin.index.json", _read_bin),
    ):
        files = sorted(path.glob(pattern))
        if (path / index).is_file():
            try:
                named = json.loads((path / index).read_text(encoding="utf-8"))["weight_map"].values()
                files = sorted({path / Path(str(file)).name for file in named})
            except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
                raise UserError(f"{str(path / index)!r} cannot be read ({_first_line(error)})") from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(f"{str(path)!r} lacks {', '.join(missing)}, which {index} names")
        if files:
            return [lambda file=file, read=read: read(file) for file in files], kind  # type: ignore[misc]
    raise UserError(f"{str(path)!r} has a config.json but neither *.safetensors nor pytorch_model*.bin")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own type, which it does not export everywhere
        raise UserError(f"{str(path)!r} cannot be read ({_first_line(error)})") from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickled file; the restricted unpickler refuses whatever is not a tensor or a plain container."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path.name} cannot be read as tensors only ({_first_line(error)}); a file that needs code to "
            "be run is refused"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path.name} holds more than tensors by name; it is no checkpoint of weights")
    return {str(name): value for name, value in loaded.items()}


# ---------------------------------------------------------------- what is written


def _write_weights(parts: list[Tensors], out: Path, *, rename: Callable[[str], str], tied: bool) -> None:
    """Each file in its turn, so that only one is in memory; names that ``rename`` makes empty are left out."""
    from safetensors.torch import save_file

    placed: dict[str, str] = {}
    size = 0
    for number, read in enumerate(parts, start=1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {new: value for name, value in read().items() if (new := rename(name))}
        if tied:
            # some files repeat the embedding under the head's name, which safetensors does not do
            tensors.pop("lm_head.weight", None)
        kept = {name: value.contiguous() for name, value in _unshared(tensors)}
        save_file(kept, out / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(kept, file)
        size += sum(value.numel() * value.element_size() for value in kept.values())
    if not placed:
        raise UserError(f"no weights of a language model were found; looked for {', '.join(_TEXT_PREFIXES)}")
    if len(parts) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _unshared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, each with memory of its own: files of pickled tensors may share some."""
    seen: set[int] = set()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        yield name, value.clone() if place in seen else value
        seen.add(place)


def _text_name(name: str) -> str:
    """The name of a text part's tensor in a model of its own; empty for those of other parts."""
    if name == "lm_head.weight" or name.endswith("language_model.lm_head.weight"):
        return "lm_head.weight"
    prefix = next((p for p in _TEXT_PREFIXES if name.startswith(p)), None)
    return "" if prefix is None else f"model.{name.removeprefix(prefix)}"


def _write_text_config(path: Path, out: Path) -> bool:
    """The configuration of the text part as that of a model, what the file leaves out as the library has it.

    Returns:
        Whether the head is the embedding.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        text: Any = AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path / 'config.json')!r} cannot be read ({_first_line(error)})") from error
    if text.model_type not in FAMILIES:
        raise UserError(
            f"the text part of {str(path)!r} is of type {text.model_type!r}; supported: {', '.join(sorted(FAMILIES))}"
        )
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    text.save_pretrained(out)
    return bool(text.tie_word_embeddings)


def _write_fast_tokenizer(out: Path) -> None:
    """Add a tokenizer.json where there is only a SentencePiece model: editing needs character offsets."""
    if (out / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(out)
        tokenizer.save_pretrained(out)
    except Exception as error:  # converting fails in many ways
        raise UserError(f"its tokenizer cannot be read ({_first_line(error)}); a tokenizer.json is needed") from error


def _check(directory: Path, path: Path) -> None:
    """Load what was written: weights that are missing, or a pass that differs from the library's, are found here."""
    from errata.editing.checkpoint.load import load_model

    try:
        load_model(str(directory), digest="check")
    except ErrataError as error:
        said = str(error).replace(str(directory), str(path))
        raise UserError(f"{str(path)!r} cannot be imported: {said}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
