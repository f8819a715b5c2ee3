"""A sweep over four runs of a model that nobody loads, and finished runs that nobody ran: their three files, with the
figures a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.orchestrator.experiments.config import Sweep, load_sweep
from errata.orchestrator.experiments.record import CellRecord, SweepRecord, write_record
from errata.orchestrator.report.summary import (
    ArmMetrics,
    FactRecord,
    ModelName,
    Perplexity,
    ProbeRecord,
    Summary,
    TimelinePoint,
    write_facts,
    write_summary,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
VERSIONS = {"token_accuracy": 1, "answer_contains": 1}
MakeRun = Callable[..., Path]
RUN: dict[str, Any] = {
    "model": {"name": "nowhere"},
    "editor": {"type": "memit", "layers": [1, 2]},
    "stream": {"path": "facts.jsonl"},
    "covariance": {"tokens": 100},
    "evaluation": {"held_out": None},
}
AXES: dict[str, Any] = {
    "method": {
        "MEMIT": {"editor.type": "memit"},
        "AlphaEdit": {"editor": {"type": "alphaedit", "tau": 0.5}},
    },
    "seed": [0, 1],
}


def fact(number: int, prompt: str = "{} is in") -> FactRecord:
    probe = ProbeRecord(kind="edit", prompt=f"S{number} is in", expected=("X",), arms={})
    return FactRecord(id=f"f{number}", subject=f"S{number}", prompt=prompt, target_new="X", sequence=1, probes=(probe,))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run into ``tmp_path/NAME``; settings are dotted keys."""

    def make(
        name: str,
        arms: Mapping[str, Mapping[str, float | None]],
        *,
        settings: Mapping[str, Any] | None = None,
        facts: Sequence[FactRecord] = (fact(1), fact(2)),
        timeline: Sequence[tuple[int, float]] = (),
        **changes: Any,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        plain: dict[str, Any] = {
            "name": name,
            "seed": 0,
            "model": {"name": "tiny"},
            "editor": {"type": "memit", "layers": [1]},
            "stream": {"path": "facts.jsonl", "limit": None, "skip": 0},
            "evaluation": {"max_new_tokens": 12, "held_out": None, "every": None},
            "memory": {"scr": {"k": 3}},
        }
        for key, value in (settings or {}).items():
            *sections, last = key.split(".")
            place = plain
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        found = {arm: ArmMetrics(**values) for arm, values in arms.items()}
        summary = Summary(
            **{
                "name": name,
                "errata_version": "0.1.0",
                "started_at": NOW,
                "finished_at": NOW,
                "config_digest": "c",
                "model": ModelName(name=plain["model"]["name"], digest=plain["model"]["name"] + "-digest"),
                "editor": plain["editor"]["type"],
                "edits_applied": len(facts),
                "edits_failed": 0,
                "batches": 1,
                "refreshes": 0,
                "version": "v",
                "wall_seconds": 1.0,
                "edit_seconds_per_edit": 0.5,
                "perplexity": Perplexity(base=20.0, edited=25.0),
                "arms": found,
                "metric_versions": VERSIONS,
                "timeline": tuple(
                    TimelinePoint(edits=edits, version="v", facts=2, arms={"edited": ArmMetrics(reliability=value)})
                    for edits, value in timeline
                ),
                **changes,
            }
        )
        write_summary(directory / "summary.json", summary)
        write_facts(directory / "facts.jsonl", facts)
        (directory / "resolved.yaml").write_text(yaml.safe_dump(plain))
        return directory

    return make


def write_sweep_record(directory: Path, cells: Mapping[str, Mapping[str, str]], **changes: Any) -> Path:
    """A sweep's record over runs in ``directory``, by name; a name that begins with ``-`` has failed."""
    axes = list(dict.fromkeys(axis for coordinates in cells.values() for axis in coordinates))
    record = SweepRecord(
        **{
            "name": "demo",
            "sweep_id": "s",
            "started_at": NOW,
            "axes": axes,
            "cells": [
                CellRecord(
                    key=name,
                    coordinates=dict(coordinates),
                    directory=name,
                    state="failed" if name.startswith("-") else "done",
                )
                for name, coordinates in cells.items()
            ],
            **changes,
        }
    )
    write_record(directory / "sweep.json", record)
    return directory


def write_sweep(directory: Path, **changes: Any) -> Path:
    """A sweep's file with some keys changed; None leaves one out."""
    data = {"name": "demo", "run": RUN, "axes": AXES, **changes}
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}, sort_keys=False))
    return path


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two methods, two seeds."""
    return load_sweep(str(write_sweep(tmp_path)))
