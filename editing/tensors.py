"""The one way to read and write files of named tensors: safetensors with a format name and metadata of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.editing.errors import DamagedFileError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], form: str, metadata: Mapping[str, str]) -> None:
    """Write tensors, of any shape and dtype and contiguous, to a file.

    Args:
        form: name and version of the file's format, which `read_tensors` asks for.
        metadata: what stands beside the tensors.
    """
    save_file(dict(tensors), path, metadata={"format": form, **metadata})


def header_of(path: Path, what: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Metadata of a tensor file, ``format`` among them where it says one, and the names of its tensors.

    Args:
        what: names the file in messages, such as "delta file".

    Raises:
        DamagedFileError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), tuple(file.keys())
    except Exception as error:  # safetensors raises its own type, which it does not export everywhere
        raise DamagedFileError(f"{what} {path.name!r} cannot be read: {error}") from error


def read_tensors(path: Path, form: str | tuple[str, ...], what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, on the CPU.

    Args:
        form: the format that is expected, or several that are.
        what: names the file in messages, such as "delta file".

    Raises:
        DamagedFileError: it cannot be read, or has another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # safetensors raises its own type, which it does not export everywhere
        raise DamagedFileError(f"{what} {path.name!r} cannot be read: {error}") from error
    forms = (form,) if isinstance(form, str) else form
    if metadata.get("format") not in forms:
        wanted = " or ".join(map(repr, forms))
        raise DamagedFileError(f"{what} {path.name!r} has format {metadata.get('format')!r}, want {wanted}")
    return metadata, tensors
