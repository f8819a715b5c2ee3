"""``sweep.json``: what a sweep is and how far it has come. Read without anything heavy."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from errata.editing.errors import UserError

SWEEP_FILE: Final = "sweep.json"

CellState = Literal["waiting", "running", "done", "failed", "interrupted"]


class CellRecord(BaseModel):
    """One cell in ``sweep.json``."""

    model_config = ConfigDict(extra="forbid")

    key: str
    coordinates: dict[str, str]
    directory: str
    """Of the run, relative to the sweep's."""
    state: CellState = "waiting"
    reason: str | None = None
    """Why it failed: one line."""
    seconds: float | None = None
    """Wall seconds of its last attempt."""


class SweepRecord(BaseModel):
    """``sweep.json``: what the sweep is and how far it has come."""

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    sweep_id: str
    started_at: datetime
    axes: list[str]
    tables: list[str] = []
    cells: list[CellRecord]

    def count(self, state: CellState) -> int:
        """Cells in a state."""
        return sum(cell.state == state for cell in self.cells)


def read_record(path: Path) -> SweepRecord:
    """Read ``sweep.json``.

    Raises:
        UserError: it is not there, or no such record.
    """
    try:
        return SweepRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not a sweep's record: {error.errors()[0]['msg']}") from error


def write_record(path: Path, record: SweepRecord) -> None:
    """Write ``sweep.json``; a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
