"""The files of a run on object storage: what fsspec has a package for, with a copy beside the journal.

A file is whole there before its digest is handed out, so whatever a commit names is on both sides. The copies here may
be deleted at any time, by hand or with the disk: they are fetched again when something asks for them, and checked.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from errata.editing.errors import DamagedFileError, UserError, in_words
from errata.orchestrator.journal.artifacts import DIGEST, KINDS, TEMPORARY, ArtifactStore, Damage, Digester

logger = logging.getLogger(__name__)

PLACE: Final = "artifacts.url"
"""Beside the journal: where the files are, for every command that reads the run."""


def place_of(root: Path) -> str | None:
    """The URL at which a run's files are; None where they are in its directory."""
    try:
        return (root / PLACE).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def note_place(root: Path, url: str) -> None:
    """Write down where a run's files are.

    Raises:
        UserError: they are somewhere else already.
    """
    known = place_of(root)
    if known is not None and known != url.rstrip("/"):
        raise UserError(f"artifacts {url!r}: the files of the run in {str(root)!r} are at {known!r}; copy them first")
    beside = root / f"{PLACE}.tmp"
    beside.write_text(url.rstrip("/") + "\n", encoding="utf-8")
    beside.replace(root / PLACE)


def opened(url: str) -> tuple[Any, str]:
    """A file system of fsspec and the place on it.

    Raises:
        UserError: there is no such protocol, or its package is not installed.
    """
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = "; pip install 'errata-llm[s3]'" if url.startswith("s3://") else ""
        raise UserError(f"artifacts {url!r}: {in_words(error)}{extra}") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"artifacts {url!r}: {in_words(error)}") from error
    return system, str(place).rstrip("/")


def check_place(url: str) -> None:
    """Find out, before a run begins, whether its place can be written to and read.

    Raises:
        UserError: it cannot.
    """
    system, place = opened(url)
    name = f"{place}/{TEMPORARY}{secrets.token_hex(8)}"
    try:
        system.makedirs(place, exist_ok=True)
        system.pipe_file(name, b"errata")
        found = bytes(system.cat_file(name))
        system.rm_file(name)
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"artifacts {url!r} cannot be written to: {in_words(error)}") from error
    if found != b"errata":
        raise UserError(f"artifacts {url!r} does not give back what was written")


class RemoteArtifacts(ArtifactStore):
    """Files under ``url/<kind>/<digest><suffix>``, and under ``root`` as far as they were written or read here."""

    def __init__(self, root: Path, url: str, *, digesters: Mapping[str, Digester] | None = None) -> None:
        super().__init__(root, digesters=digesters)
        self.url = url
        self._system, self._place = opened(url)

    def put_file(self, kind: str, writer: Callable[[Path], object], *, suffix: str = ".safetensors") -> str:
        """As beside the journal; the file is there, whole, when the digest is returned.

        Raises:
            OSError: the file could not be written, here or there.
            DamagedFileError: the bytes read back are not a readable file of that kind.
        """
        digest = super().put_file(kind, writer, suffix=suffix)
        self._upload(kind, self._folder(kind) / f"{digest}{suffix}")
        return digest

    def complete(self) -> int:
        """Bring what is only here there, as of a run that began without a place; returns how many files."""
        count = 0
        for kind in KINDS:
            there = set(self._names(kind))
            for path in self._files(kind):
                if path.name not in there:
                    self._upload(kind, path)
                    count += 1
        return count

    def get(self, kind: str, digest: str, *, verify: bool = True) -> Path:
        """Path of a copy here, fetched where there is none; its content is checked against its name.

        Raises:
            FileNotFoundError: nothing is stored under that digest.
            DamagedFileError: the content is not what it was.
            OSError: the place cannot be read.
        """
        if self._find(kind, digest) is None:
            self._fetch(kind, digest)
        return super().get(kind, digest, verify=verify)

    def contains(self, kind: str, digest: str) -> bool:
        """Whether a file of that name is here or there; its content is not read."""
        return super().contains(kind, digest) or self._named(kind, digest) is not None

    def digests(self, kind: str) -> Iterator[str]:
        """Digests of the files of a kind, in the order of their names."""
        names = {path.name for path in self._files(kind)} | set(self._names(kind))
        yield from sorted({name.split(".", 1)[0] for name in names})

    def verify(self) -> list[Damage]:
        """Fetch and read every file and list those that are not what their name says."""
        damaged: list[Damage] = []
        for kind in KINDS:
            for name in self._names(kind):
                if self._find(kind, name.split(".", 1)[0]) is None:
                    try:
                        self._fetch(kind, name.split(".", 1)[0])
                    except DamagedFileError as error:
                        damaged.append(Damage(kind, Path(f"{self.url}/{kind}/{name}"), str(error)))
        return damaged + super().verify()

    def discard(self, kind: str, digest: str) -> None:
        """Delete a file that no version needs any more, on both sides; absent is fine."""
        if (name := self._named(kind, digest)) is not None:
            self._told(kind, lambda: self._system.rm_file(f"{self._place}/{kind}/{name}"))
        super().discard(kind, digest)

    def sweep(self) -> int:
        """Delete what crashes left half-written on both sides; returns how many."""
        count = super().sweep()
        for kind in KINDS:
            for name in self._names(kind, leftovers=True):
                self._told(kind, partial(self._system.rm_file, f"{self._place}/{kind}/{name}"))
                count += 1
        return count

    # ---------------------------------------------------------------- the other side

    def _upload(self, kind: str, path: Path) -> None:
        folder = f"{self._place}/{kind}"

        def upload() -> None:
            self._system.makedirs(folder, exist_ok=True)
            # a whole file or none, on whatever kind of storage: under its name only when it is all there
            beside = f"{folder}/{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
            self._system.put_file(str(path), beside)
            self._system.mv(beside, f"{folder}/{path.name}")

        self._told(kind, upload)

    def _fetch(self, kind: str, digest: str) -> None:
        name = self._named(kind, digest)
        if name is None:
            raise FileNotFoundError(f"no file {digest} in {self._folder(kind)} or {self.url}/{kind}")
        folder = self._folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{TEMPORARY}{secrets.token_hex(8)}{Path(name).suffix}"
        try:
            self._told(kind, lambda: self._system.get_file(f"{self._place}/{kind}/{name}", str(beside)))
            if (actual := self._digest(kind, beside)) != digest:
                raise DamagedFileError(f"{self.url}/{kind}/{name} holds {actual}, not what its name says")
            os.replace(beside, folder / name)
        finally:
            beside.unlink(missing_ok=True)

    def _named(self, kind: str, digest: str) -> str | None:
        """The name there of a file of that digest."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"a digest is 16 to 64 hexadecimal digits, got {digest!r}")

        def listed() -> list[str]:
            self._system.invalidate_cache()
            return [str(path).rsplit("/", 1)[-1] for path in self._system.glob(f"{self._place}/{kind}/{digest}.*")]

        return next(iter(sorted(self._told(kind, listed))), None)

    def _names(self, kind: str, *, leftovers: bool = False) -> list[str]:
        """Names there of a kind's files, or of half-written ones."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            try:
                found = self._system.ls(f"{self._place}/{kind}", detail=False)
            except FileNotFoundError:
                return []
            return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in found]

        names = sorted(self._told(kind, listed))
        if leftovers:
            return [name for name in names if name.startswith(TEMPORARY)]
        return [name for name in names if DIGEST.fullmatch(name.split(".", 1)[0])]

    def _told(self, kind: str, action: Callable[[], Any]) -> Any:
        """The result of an action there; every failure is an OSError that names the place, as of a disk."""
        try:
            return action()
        except Exception as error:  # each file system has errors of its own
            raise OSError(f"artifacts {self.url}/{kind}: {in_words(error)}") from error
