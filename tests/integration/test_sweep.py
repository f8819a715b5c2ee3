"""A sweep on real Ray: cells as processes, a covariance they share, one that fails, MLflow's tree of runs."""

from __future__ import annotations

import logging
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from errata.orchestrator.experiments.config import Sweep, load_sweep
from errata.orchestrator.experiments.execute import run_sweep
from errata.orchestrator.experiments.record import SweepRecord
from errata.orchestrator.experiments.view import SweepView
from errata.orchestrator.report.summary import read_summary
from tests.integration.harness import settings

pytestmark = pytest.mark.slow  # three processes with Ray and MLflow each

ROLE = {"num_cpus": 0.5}


def quiet() -> SweepView:
    return SweepView(Console(file=StringIO()))


@pytest.fixture(scope="module")
def ran(
    tiny_checkpoint: Path, stream: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sweep, Path, SweepRecord]:
    """AlphaEdit, MEMIT, and a method that names a layer the model does not have; two at a time."""
    directory = tmp_path_factory.mktemp("sweep")
    ray = {"generation": ROLE, "editor": ROLE, "evaluation": ROLE, "generation_workers": 1, "evaluation_workers": 1}
    run = settings(tiny_checkpoint, stream, ray=ray)
    del run["name"]
    tau = run["editor"].pop("tau")
    axes = {
        "method": {
            "AlphaEdit": {"editor.tau": tau},
            "MEMIT": {"editor.type": "memit"},
            "broken": {"editor.layers": [1, 99]},
        }
    }
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "run": run, "axes": axes}))
    sweep = load_sweep(str(path))
    return sweep, directory / "out", run_sweep(sweep, directory / "out", jobs=2, view=quiet())


def test_what_can_be_done_is_done_and_what_fails_says_why(ran):
    _, output, record = ran
    assert [cell.state for cell in record.cells] == ["done", "done", "failed"], (
        [cell.reason for cell in record.cells],
        [path.read_text()[-2000:] for path in (output / "logs").iterdir()],
    )
    assert "layer 99 does not exist" in (record.cells[2].reason or "")


def test_a_cell_comes_to_what_the_run_alone_comes_to(ran, undisturbed):
    _, output, record = ran
    summary = read_summary(output / record.cells[0].directory / "summary.json")
    assert summary.version == undisturbed[0].version


def test_the_covariance_that_cells_share_was_estimated_once(ran):
    _, output, _ = ran
    assert len(list((output / "covariances").glob("*.safetensors"))) == 1
    said = [path.read_text() for path in (output / "logs").iterdir()]
    assert sum("found in the store" in text for text in said) == 1


def test_the_cells_are_child_runs_of_the_sweeps_run(ran):
    from mlflow import MlflowClient

    _, output, _ = ran
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("errata")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.run_name for run in parents] == ["tiny"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert len(children) == 2 and {run.info.status for run in children} == {"FINISHED"}
    assert parents[0].data.metrics["sweep/done_cells"] == 2 and parents[0].data.metrics["sweep/failed_cells"] == 1


def test_the_tables_are_there(ran):
    _, output, _ = ran
    table = (output / "comparison.md").read_text()
    for row in ("unedited", "memory", "AlphaEdit", "AlphaEdit + memory", "MEMIT", "MEMIT + memory"):
        assert f"\n| {row} |" in table
    assert "2 of 3 cells of tiny are done: 1 failed" in table


def test_again_only_what_failed_is_tried(ran, caplog):
    sweep, output, _ = ran
    before = {path: path.stat().st_mtime_ns for path in output.glob("cells/*/summary.json")}
    with caplog.at_level(logging.INFO):
        record = run_sweep(sweep, output, jobs=1, view=quiet())
    assert "3 cells: 1 to run, 2 done before" in caplog.text
    assert [cell.state for cell in record.cells] == ["done", "done", "failed"]
    assert {path: path.stat().st_mtime_ns for path in output.glob("cells/*/summary.json")} == before
