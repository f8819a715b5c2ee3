"""Files behind URLs: whatever fsspec has a package for (https://, s3://, gs://, az://, ...), copied to this machine."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from errata.editing.checkpoint.kept import cache_root
from errata.editing.digest import digest_json
from errata.editing.errors import UserError, in_words

_CHANGES: Final = (
    *("ETag", "etag", "Content-MD5", "content_md5", "md5Hash", "Digest", "Last-Modified", "LastModified"),
    *("last_modified", "updated", "created", "mtime", "generation"),
)
"""What file systems tell of a file that is another one when its content is; none tells all of them."""


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and no path; a `Path` made of a URL is none any more."""
    return "://" in str(place)


def here(place: str | Path, what: str) -> Path:
    """The file at a path, or this machine's copy of the one behind a URL, as it is there now.

    A copy is kept under ``~/.cache/errata/files`` and fetched again only where the file has changed, or where nothing
    tells whether it has.

    Args:
        what: names the file in errors, as the setting or option that it was given by.

    Raises:
        UserError: the URL cannot be read, or there is no room for the copy.
    """
    if not is_url(place):
        return Path(place)
    import fsspec  # type: ignore[import-untyped,unused-ignore]

    url = str(place)
    beside = None
    try:
        system, there = fsspec.core.url_to_fs(url)
        info = system.info(there)
        told = {key: str(info[key]) for key in _CHANGES if info.get(key) is not None}
        name = str(there).rstrip("/").rsplit("/", 1)[-1].partition("?")[0] or "file"
        kept = cache_root() / "files" / digest_json([url, info.get("size"), told])[:16] / name
        if told and kept.is_file():
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.parent / f".tmp-{secrets.token_hex(8)}"
        system.get_file(there, str(beside))
        os.replace(beside, kept)
    except Exception as error:  # every file system raises its own: for the user they mean one thing
        raise UserError(f"{what} {url!r} cannot be read: {in_words(error)}") from error
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()
    return kept
