"""A checkpoint once per node: copied to a local directory under a lock, in the dtype asked for, then mapped by all.

A tensor whose dtype in the file is the model's is not read into a process but mapped (``MAP_PRIVATE``): the processes
of a node share its pages until one of them writes, and what that one writes, the edited maps, is copied for it alone
and never reaches the file. Two things stand in the way of that, and staging removes both: weights that are cast on
loading, which each process would do for itself, and files that lie on a network or behind a URL.

The directory is named by ``ERRATA_STAGE``. Staged copies are named by digest and dtype and appear by one rename.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from errata.editing.checkpoint.kept import cache_root, made_directory, only_one
from errata.editing.digest import digest_file, digest_json
from errata.editing.errors import UserError

logger = logging.getLogger(__name__)

STAGE = "ERRATA_STAGE"
RECORD = "errata-stage.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin")
_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".model", ".txt", ".jinja")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {dtype: code for code, dtype in _FLOATS.items()}
_CHUNK = 1 << 22
_ALIGNED = 64
"""Bytes. Tensors begin where an allocator would put them, so that a kernel finds the same however they were loaded."""


def stage_root() -> Path | None:
    """Where checkpoints are staged; None where nothing is.

    Raises:
        UserError: the directory cannot be made.
    """
    given = os.environ.get(STAGE)
    return made_directory(Path(given).expanduser().resolve(), STAGE) if given else None


def checkpoint_digest(directory: Path) -> str:
    """Digest of what defines a checkpoint: its weight files, configuration and tokenizer."""
    return digest_json({path.name: digest_file(path) for path in sorted(directory.iterdir()) if _defines(path)})


def staged(directory: Path, *, digest: str, dtype: torch.dtype | None) -> Path:
    """The node's copy of a checkpoint, made by the first process that asks for it; the others wait.

    Args:
        digest: `checkpoint_digest` of the directory.
        dtype: what the weights are to be; None leaves them as they are.

    Returns:
        ``directory`` itself where nothing is staged, or where the node's disk is full.

    Raises:
        UserError: the files have another digest.
    """
    root = stage_root()
    if root is None:
        return directory
    cast = dtype is not None and any(_differs(path, dtype) for path in directory.glob("*.safetensors"))
    if directory.parent == root and not cast:
        return directory
    target = root / f"{digest[:16]}-{_CODES[dtype].lower() if cast and dtype is not None else 'as-is'}"

    def fill(scratch: Path) -> str:
        digests = {}
        for path in _files(directory):
            if cast and dtype is not None and path.suffix == ".safetensors":
                digests[path.name] = digest_file(path)
                cast_file(path, scratch / path.name, dtype)
            else:
                digests[path.name] = _copy(path, scratch / path.name)
        actual = digest_json({name: value for name, value in sorted(digests.items()) if _defines(Path(name))})
        if actual != digest:
            raise UserError(
                f"model directory {str(directory)!r} has digest {actual[:12]}, wanted {digest[:12]}: its files were "
                "changed or damaged"
            )
        return actual

    try:
        return _once(root, target, str(directory), fill)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        logger.warning("%s=%s is full; %s is loaded from where it is", STAGE, root, directory)
        return directory


def fetched(url: str) -> Path:
    """The node's copy of a checkpoint behind a URL that fsspec understands, as it is now.

    Without ``ERRATA_STAGE`` it is kept beside the fetched models.

    Raises:
        UserError: it cannot be read, or holds no checkpoint.
    """
    import fsspec

    root = stage_root() or made_directory(cache_root() / "staged", STAGE)
    try:
        system, place = fsspec.core.url_to_fs(url)
        wanted = sorted(
            (str(entry["name"]), int(entry["size"]))
            for entry in system.ls(place, detail=True)
            if entry["type"] == "file" and Path(entry["name"]).suffix in _SUFFIXES
        )
        key = digest_json([url, [[name, size, system.ukey(name)] for name, size in wanted]])
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"model {url!r} cannot be read: {_said(error)}") from error
    if not any(name.endswith("/config.json") for name, _ in wanted):
        raise UserError(f"model {url!r} has no config.json; it must hold a checkpoint")

    def fill(scratch: Path) -> str:
        for name, size in wanted:
            here = scratch / Path(name).name
            try:
                system.get_file(name, str(here))
            except Exception as error:
                raise UserError(f"model {url!r}: {name} cannot be read: {_said(error)}") from error
            if here.stat().st_size != size:
                raise UserError(f"model {url!r}: {name} came with {here.stat().st_size} of {size} bytes")
        return checkpoint_digest(scratch)

    return _once(root, root / f"url-{key[:16]}", url, fill)


def recorded_digest(directory: Path) -> str | None:
    """Digest of a staged copy's checkpoint as it was found when it was staged; None for any other directory."""
    try:
        return str(json.loads((directory / RECORD).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def cast_file(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write a safetensors file again with its floating-point tensors in ``dtype``; others stay as they are.

    One tensor is in memory at a time. Those whose size is no multiple of 64 bytes come last, so that all others are
    aligned to that.
    """
    from safetensors import safe_open

    with safe_open(source, framework="pt") as opened:
        described: dict[str, tuple[str, list[int], int]] = {}
        for name in opened.keys():  # noqa: SIM118 -- the file is no mapping
            part = opened.get_slice(name)
            code, shape = str(part.get_dtype()), list(part.get_shape())
            new = _CODES[dtype] if code in _FLOATS else code
            width = _FLOATS[new].itemsize if new in _FLOATS else opened.get_tensor(name).element_size()
            described[name] = new, shape, math.prod(shape) * width
        order = sorted(described, key=lambda name: (described[name][2] % _ALIGNED != 0, name))
        header: dict[str, Any] = {"__metadata__": dict(opened.metadata() or {})}
        end = 0
        for name in order:
            code, shape, size = described[name]
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNED)
        with target.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in order:
                tensor = opened.get_tensor(name)
                tensor = tensor.to(dtype) if tensor.dtype in _CODES else tensor
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _once(root: Path, target: Path, source: str, fill: Callable[[Path], str]) -> Path:
    """``target``, filled by whoever holds its lock first; ``fill`` returns the digest to record."""
    if target.is_dir():
        return target
    with only_one(root / f".{target.name}.lock", lambda line: logger.info("%s", line)):
        if target.is_dir():
            return target
        for left in root.glob(f".{target.name}-*"):  # of one that was killed: its lock went with it
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=root))
        try:
            record = {"digest": fill(scratch), "source": source}
            (scratch / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
            scratch.chmod(0o755)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    logger.info("staged %s in %s", source, target)
    return target


def _copy(source: Path, target: Path) -> str:
    """Copy a file; its digest."""
    sha = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(_CHUNK):
            sha.update(chunk)
            write.write(chunk)
    return sha.hexdigest()


def _differs(path: Path, dtype: torch.dtype) -> bool:
    """Whether a file holds a floating-point tensor of another dtype; its header is read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        codes = {str(opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118
    return bool((codes & set(_FLOATS)) - {_CODES[dtype]})


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.suffix in _SUFFIXES and p.name != RECORD and p.is_file())


def _defines(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES or path.name in ("config.json", "tokenizer.json")


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
