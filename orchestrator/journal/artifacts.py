"""Content-addressed files next to the journal: ``deltas/``, ``keys/``, ``covariances/``,
``contexts/``, ``snapshots/``, ``modules/``, ``pieces/``, ``routers/``.

A file is complete before it carries its name (temporary file, fsync, rename, fsync of the directory), and its
name is its digest, checked whenever it is read. So a crash leaves at worst a temporary file, and nothing
damaged is ever used.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from errata.editing.digest import digest_file
from errata.editing.errors import DamagedFileError
from errata.orchestrator.journal.fail_points import reach

logger = logging.getLogger(__name__)

KINDS: Final = ("deltas", "keys", "covariances", "contexts", "snapshots", "modules", "pieces", "routers")
Digester = Callable[[Path], str]

TEMPORARY: Final = ".tmp-"
"""How the names of half-written files begin."""
_SUFFIXES: Final = (".safetensors", ".bin", ".json")
DIGEST: Final = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True, slots=True)
class Damage:
    """A file whose content does not carry its name."""

    kind: str
    path: Path
    reason: str


class ArtifactStore:
    """Files under ``root/<kind>/<digest><suffix>``; only the journal's writer writes here.

    Args:
        root: directory of the run; made when absent.
        digesters: by kind, how a file's digest is found, where it is not that of the bytes. A delta, for
            example, is known by the digest of its factors, which does not depend on the file's header.
    """

    def __init__(self, root: Path, *, digesters: Mapping[str, Digester] | None = None) -> None:
        self.root = Path(root)
        self._digesters = dict(digesters or {})
        if unknown := set(self._digesters) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")

    def put_bytes(self, kind: str, data: bytes, *, suffix: str = ".bin") -> str:
        """Store ``data``; returns its digest. Storing the same content twice changes nothing."""

        def write(path: Path) -> None:
            path.write_bytes(data)

        return self.put_file(kind, write, suffix=suffix)

    def put_file(self, kind: str, writer: Callable[[Path], object], *, suffix: str = ".safetensors") -> str:
        """Store what ``writer(path)`` writes; returns its digest.

        Raises:
            OSError: the file could not be written (a full disk); nothing is left behind.
            DamagedFileError: the bytes read back are not a readable file of that kind.
        """
        folder = self._folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
        try:
            writer(temporary)
            _sync(temporary)
            digest = self._digest(kind, temporary)
            reach("artifact_written")
            # replaces a damaged file of that name, and is harmless where a sound one stands: same digest,
            # same content
            os.replace(temporary, folder / f"{digest}{suffix}")
        except Exception:
            temporary.unlink(missing_ok=True)
            raise
        _sync(folder)
        reach("artifact_renamed")
        return digest

    def get(self, kind: str, digest: str, *, verify: bool = True) -> Path:
        """Path of a stored file, its content checked against its name.

        Raises:
            FileNotFoundError: nothing is stored under that digest.
            DamagedFileError: the content is not what it was.
        """
        path = self._find(kind, digest)
        if path is None:
            raise FileNotFoundError(f"no file {digest} in {self._folder(kind)}")
        if verify and (actual := self._digest(kind, path)) != digest:
            raise DamagedFileError(f"{path} holds {actual}, not what its name says")
        return path

    def contains(self, kind: str, digest: str) -> bool:
        """Whether a file of that name is there; its content is not read."""
        return self._find(kind, digest) is not None

    def digests(self, kind: str) -> Iterator[str]:
        """Digests of the files of a kind, in the order of their names."""
        for path in self._files(kind):
            yield path.name.split(".", 1)[0]

    def verify(self) -> list[Damage]:
        """Read every file and list those that are not what their name says."""
        damaged: list[Damage] = []
        for kind in KINDS:
            for path in self._files(kind):
                try:
                    actual = self._digest(kind, path)
                except DamagedFileError as error:
                    damaged.append(Damage(kind, path, str(error)))
                    continue
                if actual != path.name.split(".", 1)[0]:
                    damaged.append(Damage(kind, path, f"holds {actual}"))
        return damaged

    def discard(self, kind: str, digest: str) -> None:
        """Delete a file that no version needs any more; absent is fine."""
        if path := self._find(kind, digest):
            path.unlink()
            _sync(path.parent)

    def sweep(self) -> int:
        """Delete what crashes left half-written; call only while holding the journal's lock. Returns how
        many."""
        leftovers = [path for kind in KINDS for path in self._folder(kind).glob(f"{TEMPORARY}*")]
        for path in leftovers:
            logger.info("deleting the half-written file %s", path)
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _folder(self, kind: str) -> Path:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
        return self.root / kind

    def _files(self, kind: str) -> list[Path]:
        folder = self._folder(kind)
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if DIGEST.fullmatch(path.name.split(".", 1)[0]))

    def _find(self, kind: str, digest: str) -> Path | None:
        if not DIGEST.fullmatch(digest):  # also keeps a digest from an outside caller inside the folder
            raise ValueError(f"a digest is 16 to 64 hexadecimal digits, got {digest!r}")
        folder = self._folder(kind)
        # a folder of a long life holds a hundred thousand files: not looked through where the name can be guessed
        for suffix in _SUFFIXES:
            if (path := folder / f"{digest}{suffix}").is_file():
                return path
        return next(iter(sorted(folder.glob(f"{digest}.*"))), None)

    def _digest(self, kind: str, path: Path) -> str:
        try:
            return self._digesters.get(kind, digest_file)(path)
        except (OSError, DamagedFileError):
            raise
        except Exception as error:  # a torn file makes format libraries raise errors of their own
            raise DamagedFileError(f"{path} cannot be read: {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
