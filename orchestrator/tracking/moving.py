"""A run's own MLflow database after the run was moved or copied: its places are those of now."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

ARTIFACTS: Final = "mlartifacts"
DATABASE: Final = "mlflow.db"

_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
    ("trace_tags", "value"),
)
"""Columns in which MLflow keeps absolute addresses of files."""

_SCHEME: Final = "sqlite:///"


def follow_move(directory: Path) -> bool:
    """Have the database in a run's directory name the files beside it, wherever it says that they were.

    MLflow keeps absolute addresses, so a run that was moved would write to where it had been, and a copied one into the
    files of its original. Nothing is done where the addresses are right, or are none that a run has made.

    Returns:
        Whether addresses were changed.
    """
    database, here = directory / DATABASE, (directory / ARTIFACTS).absolute().as_uri()
    if not database.exists():
        return False
    changed = False
    # a database that cannot be read or is locked is MLflow's to complain of
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        old = {str(place) for (place,) in rows if str(place).endswith(f"/{ARTIFACTS}") and place != here}
        with connection:
            for place in sorted(old):
                for table, column in _PLACES:
                    changed |= _repoint(connection, table, column, place, here)
        if changed:
            logger.info("the run was moved: its tracking database names the files in %s now", directory)
    return changed


def _repoint(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> bool:
    known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    if column not in known:  # of another release of MLflow
        return False
    # the whole part, so that /runs/a does not stand for /runs/ab
    query = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"
    changed = connection.execute(query, (new, len(old) + 1, old, len(old) + 1, f"{old}/"))
    return changed.rowcount > 0


def address_now(tracking: Mapping[str, Any], directory: Path) -> str | None:
    """Where a run's journal says that it is tracked, brought to where the run is now.

    A cell of a sweep is tracked in the sweep's database, one or two directories up: that one is meant, also after the
    whole sweep was moved or copied.
    """
    uri = tracking.get("uri")
    if uri is None or tracking.get("parent") is None or not str(uri).startswith(_SCHEME):
        return None if uri is None else str(uri)
    name = Path(str(uri).removeprefix(_SCHEME)).name
    for above in list(directory.absolute().parents)[:2]:
        if (above / name).exists():
            return f"{_SCHEME}{above / name}"
    return str(uri)
