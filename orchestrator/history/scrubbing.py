"""Texts taken out of the files of a run that people and trackers read: facts, reports, spools, caches.

The journal and the stored artifacts have ways of their own; this looks at everything else in the run's directory. Lines
that hold a text go, the report is made again from what is left, and a file that cannot be taken apart goes whole.
"""

from __future__ import annotations

import html
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from errata.orchestrator.journal import JOURNAL_FILE
from errata.orchestrator.journal.artifacts import KINDS

_OWN: Final = (*KINDS, "memory")
_DATABASES: Final = (".db", ".sqlite", ".sqlite3")


class Needles:
    """What must not be found any more, in every way in which a file may spell it."""

    def __init__(self, texts: Sequence[str], names: Sequence[str]) -> None:
        """``texts`` are found anywhere, ``names`` only whole: ``fact-1`` is not in ``fact-10``."""
        self.texts, self.names = tuple(dict.fromkeys(texts)), tuple(dict.fromkeys(names))
        forms = [re.escape(form) for text in self.texts for form in _spellings(text)]
        forms += [
            rb"(?<![\w.-])" + re.escape(form) + rb"(?![\w.-])" for name in self.names for form in _spellings(name)
        ]
        self._pattern = re.compile(b"|".join(dict.fromkeys(forms))) if forms else None

    def within(self, data: bytes) -> bool:
        """Whether any of them is there."""
        return self._pattern is not None and self._pattern.search(data) is not None


def _spellings(text: str) -> list[bytes]:
    plain = {text, html.escape(text), html.escape(text, quote=False), text.replace("'", "&#39;")}
    escaped = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return [form.encode("utf-8", "surrogatepass") for form in sorted(plain | escaped)]


@dataclass
class Scrubbed:
    """What became of the files."""

    changed: list[str] = field(default_factory=list)
    """Parts of them were taken out, or they were made again."""
    deleted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """They hold a text still, and nothing here can take it out."""


def scrub(run: Path, needles: Needles, render: Callable[[Path], str], *, dry_run: bool = False) -> Scrubbed:
    """Take the texts out of every file of a run but its journal, artifacts and memory.

    Args:
        render: the report of the run in a directory, from its summary and facts.
    """
    result = Scrubbed()
    for path in list(_files(run)):
        if not needles.within(path.read_bytes()):
            continue
        name = str(path.relative_to(run))
        if path.name == "report.html":
            continue  # when summary and facts hold nothing any more
        if path.suffix in _DATABASES or path.name.endswith("-wal"):
            result.left.append(name)
        elif path.suffix == ".jsonl":
            result.changed.append(name)
            if not dry_run:
                _replace(path, b"".join(line for line in _lines(path.read_bytes()) if not needles.within(line)))
        elif path.suffix == ".json" and (kept := _without(path, needles)) is not None:
            result.changed.append(name)
            if not dry_run:
                _replace(path, kept)
        else:
            result.deleted.append(name)
            if not dry_run:
                path.unlink()
    for path in [path for path in _files(run) if path.name == "report.html" and needles.within(path.read_bytes())]:
        name = str(path.relative_to(run))
        page = b"" if dry_run else _page(path.parent, render)
        if page is not None and not needles.within(page):
            result.changed.append(name)
            if not dry_run:
                _replace(path, page)
        else:
            result.deleted.append(name)
            path.unlink()
    return result


def _page(directory: Path, render: Callable[[Path], str]) -> bytes | None:
    if not (directory / "summary.json").is_file() or not (directory / "facts.jsonl").is_file():
        return None
    return render(directory).encode()


def _files(run: Path) -> Iterator[Path]:
    for path in sorted(run.rglob("*")):
        place = path.relative_to(run).parts
        if path.is_file() and place[0] not in _OWN and not (len(place) == 1 and place[0].startswith(JOURNAL_FILE)):
            yield path


def _lines(data: bytes) -> Iterator[bytes]:
    yield from data.splitlines(keepends=True)


def _without(path: Path, needles: Needles) -> bytes | None:
    """A JSON file without the items of lists that hold a text; None where that is not enough."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value if not needles.within(json.dumps(item, ensure_ascii=False).encode())]
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return value

    try:
        kept = json.dumps(clean(json.loads(path.read_bytes())), indent=2, ensure_ascii=False).encode() + b"\n"
    except ValueError:
        return None
    return None if needles.within(kept) else kept


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
