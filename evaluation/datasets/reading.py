"""Raw records from JSON arrays, JSON Lines (plain or gzip) and the Hugging Face hub, with their positions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from errata.editing.errors import UserError

HUB = "hub:"


def read_records(source: str | Path) -> Iterator[tuple[str, Any]]:
    """(position, raw record) pairs of a data set.

    The whole syntax is checked before the first record is handed out, so that a broken line is found before
    anything has started; JSON Lines are then read one at a time.

    Args:
        source: a file with a JSON array or with one JSON object a line (``.gz`` accepted), or
        ``hub:NAME[:SPLIT]``.

    Raises:
        UserError: missing or unreadable file, or malformed JSON (names file and line).
    """
    if str(source).startswith(HUB):
        return _from_hub(str(source))
    path = Path(source)
    if not path.is_file():
        raise UserError(f"data file {str(path)!r} does not exist or is not a file")
    try:
        first = _first_character(path)
        if first == "":
            raise UserError(f"data file {str(path)!r} holds no record")
        if first == "[":
            return iter(_array(path))
        lines = sum(1 for _ in _lines(path))
    except UnicodeDecodeError as error:
        raise UserError(f"data file {str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError) as error:
        raise UserError(f"data file {str(path)!r} cannot be read: {error}") from error
    if lines == 0:
        raise UserError(f"data file {str(path)!r} holds no record")
    return _lines(path)


def _open(path: Path) -> IO[str]:
    # newline="\n": U+2028 and lone carriage returns inside a record do not end it
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline="\n"))
    return path.open(encoding="utf-8-sig", newline="\n")


def _first_character(path: Path) -> str:
    with _open(path) as file:
        while chunk := file.read(4096):
            if stripped := chunk.lstrip():
                return stripped[0]
    return ""


def _array(path: Path) -> list[tuple[str, Any]]:
    with _open(path) as file:
        try:
            records = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _malformed(path, error) from error
    if not records:
        raise UserError(f"data file {str(path)!r} holds no record")
    return [(f"{path}#{number}", record) for number, record in enumerate(records, start=1)]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise _malformed(path, error, number) from error


def _malformed(path: Path, error: json.JSONDecodeError | RecursionError, line: int | None = None) -> UserError:
    if isinstance(error, RecursionError):
        return UserError(f"{path}{'' if line is None else f':{line}'}: malformed JSON: nested too deeply")
    line = error.lineno if line is None else line
    return UserError(f"{path}:{line}: malformed JSON: {error.msg} (column {error.colno})")


def _from_hub(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.removeprefix(HUB).partition(":")
    split = split or "train"
    if not name:
        raise UserError(f"data source {source!r} names no data set; write hub:NAME or hub:NAME:SPLIT")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(
            f"data source {source!r} needs the package 'datasets' (pip install datasets); or give a file"
        ) from error
    try:
        rows = load_dataset(name, split=split)
    except Exception as error:
        # the library raises its own, requests' and fsspec's errors alike: for the user they mean one thing
        raise UserError(f"data source {source!r} could not be loaded: {' '.join(str(error).split())}") from error
    return ((f"{source}#{number}", dict(row)) for number, row in enumerate(rows, start=1))
