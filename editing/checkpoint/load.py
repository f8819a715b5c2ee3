"""Models from a directory, a URL, the Hugging Face hub, or the store that ``errata models fetch`` fills."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from errata.editing.checkpoint.kept import imported_dir
from errata.editing.checkpoint.sound import check_files, require_whole
from errata.editing.checkpoint.stage import checkpoint_digest, fetched, recorded_digest, staged
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.capacity import Capacity
from errata.editing.model.decoder import FAMILIES
from errata.editing.model.text import TextCodec

__all__ = ["DTYPES", "checkpoint_digest", "load_model", "load_text", "read_model_config", "resolve_model"]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def resolve_model(name_or_path: str) -> Path:
    """The directory of a model: the path itself, this node's copy of a URL, a fetched model, or a hub snapshot.

    Raises:
        UserError: no way leads to the model; the message names them.
    """
    from errata.editing.checkpoint import fetch

    if "://" in name_or_path:
        return fetched(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model directory {name_or_path!r} has no config.json; it must hold a checkpoint")
        return path
    kept = fetch.model_dir(name_or_path) if fetch.fetchable_name(name_or_path) else None
    kept = kept or imported_dir(name_or_path)
    if kept is not None:
        return kept
    ways = (
        f"model {name_or_path!r} is not there; give a directory with a checkpoint, a model name on the Hugging Face "
        f"hub (needs network), or run `errata models fetch NAME` with one of: {', '.join(sorted(fetch.MODELS))}"
    )
    if name_or_path in fetch.MODELS or "/" not in name_or_path or name_or_path.startswith((".", "/", "~")):
        raise UserError(ways)
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name_or_path, allow_patterns=patterns))
    except Exception as error:  # every way the hub client fails means the same to the user
        raise UserError(f"{ways} (hub: {type(error).__name__})") from error


def read_model_config(directory: Path, name: str) -> Any:
    """The configuration of a checkpoint of a supported type.

    Raises:
        UserError: the type is not supported, or the file is no configuration.
    """
    from transformers import AutoConfig

    try:
        model_type = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"model {name!r}: its config.json cannot be read ({type(error).__name__})") from error
    # asked before the library is, which does not know every type either
    if model_type not in FAMILIES:
        raise UserError(
            f"model type {model_type!r} of {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    try:
        config: Any = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"model {name!r}: its config.json cannot be read ({type(error).__name__})") from error
    return config


def load_text(name_or_path: str) -> tuple[TextCodec, Capacity]:
    """The tokenizer of a model and what the model can take in, without its weights.

    Raises:
        UserError: the model is not there, its type is not supported, or its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    directory = resolve_model(name_or_path)
    config = read_model_config(directory, name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name_or_path!r}: its tokenizer cannot be read ({_first_line(error)})") from error
    return TextCodec(tokenizer), Capacity.of(config)


def load_model(
    name_or_path: str, *, dtype: str = "float32", device: str = "cpu", digest: str | None = None
) -> EditableModel:
    """Load a model and its tokenizer for editing.

    On the CPU, weights that the checkpoint holds in ``dtype`` are mapped, and shared by the processes of a machine
    until they are written to; with ``ERRATA_STAGE`` set that is so for every checkpoint, see
    `errata.editing.checkpoint.stage`.

    Args:
        name_or_path: directory, URL, hub name, or a name known to ``errata models fetch``.
        dtype: of the forward pass; the numerics of editing are float32 or better whatever it is.
        device: a torch device.
        digest: digest of the checkpoint, where the caller knows it; else all files are read for it.

    Raises:
        UserError: the model is not there, its type is not supported, or dtype or device are not known.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if dtype not in DTYPES:
        raise UserError(f"model.dtype {dtype!r} is not known; allowed: {', '.join(DTYPES)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise UserError(
            f"model.device {device!r} is not there ({_first_line(error)}); use cpu, cuda or cuda:N"
        ) from error
    directory = resolve_model(name_or_path)
    config = read_model_config(directory, name_or_path)
    check_files(directory, name_or_path)
    known = recorded_digest(directory)
    if digest is not None and known is not None and digest != known:
        raise UserError(f"model {name_or_path!r} is another now: digest {known[:12]}, wanted {digest[:12]}")
    digest = digest or known or checkpoint_digest(directory)
    # on an accelerator nothing of the weights stays in the process's own memory
    directory = staged(directory, digest=digest, dtype=DTYPES[dtype] if torch.device(device).type == "cpu" else None)
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    attention = "eager" if config.model_type in ("gemma2", "gptj") else "sdpa"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=offline)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            local_files_only=offline,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {name_or_path!r}: its checkpoint cannot be loaded ({_first_line(error)})") from error
    model, told = loaded
    require_whole(told, name_or_path)
    return EditableModel(model.to(device), tokenizer, name=name_or_path, digest=digest)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
