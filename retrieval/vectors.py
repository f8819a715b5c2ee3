"""Vectors of statements on disk: what was embedded once is not embedded again after a restart.

One file per embedder, named by its digest: a line that says what it is, then records of equal length, each the SHA-256
of a text, its vector and a checksum. Records are only ever appended. One that was torn or changed is left out, and its
text embedded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errata.retrieval.embedder import Embedder, Vectors

logger = logging.getLogger(__name__)

_KEY = 32
_CHECKSUM = 4
_AT_ONCE = 4096
"""Records read at once."""


class KeptVectors:
    """An embedder whose vectors of statements are kept in a directory. One writer at a time.

    A vector that was read is held until it is asked for: from then on the memory has it. The directory is a
    convenience: where it cannot be read or written, everything is embedded and a warning says so.
    """

    def __init__(self, embedder: Embedder, directory: Path) -> None:
        self._embedder = embedder
        self._path = directory / f"{embedder.digest[:32]}.vectors"
        self._known: dict[bytes, Vectors] = {}
        self._header = json.dumps({"format": 1, "embedder": embedder.digest, "dim": embedder.dim}).encode() + b"\n"
        self._usable = True
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._read()
            else:
                self._path.write_bytes(self._header)
        except OSError as error:
            self._give_up(error)

    def __len__(self) -> int:
        """Vectors that were read and not asked for yet."""
        return len(self._known)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (n, dim) as the embedder gives them; it is asked for those that are not known yet."""
        if not texts:
            return np.zeros((0, self._embedder.dim), dtype=np.float32)
        keys = [_key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        vectors = {key: self._known.pop(key) for key in by_key if key in self._known}
        missing = [key for key in by_key if key not in vectors]
        if missing:
            embedded = self._embedder.embed([by_key[key] for key in missing])
            new = dict(zip(missing, embedded, strict=True))
            self._append(new)
            vectors |= new
        return np.stack([vectors[key] for key in keys])

    def forget(self) -> None:
        """Begin the file anew: whoever asked for the vectors has saved them elsewhere."""
        self._known.clear()
        if self._usable:
            try:
                self._path.write_bytes(self._header)
            except OSError as error:
                self._give_up(error)

    def _read(self) -> None:
        size = _KEY + 4 * self._embedder.dim + _CHECKSUM
        with self._path.open("r+b") as file:
            if file.readline() != self._header:
                logger.warning("%s is not what its name says; written anew", self._path)
                file.seek(0)
                file.truncate()
                file.write(self._header)
                return
            bad, whole = 0, file.tell()
            while chunk := file.read(size * _AT_ONCE):
                for at in range(0, len(chunk) - size + 1, size):
                    record = chunk[at : at + size]
                    whole += size
                    if zlib.crc32(record[:-_CHECKSUM]) == int.from_bytes(record[-_CHECKSUM:], "little"):
                        vector = np.frombuffer(record, dtype="<f4", count=self._embedder.dim, offset=_KEY)
                        self._known[record[:_KEY]] = vector.astype(np.float32)
                    else:
                        bad += 1
            torn = file.seek(0, 2) - whole
            file.truncate(whole)  # else the next record would begin within half of one
        if bad or torn:
            logger.warning("%s: %d damaged records and %d bytes at the end left out", self._path, bad, torn)

    def _append(self, vectors: dict[bytes, Vectors]) -> None:
        if not self._usable:
            return
        records = bytearray()
        for key, vector in vectors.items():
            record = key + np.ascontiguousarray(vector, dtype="<f4").tobytes()
            records += record + zlib.crc32(record).to_bytes(_CHECKSUM, "little")
        try:
            with self._path.open("ab") as file:
                file.write(records)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        logger.warning("vectors of statements are not kept: %s", error)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
