"""Raw records from JSON arrays, JSON Lines (plain or gzip) and the Hugging Face hub, with their positions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.editing.errors import UserError
from errata.editing.remote import here, is_url
from errata.editing.texts import open_text

HUB = "hub:"
_BOM = "\ufeff"


def read_records(source: str | Path) -> Iterator[tuple[str, Any]]:
    """(position, raw record) pairs of a data set.

    The whole syntax is checked before the first record is handed out, so that a broken line is found before
    anything has started; JSON Lines are then read one at a time.

    Args:
        source: a file with a JSON array or with one JSON object a line (``.gz`` accepted), or
        one object over several lines (perhaps a body of the API, ``{"edits": [...]}``), a URL that fsspec opens, or
        ``hub:NAME[:SPLIT]``.

    Raises:
        UserError: missing or unreadable file, or malformed JSON (names file and line).
    """
    if str(source).startswith(HUB):
        return _from_hub(str(source))
    if is_url(source):
        return _from_url(str(source))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"data file {str(path)!r} does not exist or is not a file")
    try:
        first = _first_character(path)
        if first == "":
            raise UserError(f"data file {str(path)!r} holds no record")
        if first == "[":
            return iter(_array(path))
        if first == "{" and (whole := _one_object(path)) is not None:
            return iter(_listed(path, whole))
        lines = sum(1 for _ in _lines(path))
    except UnicodeDecodeError as error:
        raise UserError(f"data file {str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError) as error:
        raise UserError(f"data file {str(path)!r} cannot be read: {error}") from error
    if lines == 0:
        raise UserError(f"data file {str(path)!r} holds no record")
    return _lines(path)


def _first_character(path: Path) -> str:
    with open_text(path) as file:
        while chunk := file.read(4096):
            if stripped := chunk.lstrip().lstrip(_BOM).lstrip():
                return stripped[0]
    return ""


def _array(path: Path) -> list[tuple[str, Any]]:
    with open_text(path) as file:
        try:
            records = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _malformed(path, error) from error
    return _listed(path, records)


def _one_object(path: Path) -> Any:
    """A file that holds one JSON object over several lines, its list of edits where it is a body of the API; else None.

    JSON Lines begin with a whole object on a line, which is asked first; so no large file is read at once in vain.
    """
    with open_text(path) as file:
        lines = (line for line in file if line.strip().strip(_BOM))
        opening = next(lines, "").strip().strip(_BOM)
        try:
            record, alone = json.loads(opening), next(lines, None) is None
        except (json.JSONDecodeError, RecursionError):
            record, alone = None, False
    if alone:
        return record["edits"] if isinstance(record, dict) and set(record) == {"edits"} else None
    if record is not None:
        return None
    try:
        record = json.loads(_whole(path))
    except (json.JSONDecodeError, RecursionError):
        return None  # the line that is no JSON is named by whoever reads lines
    return record["edits"] if isinstance(record, dict) and set(record) == {"edits"} else record


def _whole(path: Path) -> str:
    with open_text(path) as file:
        return file.read()


def _listed(path: Path, records: Any) -> list[tuple[str, Any]]:
    records = [records] if isinstance(records, dict) else records
    if not isinstance(records, list):
        raise UserError(f"data file {str(path)!r}: 'edits' must be a list, got {type(records).__name__}")
    if not records:
        raise UserError(f"data file {str(path)!r} holds no record")
    return [(f"{path}#{number}", record) for number, record in enumerate(records, start=1)]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip().strip(_BOM):
                continue
            try:
                # a file that was put together from others has byte order marks later on too
                yield f"{path}:{number}", json.loads(line.lstrip(_BOM))
            except (json.JSONDecodeError, RecursionError) as error:
                raise _malformed(path, error, number) from error


def _malformed(path: Path, error: json.JSONDecodeError | RecursionError, line: int | None = None) -> UserError:
    if isinstance(error, RecursionError):
        return UserError(f"{path}{'' if line is None else f':{line}'}: malformed JSON: nested too deeply")
    line = error.lineno if line is None else line
    return UserError(f"{path}:{line}: malformed JSON: {error.msg} (column {error.colno})")


def _from_url(url: str) -> Iterator[tuple[str, Any]]:
    """The records of a file that fsspec can open; it is fetched once, as a whole, and read like any other."""
    path = here(url, "data source")
    try:
        records = read_records(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), url)) from error
    return ((url + at.removeprefix(str(path)), raw) for at, raw in records)


def _from_hub(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.removeprefix(HUB).partition(":")
    split = split or "train"
    if not name:
        raise UserError(f"data source {source!r} names no data set; write hub:NAME or hub:NAME:SPLIT")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(
            f"data source {source!r} needs the package 'datasets' (pip install 'errata-llm[hub]'); or give a file"
        ) from error
    # streamed: of a large data set only what is asked for comes over the network, and nothing is kept on disk
    try:
        rows = iter(load_dataset(name, split=split, streaming=True))
        first = next(rows, None)
    except Exception as error:
        # the library raises its own, requests' and fsspec's errors alike: for the user they mean one thing
        raise UserError(f"data source {source!r} could not be loaded: {' '.join(str(error).split())}") from error
    if first is None:
        raise UserError(f"data source {source!r} holds no record")
    return _streamed(source, first, rows)


def _streamed(source: str, first: Any, rows: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    number, row = 1, first
    while row is not None:
        yield f"{source}#{number}", dict(row)
        try:
            row = next(rows, None)
        except Exception as error:
            said = " ".join(str(error).split())
            raise UserError(f"data source {source!r} broke off after record {number}: {said}") from error
        number += 1
