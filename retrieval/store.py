"""The memory on disk: content-addressed files named by one manifest, which is replaced atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from errata.editing.closed import Closed
from errata.editing.digest import digest_file
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.tensors import write_tensors
from errata.retrieval.index import VectorIndex

MANIFEST = "memory.json"
_PARTS = "parts"
_VECTORS = "errata-vectors-1"


class EmbedderRef(Closed):
    """The embedder that made the stored vectors."""

    name: str
    digest: str
    dim: int


class Manifest(Closed):
    """What a saved memory consists of."""

    format: Literal[1] = 1
    embedder: EmbedderRef
    entries: int
    content: str
    """Digest of the active entries."""
    note: dict[str, str | int] = {}
    """What its owner said with it."""
    files: dict[str, str]
    """Role of a file -> SHA-256 of its bytes; the file's name is both."""


def write(
    directory: Path,
    *,
    entries: Sequence[str],
    vectors: NDArray[np.float32],
    index: VectorIndex,
    embedder: dict[str, str | int],
    content: str,
    note: dict[str, str | int] | None = None,
) -> None:
    """Write a memory's state: the manifest is renamed into place last, older states' files go after that."""
    parts = directory / _PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as temporary:
        place = Path(temporary)
        (place / "entries.jsonl").write_text("".join(line + "\n" for line in entries), encoding="utf-8")
        rows = torch.from_numpy(np.ascontiguousarray(vectors))
        write_tensors(place / "vectors.safetensors", {"vectors": rows}, _VECTORS, {})
        index.save(place)
        files = {}
        for path in sorted(place.iterdir()):
            files[path.name] = digest_file(path)
            _sync(path)
            path.replace(parts / _file_name(path.name, files[path.name]))
        manifest = Manifest(
            embedder=EmbedderRef.model_validate(embedder),
            entries=len(entries),
            content=content,
            note=note or {},
            files=files,
        )
        draft = place / MANIFEST
        draft.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _sync(draft)
        draft.replace(directory / MANIFEST)
    _sync(directory)
    wanted = {_file_name(role, digest) for role, digest in files.items()}
    for path in parts.iterdir():
        if path.name not in wanted:
            path.unlink()
    for path in directory.glob(".writing-*"):  # left by a process that died while writing
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a saved memory.

    Raises:
        UserError: there is none.
        DamagedFileError: it is not readable.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(f"no memory in {directory}: {MANIFEST} is missing")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedFileError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def read_entries(directory: Path, manifest: Manifest) -> list[str]:
    """The entries as JSON lines.

    Raises:
        DamagedFileError: the file is missing or altered.
    """
    path = _verified(directory, manifest, "entries.jsonl")
    # not splitlines(): a statement may hold U+2028 and its like, which JSON leaves as they are
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if len(lines) != manifest.entries:
        raise DamagedFileError(f"{path} has {len(lines)} entries, the manifest says {manifest.entries}")
    return lines


def map_vectors(directory: Path, manifest: Manifest) -> NDArray[np.float32]:
    """The vectors (n, dim), float32, in the order of the entries: mapped, and writable without changing the file.

    Raises:
        DamagedFileError: the file is missing, altered, or of another shape.
    """
    path = _verified(directory, manifest, "vectors.safetensors")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            place = json.loads(file.read(size))["vectors"]
        if place["dtype"] != "F32":
            raise ValueError(f"vectors of type {place['dtype']}")
        shape = tuple(int(length) for length in place["shape"])
        offset = 8 + size + int(place["data_offsets"][0])
        vectors: NDArray[np.float32] = (
            np.memmap(path, dtype="<f4", mode="c", offset=offset, shape=shape)
            if 0 not in shape
            else np.zeros(shape, dtype=np.float32)
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if vectors.shape != (manifest.entries, manifest.embedder.dim) or vectors.dtype != np.float32:
        raise DamagedFileError(
            f"{path} holds {vectors.dtype} {vectors.shape}, expected float32 "
            f"{(manifest.entries, manifest.embedder.dim)}"
        )
    return vectors


def index_files(directory: Path, manifest: Manifest) -> dict[str, Path]:
    """Paths of the index's files.

    Raises:
        ValueError: one is missing or altered; the index has to be built again.
    """
    try:
        roles = [role for role in manifest.files if role.endswith(".faiss")]
        return {role: _verified(directory, manifest, role) for role in roles}
    except DamagedFileError as error:
        raise ValueError(str(error)) from error


def check_content(directory: Path, manifest: Manifest, content: str) -> None:
    """Compare the digest of what was read with the manifest's.

    Raises:
        DamagedFileError: they differ.
    """
    if manifest.content != content:
        raise DamagedFileError(f"memory {directory} reads as {content[:12]}, its manifest says {manifest.content[:12]}")


def _file_name(role: str, digest: str) -> str:
    return f"{digest[:16]}-{role}"


def _verified(directory: Path, manifest: Manifest, role: str) -> Path:
    expected = manifest.files.get(role)
    if expected is None:
        raise DamagedFileError(f"{directory / MANIFEST} names no file {role!r}")
    path = directory / _PARTS / _file_name(role, expected)
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing")
    actual = digest_file(path)
    if actual != expected:
        raise DamagedFileError(f"{path} is damaged: its digest is {actual[:12]}, the manifest says {expected[:12]}")
    return path


def _sync(path: Path) -> None:
    """Push a file or directory to the disk before a rename makes it count."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
