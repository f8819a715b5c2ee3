"""Figures of repair: sums over its rounds, in the summary, on the page and in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.orchestrator.history.log import History
from errata.orchestrator.history.text import log_lines
from errata.orchestrator.measuring.repairs import repair_figures
from errata.orchestrator.report import render_report
from errata.orchestrator.report.summary import RepairSummary
from errata.orchestrator.run.repairing import REPAIR
from tests.helpers.sample_report import sample_facts, sample_summary
from tests.unit.orchestrator.run.test_repairing import drive, running


def test_rounds_are_summed_and_shown(tmp_path: Path) -> None:
    with running(tmp_path / "run", every=15, sample=20, target=0.9, most=2.0) as pipeline:
        drive(pipeline, 60)
        rounds = [event.data for event in pipeline.journal.events(REPAIR)]
        figures = repair_figures(rounds, 100.0)
        assert figures is not None
        assert figures["asked"] == sum(len(data["asked"]) for data in rounds)
        assert figures["asked"] - figures["said"] == sum(len(data["lost"]) for data in rounds)
        assert sum(group["asked"] for group in figures["ages"]) == figures["asked"]
        assert sum(group["before"] * group["asked"] for group in figures["ages"]) == pytest.approx(figures["said"])
        gained = sum((group["after"] - group["before"]) * group["asked"] for group in figures["ages"])
        assert gained == pytest.approx(figures["landed"]) and figures["landed"] > 0
        assert figures["cost"] == pytest.approx((figures["ask_seconds"] + figures["write_seconds"]) / 100)
        assert [point["edits"] for point in figures["points"]] == [15, 30, 45, 60]
        assert figures["looks"] == 4
        for point in figures["points"]:
            assert point["last"] >= 0.9 or point["written"]
        lines = "\n".join(log_lines(History(pipeline.journal).log(200)))
        assert "repair at 15 edits:" in lines and "written again" in lines
    summary = {**sample_summary(), "repair": RepairSummary.model_validate(figures).model_dump(mode="json")}
    page = render_report(summary, sample_facts(), "name: run\n")
    assert "Old facts, asked again" in page and "up to" in page
    assert "Old facts" not in render_report(sample_summary(), sample_facts(), "name: run\n")


def test_a_run_without_repair_has_no_figures_of_it() -> None:
    assert repair_figures([], 10.0) is None
