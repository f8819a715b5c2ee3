"""Whole runs on a model in two parts against the same runs on whole ones."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from typer.testing import CliRunner

from errata.actors.clients import EditorClient
from errata.actors.settings import ModelSpec, ParallelConfig, RayConfig, RoleConfig
from errata.actors.workers.editor import ContextSpec
from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.request import EditBatch, EditRequest
from errata.editing.values import ValueConfig
from errata.orchestrator.cli import app
from errata.orchestrator.progress import Display
from errata.orchestrator.report.summary import Summary, read_summary
from errata.orchestrator.run.launch import run_experiment
from tests.helpers.tiny import save_tiny
from tests.integration.harness import config, facts, outcome

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow, pytest.mark.timeout(900)]

ROLE = {"num_cpus": 0.5}
PLACES = {"editor": ROLE, "generation": ROLE, "generation_workers": 1, "evaluation_workers": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sharded") / "model", "llama", hidden=48, heads=6, inner=50)


def summary_of(settings: Any, directory: Path) -> Summary:
    run_experiment(settings, directory, resume=False, display=Display(quiet=True))
    return read_summary(directory / "summary.json")


@dataclass(frozen=True)
class Runs:
    """The same run on a whole model and on one in two parts, every process of which has a place reserved."""

    whole: Path
    divided: Path
    metrics: tuple[Summary, Summary]


@pytest.fixture(scope="module")
def runs(checkpoint: Path, stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    base = tmp_path_factory.mktemp("runs")
    settings = config(checkpoint, stream, ray=PLACES)
    places = {**PLACES, "reserve": True, "reserve_timeout_seconds": 60}
    model = {"name": str(checkpoint), "parallel": {"size": 2, "timeout_seconds": 120}}
    spread = config(checkpoint, stream, ray=places, model=model)
    metrics = (summary_of(settings, base / "whole"), summary_of(spread, base / "divided"))
    return Runs(base / "whole", base / "divided", metrics)


def test_a_run_on_two_ranks_ends_with_the_same_metrics(runs: Runs) -> None:
    whole, divided = runs.metrics
    same_course(outcome(runs.divided), outcome(runs.whole))
    for arm, metrics in whole.arms.items():
        for name, value in metrics.model_dump().items():
            if name != "query_seconds":
                assert getattr(divided.arms[arm], name) == pytest.approx(value, abs=0.02), (arm, name)
    assert divided.perplexity.edited == pytest.approx(whole.perplexity.edited, rel=1e-3)
    assert not [name for name in placement_group_names() if name.startswith("errata-")]


def placement_group_names() -> list[str]:
    """Of those that hold places now."""
    table = ray.util.placement_group_table()
    return [group["name"] for group in table.values() if group["state"] != "REMOVED"]


def errata(*arguments: object) -> str:
    """A command in this process; what it raises comes through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return str(result.stdout)


def test_the_commands_that_change_a_run_work_on_the_ranks(runs: Runs, tmp_path: Path) -> None:
    found: list[dict[int, torch.Tensor]] = []
    for directory in (runs.whole, runs.divided):
        run = tmp_path / directory.name
        shutil.copytree(directory, run)
        assert errata("revert", "fact-4", "--run", run).startswith("v5 ")
        assert "kept as snapshots/" in errata("snapshot", "--run", run)
        # from the snapshot on, and not from the beginning
        assert " reverts fact-2, fact-10" in errata("revert", "fact-2", "fact-10", "--run", run)
        assert ": sound" in errata("verify", run)
        errata("checkout", "head", "--run", run, "--output", run / "head")
        errata("checkout", "v4", "--run", run, "--output", run / "v4")
        edited, before = load_model(str(run / "head")), load_model(str(run / "v4"))
        found.append({layer: edited.weight(layer) for layer in (1, 2)})
        assert all(not torch.equal(weight, before.weight(layer)) for layer, weight in found[-1].items())
    for layer, want in found[0].items():
        assert float((found[1][layer] - want).norm()) < 1e-3 * float(want.norm())


def same_course(got: Any, want: Any) -> None:
    """Equal but for the bytes of weights, which rounding makes different."""
    for name in ("batches", "edits", "states", "applications", "timeline"):
        assert getattr(got, name) == getattr(want, name), name


EDITOR = MemitConfig(
    layers=(1, 2),
    cov_weight=2.0,
    values=ValueConfig(lr=0.05, steps=120, clamp=2.0, weight_decay=0.0, stop_loss=0.0),
)
BATCHES = [
    EditBatch(sequence=number + 1, requests=(EditRequest.model_validate(record),))
    for number, record in enumerate(facts(3))
]


def covariance(checkpoint: Path) -> KeyCovariance:
    width = load_model(str(checkpoint)).weight(1).shape[1]
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(300, width, generator=generator, dtype=torch.float64)
    return KeyCovariance({layer: keys.T @ keys for layer in EDITOR.layers}, 300, {"kind": "random"})


def edit_all(checkpoint: Path, murders: dict[int, float]) -> tuple[dict[int, torch.Tensor], int]:
    """Three batches; a rank is killed so many seconds into the batches named, 0 for just before it."""
    history: list[Any] = [covariance(checkpoint)]
    spec = ModelSpec(name=str(checkpoint), parallel=ParallelConfig(size=2, timeout_seconds=60))
    client = EditorClient(
        RayConfig(editor=RoleConfig(num_cpus=0.5)), spec, EDITOR, ContextSpec(0, 1, 0, ("",)), lambda: list(history)
    )
    try:
        client.restore()
        for batch in BATCHES:
            after = murders.get(batch.sequence)
            if after is not None:
                rank = client.actor.rank_actors[batch.sequence % 2]
                pid = int(ray.get(rank.pid.remote(), timeout=120)[1])
                if after:
                    threading.Timer(after, os.kill, (pid, signal.SIGKILL)).start()
                else:
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(0.5)
            history.append(client.apply(batch))
        return ray.get(client.weights()), client.revivals
    finally:
        client.close()


def test_an_editor_whose_ranks_die_ends_at_the_same_weights(checkpoint: Path) -> None:
    want, none = edit_all(checkpoint, {})
    got, revivals = edit_all(checkpoint, {2: 0.4, 3: 0.0})
    assert (none, revivals) == (0, 2)
    for layer, weight in want.items():
        assert torch.equal(got[layer], weight)
        assert not torch.equal(weight, load_model(str(checkpoint)).weight(layer))
