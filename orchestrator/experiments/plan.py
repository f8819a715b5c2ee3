"""What a sweep's directory holds, and which cell may start next."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from errata.editing.digest import digest_json
from errata.editing.editors import make_editor
from errata.editing.errors import ErrataError
from errata.orchestrator.config.loading import check_config
from errata.orchestrator.config.run import RunConfig, identity_of
from errata.orchestrator.experiments.config import Cell, PreserveConfig, Sweep
from errata.orchestrator.experiments.record import SWEEP_FILE, CellRecord, CellState, SweepRecord
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.report.summary import read_summary

_KEY_DIGITS: Final = 16
_PRESERVED: Final = "preservation/sweep"
"""In a run's directory: the digest of what a sweep has had asked of it."""


@dataclass(frozen=True)
class Layout:
    """Where a sweep keeps what: one directory a cell, named by its digest."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / SWEEP_FILE

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def covariances(self) -> Path:
        return self.root / "covariances"

    def run(self, cell: Cell) -> Path:
        """Output directory of a cell's run."""
        return self.root / "cells" / cell.key[:_KEY_DIGITS]

    def config(self, cell: Cell) -> Path:
        """The cell's settings as a run's file."""
        return self.root / "configs" / f"{cell.key[:_KEY_DIGITS]}.yaml"

    def log(self, cell: Cell) -> Path:
        """What the cell's process says."""
        return self.root / "logs" / f"{cell.key[:_KEY_DIGITS]}.log"


# ---------------------------------------------------------------- the state of one cell


def is_done(directory: Path, cell: Cell) -> bool:
    """Whether the directory holds the finished run of this cell."""
    try:
        summary = read_summary(directory / "summary.json")
        kept = yaml.safe_load((directory / "resolved.yaml").read_text(encoding="utf-8"))
    except (ErrataError, OSError, yaml.YAMLError):
        return False
    # a longer stream than the cell's was not asked for, a shorter one is not all of it
    limit = (kept.get("stream") or {}).get("limit") if isinstance(kept, Mapping) else None
    same = limit == cell.config.stream.limit
    return same and summary.config_digest == digest_json(identity_of(kept))


def is_preserved(directory: Path, asked: PreserveConfig | None) -> bool:
    """Whether a finished run was asked all that a sweep wants asked of it."""
    if asked is None:
        return True
    try:
        return (directory / _PRESERVED).read_text(encoding="utf-8").strip() == _digest_of(asked)
    except OSError:
        return False


def note_preserved(directory: Path, asked: PreserveConfig) -> None:
    """Remember that it was; what was found lies beside it."""
    path = directory / _PRESERVED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_digest_of(asked) + "\n", encoding="utf-8")


def _digest_of(asked: PreserveConfig) -> str:
    return digest_json(asked.model_dump(mode="json"))


def has_begun(directory: Path) -> bool:
    """Whether a run was begun there, to be resumed."""
    return Journal.exists(directory / JOURNAL_FILE)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    edits: int
    total: int
    covariance: bool
    """Whether its first covariance is in force."""


def progress_of(directory: Path) -> Progress | None:
    """Read off the run's journal; None before there is one, or while it cannot be read."""
    try:
        if not has_begun(directory):
            return None
        with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
            counts = journal.counts()
            total = counts.accepted + counts.applied + counts.superseded
            return Progress(journal.head().edits, total, any(swap.after_sequence == 0 for swap in journal.swaps()))
    except (ErrataError, OSError):
        return None


def reason_of(log: Path, code: int) -> str:
    """Why a run failed, in one line: what it said itself, else the end of its log, else how it ended."""
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return how
    said = next((line for line in reversed(lines) if line.startswith("errata:")), None)
    last = next((line for line in reversed(lines) if line), None)
    if said is not None:
        return said.removeprefix("errata:").removeprefix(" error:").strip()
    return f"{how}: {last[:300]}" if last else how


# ---------------------------------------------------------------- settings of a cell as a run's file


def write_cell_config(cell: Cell, layout: Layout, *, shared: str | None, sections: Mapping[str, Any]) -> Path:
    """The run's file of a cell. What decides its results is written once, so that a later start goes on with it.

    Args:
        shared: directory of the shared covariances; used where the cell names none.
        sections: what may differ from start to start: ``ray``, ``tracking``.
    """
    path = layout.config(cell)
    if path.is_file():
        plain: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        check_config(plain, path)
    else:
        plain = absolute(cell.config).dump()
        plain["covariance"]["store"] = plain["covariance"]["store"] or shared
    for name, changes in sections.items():
        plain[name] = {**plain[name], **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)
    return path


def absolute(config: RunConfig) -> RunConfig:
    """The same run with the paths of files that are there made absolute: it may go on from another directory."""

    def full(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path is not None and Path(path).is_file() else path

    texts = {name: text.model_copy(update={"path": full(text.path)}) for name, text in config.evaluation.texts.items()}
    evaluation = config.evaluation.model_copy(update={"held_out": full(config.evaluation.held_out), "texts": texts})
    stream = config.stream.model_copy(update={"path": full(config.stream.path)})
    return config.model_copy(update={"evaluation": evaluation, "stream": stream})


def covariance_group(config: RunConfig) -> str | None:
    """Cells of one group start from the same first covariance; None for a cell that estimates none."""
    if config.covariance.source == "identity":
        return None
    editor = make_editor(config.editor)
    if not editor.needs_covariance:
        return None
    covariance = config.dump()["covariance"]
    covariance.pop("store")
    return digest_json(
        {"model": config.dump()["model"], "covariance": covariance, "layers": sorted(editor.mapped_layers)}
    )


# ---------------------------------------------------------------- whose turn it is


@dataclass
class Schedule:
    """Which cell starts next: in order, but of those with one covariance only the first until it has it."""

    waiting: list[Cell]
    _groups: dict[str, str | None] = field(default_factory=dict)
    _leaders: dict[str, str] = field(default_factory=dict)
    """Covariance group -> key of the cell that is estimating it."""
    _estimated: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._groups = {cell.key: covariance_group(cell.config) for cell in self.waiting}

    def next(self) -> Cell | None:
        """The cell to start now, taken from those waiting; None while all of them wait for a covariance."""
        for cell in self.waiting:
            group = self._groups[cell.key]
            if group is None or group in self._estimated or group not in self._leaders:
                self.waiting.remove(cell)
                if group is not None and group not in self._estimated:
                    self._leaders[group] = cell.key
                return cell
        return None

    def has_covariance(self, cell: Cell) -> None:
        """The cell's covariance is in the store: those that wait for it may start."""
        group = self._groups[cell.key]
        if group is not None:
            self._estimated.add(group)

    def ended(self, cell: Cell) -> None:
        """The cell's run has ended; if it was to estimate a covariance and has not, the next one does."""
        group = self._groups[cell.key]
        if group is not None and self._leaders.get(group) == cell.key:
            del self._leaders[group]


def fresh_record(sweep: Sweep, layout: Layout, *, sweep_id: str, now: datetime) -> SweepRecord:
    """The record of a sweep that begins or goes on: what is done is seen from the cells' directories."""
    cells = []
    for cell in sweep.cells:
        directory = layout.run(cell)
        done = is_done(directory, cell) and is_preserved(directory, sweep.config.preserve)
        state: CellState = "done" if done else "interrupted" if has_begun(directory) else "waiting"
        where = str(directory.relative_to(layout.root))
        cells.append(CellRecord(key=cell.key, coordinates=cell.coordinates, directory=where, state=state))
    return SweepRecord(
        name=sweep.config.name,
        about=sweep.config.about,
        sweep_id=sweep_id,
        started_at=now,
        axes=axes_of(sweep.cells, sweep.config.axis_names()),
        tables=list(sweep.config.tables),
        cells=cells,
    )


def axes_of(cells: Iterable[Cell], named: list[str]) -> list[str]:
    """The named axes and then what included cells set besides."""
    axes = dict.fromkeys(named)
    for cell in cells:
        axes |= dict.fromkeys(cell.coordinates)
    return list(axes)


def keep_other_cells(record: SweepRecord, old: SweepRecord) -> SweepRecord:
    """A record with the cells of an earlier start that this one leaves out, after its own."""
    own = {cell.key for cell in record.cells}
    seconds = {cell.key: cell.seconds for cell in old.cells}
    cells = [c.model_copy(update={"seconds": seconds.get(c.key)}) for c in record.cells]
    axes = list(dict.fromkeys([*record.axes, *old.axes]))
    cells += [cell for cell in old.cells if cell.key not in own]
    return record.model_copy(
        update={"cells": cells, "axes": axes, "started_at": old.started_at, "sweep_id": old.sweep_id}
    )
