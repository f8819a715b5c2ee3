"""What a sweep's directory says, and in which order cells may start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from errata.editing.errors import UserError
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.experiments.config import load_sweep
from errata.orchestrator.experiments.plan import (
    Layout,
    Schedule,
    covariance_group,
    fresh_record,
    keep_other_cells,
    reason_of,
    write_cell_config,
)
from errata.orchestrator.experiments.record import read_record, write_record

from .conftest import RUN, write_sweep

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def cells_of(directory: Path, **axes):
    return list(load_sweep(str(write_sweep(directory, axes=axes))).cells)


def test_cells_that_estimate_the_same_covariance_are_a_group(tmp_path):
    axes = {
        "method": {
            "MEMIT": {"editor.type": "memit"},
            "heavy": {"editor.cov_weight": 9.0},
            "AlphaEdit": {"editor.type": "alphaedit"},
            "other layers": {"editor.layers": [3]},
            "other seed": {"covariance.seed": 1},
            "other budget": {"covariance.tokens": 7},
            "kept elsewhere": {"covariance.store": "there", "seed": 4},
        }
    }
    groups = [covariance_group(cell.config) for cell in cells_of(tmp_path, **axes)]
    assert groups[0] == groups[1] == groups[2] == groups[6] is not None
    assert len({groups[0], *groups[3:6]}) == 4


def test_what_estimates_nothing_is_in_no_group(tmp_path):
    axes = {
        "method": {
            "FT-L": {"editor": {"type": "ft_l", "layers": [1]}},
            "identity": {"covariance": {"source": "identity", "tokens": None}},
        }
    }
    assert [covariance_group(cell.config) for cell in cells_of(tmp_path, **axes)] == [None, None]


def test_of_the_cells_of_a_group_the_first_estimates_and_the_others_wait(tmp_path):
    one, two, other, free = cells = cells_of(
        tmp_path,
        what={
            "one": {},
            "two": {"seed": 1},
            "other": {"covariance.seed": 1},
            "free": {"covariance": {"source": "identity", "tokens": None}},
        },
    )
    schedule = Schedule(list(cells))
    assert [schedule.next() for _ in range(4)] == [one, other, free, None]
    schedule.ended(free)
    schedule.has_covariance(other)
    assert schedule.next() is None
    schedule.has_covariance(one)
    assert schedule.next() is two and not schedule.waiting


def test_where_the_first_fails_the_next_estimates(tmp_path):
    one, two, three = cells = cells_of(tmp_path, seed=[0, 1, 2])
    schedule = Schedule(list(cells))
    assert schedule.next() is one and schedule.next() is None
    schedule.ended(one)
    assert schedule.next() is two and schedule.next() is None
    schedule.has_covariance(two)
    schedule.ended(two)
    assert schedule.next() is three


def test_the_run_file_of_a_cell_is_that_run_with_the_sections_of_this_start(tmp_path, sweep):
    (tmp_path / "facts.jsonl").write_text("{}\n")
    cell = load_sweep(str(tmp_path / "sweep.yaml")).cells[2]
    layout = Layout(tmp_path / "out")
    path = write_cell_config(cell, layout, shared="kept", sections={"ray": {"address": "a:1"}})
    config = load_config(str(path))
    assert config.stream.path == str(tmp_path / "facts.jsonl")
    assert (config.covariance.store, config.ray.address, config.name) == ("kept", "a:1", cell.config.name)
    assert config.digest == cell.config.digest
    # a later start from elsewhere goes on with the same run, on another Ray
    (tmp_path / "facts.jsonl").unlink()
    moved = load_sweep(str(tmp_path / "sweep.yaml")).cells[2]
    again = load_config(str(write_cell_config(moved, layout, shared="kept", sections={"ray": {"address": "b:2"}})))
    assert (again.digest, again.ray.address) == (config.digest, "b:2")


def test_a_store_that_the_run_names_is_left_to_it(tmp_path):
    run = {**RUN, "covariance": {"tokens": 100, "store": "mine"}}
    cell = load_sweep(str(write_sweep(tmp_path, run=run))).cells[0]
    path = write_cell_config(cell, Layout(tmp_path), shared="kept", sections={})
    assert yaml.safe_load(path.read_text())["covariance"]["store"] == "mine"


def test_the_record_survives_writing_and_keeps_the_cells_of_earlier_starts(tmp_path, sweep):
    layout = Layout(tmp_path)
    old = fresh_record(sweep, layout, sweep_id="first", now=NOW)
    old.cells[0].seconds = 3.0
    write_record(layout.record, old)
    assert read_record(layout.record) == old and [path.name for path in tmp_path.glob("*.json*")] == ["sweep.json"]
    part = load_sweep(str(tmp_path / "sweep.yaml"), only=["method=MEMIT"])
    record = keep_other_cells(fresh_record(part, layout, sweep_id="second", now=datetime.now(UTC)), old)
    assert [cell.coordinates for cell in record.cells] == [cell.coordinates for cell in old.cells]
    assert (record.sweep_id, record.started_at, record.cells[0].seconds) == ("first", NOW, 3.0)


def test_a_record_that_is_none_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json is not a sweep's record"):
        read_record(tmp_path / "sweep.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("10:00 INFO x\nerrata: no such model\n", 2, "no such model"),
        ("errata: error: it broke\nRay says goodbye\n", 1, "it broke"),
        ("Traceback\nValueError: odd\n\n", 1, "exit code 1: ValueError: odd"),
        ("", -9, "ended by signal 9"),
    ],
)
def test_the_reason_of_a_failure_is_what_the_run_said(tmp_path, text, code, reason):
    (tmp_path / "log").write_text(text)
    assert reason_of(tmp_path / "log", code) == reason


def test_without_a_log_the_way_it_ended_is_the_reason(tmp_path):
    assert reason_of(tmp_path / "none", 3) == "exit code 3"
