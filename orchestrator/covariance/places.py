"""Stores of covariances that are no directory: a repository of the Hub, an object store, a web server; and the shipped.

What is behind a URL is looked up by the same names and under the same checks as in a directory; a file is fetched once
and kept in the cache. A place that can be written to (s3://, gs://, memory://, ...) is added to; the Hub and web
servers are only read, and what had to be estimated is kept in the user's own store.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from errata.editing.checkpoint.kept import cache_root
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError, in_words
from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.covariance.store import CovarianceStore, default_store

_HUB = re.compile(
    r"hf://(?P<kind>datasets/|)(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+?))?(?P<folder>(?:/[\w.-]+)*)/?"
)
_READ_ONLY = ("hf", "http", "https")


def shipped_store() -> CovarianceStore:
    """The packed covariances that come with the installation."""
    return CovarianceStore(configs_root() / "covariances")


def open_store(place: str | Path) -> CovarianceStore:
    """The store at a directory or a URL: ``hf://[datasets/]ORG/NAME[@REVISION][/FOLDER]``, or one that fsspec opens.

    Raises:
        UserError: the URL has no such form.
    """
    text = str(place)
    return RemoteStore(text) if "://" in text else CovarianceStore(Path(text).expanduser())


class RemoteStore(CovarianceStore):
    """Covariances behind a URL, with a copy of every one that was wanted on this machine."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._hub = _HUB.fullmatch(url) if self._scheme == "hf" else None
        if self._scheme == "hf" and self._hub is None:
            raise UserError(
                f"covariance.store {url!r}: want hf://ORG/NAME[@REVISION][/FOLDER] or hf://datasets/ORG/..."
            )
        super().__init__(cache_root() / "covariances-from" / hashlib.sha256(self.url.encode()).hexdigest()[:12])

    def find(self, source: Mapping[str, Any], layers: Sequence[int], *, packed: bool = False) -> KeyCovariance | None:
        """As of a directory.

        Raises:
            UserError: the place cannot be read, or holds a damaged file or another one under that name.
        """
        wanted = [self.path_of(source, layers), *([self.packed_path_of(source, layers)] if packed else [])]
        if not any(path.is_file() for path in wanted):
            for path in wanted:
                if self._fetch(path):
                    break
            else:
                return CovarianceStore(default_store()).find(source, layers, packed=packed) if self._read_only else None
        return super().find(source, layers, packed=packed)

    def put(self, covariance: KeyCovariance) -> Path:
        """Keep a covariance there, or in the user's store where the place is only read.

        Raises:
            UserError: the place cannot be written to.
        """
        if self._read_only:
            return CovarianceStore(default_store()).put(covariance)
        import fsspec

        path = super().put(covariance)
        try:
            system, place = fsspec.core.url_to_fs(self.url)
            system.makedirs(place, exist_ok=True)
            # whoever reads meanwhile sees a whole file or none
            beside = f"{place}/.tmp-{secrets.token_hex(8)}{path.suffix}"
            system.put_file(str(path), beside)
            system.mv(beside, f"{place}/{path.name}")
        except Exception as error:  # each file system has errors of its own
            raise UserError(f"covariance.store {self.url!r} cannot be written to: {in_words(error)}") from error
        return path

    @property
    def _read_only(self) -> bool:
        return self._scheme in _READ_ONLY

    def _fetch(self, path: Path) -> bool:
        """Bring a file into the cache; False where the place has none of that name."""
        with tempfile.TemporaryDirectory(prefix="errata-") as scratch:
            here = Path(scratch) / path.name
            try:
                found = self._from_hub(path.name, here) if self._hub else self._from_url(path.name, here)
            except Exception as error:  # each file system has errors of its own
                raise UserError(f"covariance.store {self.url!r} cannot be read: {in_words(error)}") from error
            if not found:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.parent / f".tmp-{secrets.token_hex(8)}"
            try:
                shutil.move(here, beside)
                os.replace(beside, path)
            finally:
                with suppress(OSError):
                    beside.unlink()
        return True

    def _from_url(self, name: str, here: Path) -> bool:
        import fsspec

        system, place = fsspec.core.url_to_fs(self.url)
        try:
            system.get_file(f"{place}/{name}", str(here))
        except FileNotFoundError:
            return False
        return True

    def _from_hub(self, name: str, here: Path) -> bool:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        assert self._hub is not None
        folder = self._hub["folder"].strip("/")
        try:
            kept = hf_hub_download(
                self._hub["repo"],
                f"{folder}/{name}" if folder else name,
                repo_type="dataset" if self._hub["kind"] else "model",
                revision=self._hub["revision"],
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        except LocalEntryNotFoundError as error:
            offline = ": HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
            raise ConnectionError(f"the Hub does not answer{offline}") from error
        except EntryNotFoundError:
            return False
        shutil.copyfile(kept, here)
        return True
