"""Taking statements out of a memory that is kept on disk, without an embedder at hand."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from errata.editing.errors import DamagedFileError, UserError
from errata.retrieval import store
from errata.retrieval.embedder import Vectors
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory

_KEY: Final = 32


class _Named:
    """Stands for the embedder that made the vectors; nothing is embedded, nor searched."""

    unit = True

    def __init__(self, reference: store.EmbedderRef) -> None:
        self.name, self.digest, self.dim = reference.name, reference.digest, reference.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise AssertionError(f"nothing is embedded here, got {len(texts)} texts")


def forget_saved(directory: Path, ids: Sequence[int], statements: Sequence[str]) -> None:
    """Take entries out of the memory that is kept in a directory: the saved one, and files of vectors.

    What cannot be read is deleted whole: a memory is filled from the journal.
    """
    state = directory / "state"
    if state.is_dir():
        try:
            manifest = store.read_manifest(state)
            memory = FactMemory.load(state, _Named(manifest.embedder), IndexConfig())
            memory.remove(ids, missing_ok=True)
            memory.save(state, manifest.note)
        except (UserError, DamagedFileError):
            shutil.rmtree(state)
    keys = {hashlib.sha256(text.encode()).digest() for text in statements}
    for path in sorted(directory.glob("*.vectors")):
        _rewrite(path, keys)


def _rewrite(path: Path, keys: set[bytes]) -> None:
    with path.open("rb") as file:
        header = file.readline()
        try:
            size = _KEY + 4 * int(json.loads(header)["dim"]) + 4
        except (ValueError, LookupError, TypeError):
            path.unlink()
            return
        data = file.read()
    records = [data[at : at + size] for at in range(0, len(data) - size + 1, size)]
    temporary = path.with_suffix(".writing")
    with temporary.open("wb") as file:
        file.write(header + b"".join(record for record in records if record[:_KEY] not in keys))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
