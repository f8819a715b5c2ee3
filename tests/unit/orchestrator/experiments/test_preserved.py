"""What `errata preserve` has found, as columns, curves and stages of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.config import PreserveConfig, load_sweep
from errata.orchestrator.experiments.curves import panels_of
from errata.orchestrator.experiments.plan import is_preserved, note_preserved
from errata.orchestrator.experiments.tables import compare
from errata.orchestrator.experiments.text import to_markdown
from errata.orchestrator.experiments.timeline import at_points
from errata.orchestrator.report.preserved import FILE, KeptScore, KeptVersion, keep_preserved, read_preserved
from errata.orchestrator.report.summary import ArmMetrics, TimelinePoint, read_summary, write_summary

from .conftest import write_sweep, write_sweep_record


def score(task: str, value: float, metric: str = "acc") -> KeptScore:
    return KeptScore(task=task, metric=metric, value=value, items=10, of=10)


def version(sequence: int, *scores: KeptScore, **figures: float) -> KeptVersion:
    return KeptVersion(digest=f"v{sequence}", sequence=sequence, edits=10 * sequence, scores=scores, **figures)


def test_what_is_found_later_joins_what_is_kept(tmp_path: Path) -> None:
    keep_preserved(tmp_path, [version(0, score("rte", 0.5)), version(2, score("rte", 0.4), s_p=0.3)])
    keep_preserved(tmp_path, [version(2, score("rte", 0.45), score("mmlu", 0.2), retention=0.9), version(1)])
    first, second, third = read_preserved(tmp_path)
    assert (first.sequence, second.sequence, third.sequence) == (0, 1, 2)
    assert {one.task: one.value for one in third.scores} == {"rte": 0.45, "mmlu": 0.2}
    assert third.s_p == 0.3 and third.retention == 0.9 and first.scores[0].value == 0.5
    (tmp_path / FILE).write_text("{")
    assert read_preserved(tmp_path) == () and read_preserved(tmp_path / "none") == ()


def test_one_metric_stands_for_a_task() -> None:
    own = version(
        1,
        score("hellaswag", 0.1),
        score("hellaswag", 0.2, "acc_norm"),
        score("rte", 0.3),
        score("rte", 0.4, "f1"),
        score("edits", 0.9, "efficacy"),
    )
    assert {task: one.value for task, one in own.tasks().items()} == {"hellaswag": 0.2, "rte": 0.3}


def test_columns_and_curves_over_edits(tmp_path, make_run) -> None:
    cells = {}
    for group, growth in (("0", 0.2), ("1", 0.4)):
        directory = make_run(
            f"run{group}",
            {"base": {"reliability": 0.0}, "edited": {"reliability": 0.5}},
            settings={"stream.skip": int(group)},
            version="v2",
        )
        points = [("v0", 0, 0.0), ("v1", 10, 0.6), ("v2", 20, 0.5)]
        summary = directory / "summary.json"
        timeline = tuple(
            TimelinePoint(edits=edits, version=name, facts=2, arms={"edited": ArmMetrics(reliability=value)})
            for name, edits, value in points
        )
        write_summary(summary, read_summary(summary).model_copy(update={"timeline": timeline, "edits_applied": 20}))
        keep_preserved(
            directory,
            [
                version(0, score("rte", 0.55), score("perplexity:law", 12.0, "perplexity"), s_p=0.4),
                version(1, score("rte", 0.5), score("perplexity:law", 13.0, "perplexity"), s_p=0.35),
                version(
                    2,
                    score("rte", 0.45),
                    score("perplexity:law", 15.0, "perplexity"),
                    s_p=0.3,
                    retention=0.8,
                    uncertainty_growth=growth,
                ),
            ],
        )
        cells[f"run{group}"] = {"group": group}
    collection = collect([write_sweep_record(tmp_path, cells)])
    comparison = compare(collection)
    headings = [column.heading for column in comparison.columns]
    assert headings.index("PPL law") < headings.index("rte") < headings.index("S_p") < headings.index("ΔU")
    rows = {row.arm: row.figures for row in comparison.blocks[0].rows}
    assert rows["base"]["s_p"].mean == 0.4 and rows["edited"]["s_p"].mean == pytest.approx(0.3)
    assert rows["base"]["preserved:rte"].mean == pytest.approx(0.55)
    assert rows["edited"]["preserved:perplexity:law"].mean == pytest.approx(15.0)
    # groups are averaged, with the error over them (uncertainty, tables 3 and 4)
    growth = rows["edited"]["uncertainty_growth"]
    assert growth.mean == pytest.approx(0.3) and growth.error == pytest.approx(0.1) and growth.count == 2
    assert rows["edited"]["retention"].mean == pytest.approx(0.8) and "uncertainty_growth" not in rows["base"]
    assert "| 45.0 " in to_markdown(comparison) and "ΔU" in to_markdown(comparison)
    charts = [chart.title for panel in panels_of(comparison) for chart in panel.charts]
    assert any(title.startswith("S_p") for title in charts) and any(title.startswith("rte") for title in charts)
    by_edits = compare(at_points(collection))
    middle = next(block for block in by_edits.blocks if block.coordinates["edits"] == "10")
    edited = next(row for row in middle.rows if row.arm == "edited")
    assert edited.figures["s_p"].mean == pytest.approx(0.35) and "retention" not in edited.figures


def test_a_sweep_says_what_is_asked_of_its_runs(tmp_path: Path) -> None:
    asked = {"tasks": ["rte", "uncertainty"], "versions": ["v0", "timeline"], "limit": 5, "data": "benchmarks"}
    sweep = load_sweep(str(write_sweep(tmp_path, preserve=asked)))
    assert sweep.config.preserve is not None
    words = sweep.config.preserve.arguments(tmp_path / "run")
    assert words[:4] == ["v0", "timeline", "--run", str(tmp_path / "run")]
    assert words[words.index("--tasks") + 1] == "rte,uncertainty" and words[words.index("--limit") + 1] == "5"
    assert Path(words[words.index("--data") + 1]).is_absolute() and "--chat" not in words


def test_a_run_is_done_when_it_was_asked_what_the_sweep_asks_now(tmp_path: Path) -> None:
    one, other = PreserveConfig(tasks=("rte",)), PreserveConfig(tasks=("rte", "sst2"))
    assert is_preserved(tmp_path, None) and not is_preserved(tmp_path, one)
    note_preserved(tmp_path, one)
    assert is_preserved(tmp_path, one) and not is_preserved(tmp_path, other)
