"""A whole run on real Ray: what comes out, and that sharing the work out changes no byte of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from errata.evaluation.outcomes import ARMS
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.report.summary import Summary, read_summary
from errata.orchestrator.run.launch import run_experiment
from tests.integration.harness import config, outcome


@dataclass(frozen=True)
class Ran:
    settings: RunConfig
    directory: Path
    summary: Summary


@pytest.fixture(scope="module")
def ran(tiny_checkpoint: Path, stream: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Three workers generate, two evaluate."""
    settings = config(tiny_checkpoint, stream, ray={"generation_workers": 3, "evaluation_workers": 2})
    directory = tmp_path_factory.mktemp("ran") / "run"
    run_experiment(settings, directory, resume=False, display=Display(quiet=True))
    return Ran(settings, directory, read_summary(directory / "summary.json"))


def test_three_workers_and_none_at_all_come_to_the_same(ran, undisturbed):
    # every delta, every covariance, the version: equal to the run whose workers are called one after the other
    assert outcome(ran.directory) == undisturbed[0]


def test_the_summary_says_what_was_done(ran):
    summary = ran.summary
    assert (summary.edits_applied, summary.edits_failed, summary.batches, summary.refreshes) == (12, 0, 4, 1)
    assert (summary.name, summary.editor, summary.model.name) == ("tiny", "alphaedit", ran.settings.model.name)
    assert summary.config_digest == ran.settings.digest
    assert summary.started_at < summary.finished_at and summary.wall_seconds > 0
    assert summary.edit_seconds_per_edit is not None and summary.edit_seconds_per_edit > 0
    assert summary.stages.covariance_seconds > 0 and summary.stages.evaluation_seconds > 0
    assert summary.failures == ()


def test_all_four_arms_are_measured_at_the_end(ran):
    assert set(ran.summary.arms) == set(ARMS) == {"base", "edited", "memory", "edited_memory", "routed"}
    for arm, metrics in ran.summary.arms.items():
        values = metrics.model_dump()
        # free texts, and what other answers stand beside, are measured only where that is asked for
        always = (
            "efficacy", "generalization", "specificity", "reliability", "generalization_gen", "locality",
            "portability", "query_seconds",
        )  # fmt: skip
        assert [name for name in always if values[name] is None] == [], arm
        for name in always:
            assert values[name] >= 0 and (values[name] <= 1 or name == "query_seconds"), (arm, name)
    assert ran.summary.arms["base"].locality == 1.0
    assert set(ran.summary.choice) == {"memory", "edited_memory", "routed"}
    assert ran.summary.perplexity.base and ran.summary.perplexity.edited


def test_the_timeline_has_the_same_facts_at_every_point_and_norms_of_every_edited_layer(ran):
    points = ran.summary.timeline
    assert [point.edits for point in points] == [0, 6, 12]
    assert {point.facts for point in points} == {2}
    assert points[-1].version == ran.summary.version != points[0].version
    assert all(set(point.arms) == set(ARMS) for point in points)
    assert [set(point.norms) for point in points] == [{"1", "2"}] * 3
    assert points[0].perplexity.edited == points[0].perplexity.base


def test_the_refresh_swapped_in_the_middle_of_the_stream(ran):
    (event,) = ran.summary.refresh_events
    assert (event.triggered_at, event.swapped_at) == (6, 9)
    assert event.tokens >= ran.settings.covariance.tokens
    with Journal.open(ran.directory / "journal.sqlite", read_only=True) as journal:
        versions = journal.versions()
        assert event.source_version == versions[2].digest
        used = [version.covariance for version in versions[1:]]
        assert used[0] == used[1] == used[2] != used[3] == event.digest
        assert open_store(ran.directory).verify() == []


def test_every_fact_has_a_line_with_each_arms_answer(ran):
    lines = [json.loads(line) for line in (ran.directory / "facts.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"fact-{n}" for n in range(12) if n != 1]  # superseded by fact-7
    for line in lines:
        assert [probe["kind"] for probe in line["probes"]] == ["edit", "paraphrase", "neighborhood", "portability"]
        assert all(set(probe["arms"]) == set(ARMS) for probe in line["probes"])


def test_the_report_is_one_page_about_this_run(ran):
    page = (ran.directory / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and page.rstrip().endswith("</html>")
    assert ran.summary.version[:8] in page and "Danielle Darrieux 0" in page


def test_the_resolved_configuration_loads_to_the_same(ran):
    assert load_config(str(ran.directory / "resolved.yaml")) == ran.settings


def test_the_run_is_a_run_of_mlflow(ran):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{ran.directory / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "errata"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "tiny"
    assert run.data.params["editor.type"] == "alphaedit" and run.data.params["batching.size"] == "3"
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    assert sorted(set(steps["edited/efficacy"])) == [0, 6, 12]
    assert steps["norms/layer_01"] == [3, 6, 9, 12] and steps["final_memory/reliability"] == [12]
    assert run.data.metrics["final_edited/efficacy"] == pytest.approx(ran.summary.arms["edited"].efficacy)
    found = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"summary.json", "report.html", "resolved.yaml", "facts.jsonl"} <= found
