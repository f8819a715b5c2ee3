"""summary.json and facts.jsonl: closed, atomic, null for what was not measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.evaluation.outcomes import ARMS
from errata.orchestrator.report.summary import (
    ArmMetrics,
    ChoiceRates,
    FactRecord,
    Failure,
    ModelName,
    Perplexity,
    ProbeAnswer,
    ProbeRecord,
    RefreshEvent,
    Stages,
    Summary,
    TimelinePoint,
    read_facts,
    read_summary,
    write_facts,
    write_summary,
)


def make_summary() -> Summary:
    arms = {arm: ArmMetrics(efficacy=0.5, query_seconds=0.25) for arm in ARMS}
    return Summary(
        name="demo",
        errata_version="0.1.0",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        finished_at=datetime(2026, 1, 1, 0, 8, tzinfo=UTC),
        config_digest="c" * 64,
        model=ModelName(name="tiny", digest="d" * 64),
        editor="alphaedit",
        edits_applied=3,
        edits_failed=1,
        batches=2,
        refreshes=1,
        version="e" * 64,
        wall_seconds=480.0,
        edit_seconds_per_edit=1.5,
        arms=arms,
        choice={"memory": ChoiceRates(none_in_scope=0.1, none_out_of_scope=0.9)},
        perplexity=Perplexity(base=40.2, edited=float("inf")),
        timeline=(TimelinePoint(edits=3, version="e" * 64, facts=3, arms=arms, norms={"4": 7.5}),),
        refresh_events=(
            RefreshEvent(triggered_at=1, swapped_at=2, tokens=4096, digest="f" * 64, source_version="a" * 64),
        ),
        failures=(Failure(id="x", reason="subject not found"),),
        stages=Stages(covariance_seconds=60.0),
    )


def test_a_summary_comes_back_as_it_was(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, make_summary())
    assert read_summary(path) == make_summary()
    raw = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert raw["perplexity"] == {"base": 40.2, "edited": None}
    assert raw["arms"]["memory"]["locality"] is None
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_the_names_are_those_that_are_promised():
    arm = {
        "efficacy", "generalization", "specificity", "reliability", "generalization_gen", "locality",
        "locality_match", "portability", "specificity_exact", "locality_tf", "locality_true", "average_true", "overall",
        "reliability_f1", "generalization_f1", "portability_f1", "fluency", "fluency_star", "consistency", "edit_score",
        "query_seconds",
    }  # fmt: skip
    assert set(ArmMetrics.model_fields) == arm
    assert set(ARMS) == {"routed", "base", "edited", "memory", "edited_memory"}
    assert {
        "edits_applied", "edits_failed", "batches", "refreshes", "version", "wall_seconds", "arms",
        "edit_seconds_per_edit", "choice", "perplexity", "timeline", "refresh_events", "failures",
    } <= set(Summary.model_fields)  # fmt: skip


def test_unknown_fields_and_arms_are_refused():
    with pytest.raises(ValidationError, match="efficcy"):
        ArmMetrics.model_validate({"efficcy": 1.0})
    with pytest.raises(ValidationError, match="oracle"):
        TimelinePoint.model_validate({"edits": 1, "version": "v", "facts": 1, "arms": {"oracle": {}}})


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_summary(path, make_summary())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.orchestrator.report.summary.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_summary(path, make_summary().model_copy(update={"name": "other"}))
    assert read_summary(path).name == "demo"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_facts_come_back_line_by_line(tmp_path):
    answer = ProbeAnswer(answer='he said "Lyon"\n\u2028', ok=True, accuracy=float("nan"), chosen=None)
    probe = ProbeRecord(kind="edit", prompt="The capital of France is", expected=("Lyon",), arms={"edited": answer})
    fact = FactRecord(
        id="a",
        subject="France",
        prompt="The capital of {} is",
        target_new="Lyon",
        sequence=1,
        probes=(probe,),
    )
    path = tmp_path / "facts.jsonl"
    write_facts(path, [fact, fact.model_copy(update={"id": "b"})])
    first, second = read_facts(path)
    assert (first.id, second.id) == ("a", "b")
    assert first.probes[0].arms["edited"].answer == 'he said "Lyon"\n\u2028'
    assert first.probes[0].arms["edited"].accuracy is None


def test_what_cannot_be_read_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_summary(tmp_path / "absent.json")
    (tmp_path / "s.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"s\.json is not a run's summary: errata_version"):
        read_summary(tmp_path / "s.json")
    (tmp_path / "f.jsonl").write_text("\n{}\n")
    with pytest.raises(UserError, match=r"f\.jsonl:2: not a fact"):
        list(read_facts(tmp_path / "f.jsonl"))
