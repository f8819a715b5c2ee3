"""Model directories under the cache: whole or absent, each beside a record of every file's size and digest.

A directory appears by one rename from a scratch directory on the same disk, also when several processes make it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from errata.editing.errors import UserError

logger = logging.getLogger(__name__)

RECORD = "errata-model.json"
RECORD_FORMAT = 1
STALE_SECONDS = 24 * 3600.0  # a scratch directory this old belongs to a process that died

Progress = Callable[[str], None]


def cache_root() -> Path:
    """The directory all cached files live in: `ERRATA_HOME`, else `~/.cache/errata`. It need not exist."""
    home = os.environ.get("ERRATA_HOME")
    return Path(home).expanduser().resolve() if home else Path.home() / ".cache" / "errata"


def made_directory(directory: Path, variable: str) -> Path:
    """The directory, made where it is not there yet.

    Raises:
        UserError: it cannot be made; the message names the environment variable that says where it lies.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{variable}: cannot create '{directory}' ({error.strerror}); set it to a writable directory"
        ) from error
    return directory


def make_record(name: str, directory: Path, **about: Any) -> dict[str, Any]:
    """Sizes and digests of every file below `directory`; `digest` covers names and contents of them all."""
    files: dict[str, dict[str, Any]] = {}
    whole = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        path.chmod(0o644)  # the cache may be shared; some writers create private files
        relative = path.relative_to(directory).as_posix()
        entry = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        files[relative] = entry
        whole.update(f"{relative}\0{entry['size']}\0{entry['sha256']}\n".encode())
    return {
        "format": RECORD_FORMAT,
        "name": name,
        "digest": whole.hexdigest(),
        **about,
        "files": files,
    }


def read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == RECORD_FORMAT else None


def damage_of(directory: Path, record: Mapping[str, Any], *, verify: bool) -> str | None:
    """What is wrong with a cached directory, or None."""
    files: Mapping[str, Mapping[str, Any]] = record["files"]
    for relative, entry in files.items():
        path = directory / relative
        try:
            size = path.stat().st_size
        except OSError:
            return f"{relative} is missing"
        if size != entry["size"]:
            return f"{relative} has {size} bytes, expected {entry['size']}"
        if verify and file_sha256(path) != entry["sha256"]:
            return f"{relative} does not have its SHA-256 {entry['sha256'][:12]}..."
    return None


def install(built: Path, target: Path) -> None:
    """Rename `built` to `target`; a whole copy already there is kept, a damaged one moved out of the way."""
    if target.exists():
        record = read_record(target)
        if record is not None and damage_of(target, record, verify=True) is None:
            return
        discarded = built.parent / "discarded"
        target.rename(discarded)
    target.parent.mkdir(parents=True, exist_ok=True)
    built.chmod(0o755)
    try:
        built.rename(target)
    except OSError:
        # Lost a race against a process that holds no common lock (some network file systems have none).
        # The name contains the digest, so what it put there has the same contents.
        record = read_record(target)
        if record is None or damage_of(target, record, verify=False) is not None:
            raise


@contextlib.contextmanager
def only_one(lock: Path, say: Progress) -> Iterator[None]:
    """Hold an exclusive lock, which dies with its holder; without lock support the rename still guards."""
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {lock.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("no file locks in %s (%s); going on without", lock.parent, error.strerror)
        yield


def remove_stale(home: Path, key: str) -> None:
    """Delete what fetches of this model that were killed left behind."""
    for scratch in home.glob(f".fetch-{key}-*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def imported_root() -> Path:
    """Where imported models lie."""
    return cache_root() / "imported"


def imported_models() -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """Whole imported models by name: directory and record."""
    by_name: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for directory in sorted(imported_root().glob("*")):
        record = read_record(directory)
        if record is not None and damage_of(directory, record, verify=False) is None:
            by_name[directory.name] = (directory, record)
    return by_name


def imported_dir(name: str) -> Path | None:
    """The directory of an imported model by its name, or by its name on the hub; None where there is none."""
    if not imported_root().is_dir():
        return None
    for key, (directory, record) in imported_models().items():
        if name == key or (record.get("hub_id") is not None and name.lower() == str(record["hub_id"]).lower()):
            return directory
    return None
