"""From single outcomes to reported numbers, worked out by hand."""

from __future__ import annotations

import json

import pytest

from errata.editing.request import EditRequest
from errata.evaluation.outcomes import (
    ProbeOutcome,
    ProbeResult,
    RecordResult,
    Retrieved,
    arm_metrics,
    choice_rates,
    fact_line,
    forgetting_curve,
    locality_match_ratio_of,
    portability_by_kind,
)
from errata.evaluation.probes import Probe, ProbeKind, probes_of, questions_of


def result(
    kind: ProbeKind, accuracy: float | None, ok: bool, detail: str = "", chosen: str | None = None
) -> ProbeResult:
    probe = Probe(kind, f"{kind} {accuracy} {ok} {detail}", ("x",), "x", detail)
    outcome = ProbeOutcome(
        "x",
        ok,
        accuracy,
        1.0 if ok else 0.25,
        chosen,
        "why",
        (Retrieved(3, 0.51234, "s"),),
        right=ok != (kind == "neighborhood"),
        f1=1.0 if ok else 0.5,
        exact=None if accuracy is None else accuracy == 1.0,
        agreement=0.75 if kind == "neighborhood" else None,
    )
    return ProbeResult(probe, {"memory": outcome})


RECORDS = [
    RecordResult(
        "a",
        (
            result("edit", 1.0, True, chosen="s"),
            result("paraphrase", 0.5, False, chosen="s"),
            result("paraphrase", 1.0, True),
            result("neighborhood", 0.0, True),
            result("portability", None, True, "one_hop"),
            result("portability", 0.0, False, "inverse"),
        ),
    ),
    RecordResult(
        "b",
        (
            result("edit", 0.5, False),
            result("paraphrase", 0.0, False),
            result("neighborhood", 1.0, False, chosen="s"),
        ),
    ),
]


def test_arm_metrics_weigh_records_alike() -> None:
    assert arm_metrics(RECORDS, "memory", query_seconds=0.1) == {
        "efficacy": pytest.approx((1.0 + 0.5) / 2),
        "generalization": pytest.approx((0.75 + 0.0) / 2),  # over probes it would be 0.5
        "specificity": pytest.approx(0.5),
        "specificity_exact": pytest.approx((0 + 1) / 2),
        "locality_tf": pytest.approx(0.75),
        "reliability": pytest.approx(0.5),
        "generalization_gen": pytest.approx((0.5 + 0.0) / 2),
        "locality": pytest.approx(0.5),
        "locality_match": pytest.approx((1.0 + 0.25) / 2),
        "locality_true": pytest.approx((0 + 1) / 2),  # a's answer is the base's and false, b's is another and true
        "portability": pytest.approx(0.5),  # record b has no such probe and is left out
        "average_true": pytest.approx((0.5 + 0.25 + 0.5 + 0.5) / 4),
        "overall": pytest.approx((0.5 + 0.25 + 0.5) / 3),
        "reliability_f1": pytest.approx((1.0 + 0.5) / 2),
        "generalization_f1": pytest.approx((0.75 + 0.5) / 2),
        "portability_f1": pytest.approx((1.0 + 0.5) / 2),
        "query_seconds": 0.1,
    }
    assert set(arm_metrics([], "memory").values()) == {None}
    assert set(arm_metrics(RECORDS, "base").values()) == {None}


def test_further_numbers() -> None:
    assert portability_by_kind(RECORDS, "memory") == {"inverse": 0.0, "one_hop": 1.0}
    assert locality_match_ratio_of(RECORDS, "memory") == pytest.approx((1.0 + 0.25) / 2)
    # in scope 7 questions, 2 with a statement; out of scope 2, 1 with one
    assert choice_rates(RECORDS, "memory") == {
        "none_in_scope": pytest.approx(5 / 7),
        "none_out_of_scope": 0.5,
    }
    assert choice_rates(RECORDS, "edited_memory") == {"none_in_scope": None, "none_out_of_scope": None}


def test_forgetting_curve() -> None:
    records = [RecordResult(str(n), (result("edit", float(n > 3), True),)) for n in range(1, 7)]
    sequences = {str(n): n for n in range(1, 7)}
    curve = forgetting_curve(records, sequences, 6, lambda part: arm_metrics(part, "memory")["efficacy"], bins=3)
    assert [(b.youngest, b.oldest, b.records, b.value) for b in curve] == [
        (0, 1, 2, 1.0),
        (2, 3, 2, 0.5),
        (4, 5, 2, 0.0),
    ]
    assert sum(b.records for b in forgetting_curve(records, sequences, 6, lambda part: None, bins=4)) == 6
    assert len(forgetting_curve(records, sequences, 6, lambda part: None, bins=99)) == 6
    assert forgetting_curve([], {}, 0, lambda part: None) == []
    with pytest.raises(ValueError, match="bins"):
        forgetting_curve(records, sequences, 6, lambda part: None, bins=0)


def test_probes_and_questions() -> None:
    request = EditRequest.model_validate(
        {
            "subject": "Ann",
            "prompt": "{} lives in",
            "target_new": "Rome",
            "paraphrases": ["Ann's home is", "Ann lives in"],
            "neighborhood": [{"prompt": "Bo lives in", "answer": "Oslo"}],
            "portability": [{"prompt": "Ann's country is", "answers": ["Italy", "IT"], "kind": "two_hop"}],
        }
    )
    assert [(p.kind, p.prompt, p.expected, p.teacher, p.detail, p.in_scope) for p in probes_of(request)] == [
        ("edit", "Ann lives in", ("Rome",), "Rome", "", True),
        ("paraphrase", "Ann's home is", ("Rome",), "Rome", "", True),
        ("paraphrase", "Ann lives in", ("Rome",), "Rome", "", True),
        ("neighborhood", "Bo lives in", ("Oslo",), "Oslo", "", False),
        ("portability", "Ann's country is", ("Italy", "IT"), "Italy", "two_hop", True),
    ]
    assert questions_of([request, request]) == [
        "Ann lives in",
        "Ann's home is",
        "Bo lives in",
        "Ann's country is",
    ]


def test_fact_line_is_json_with_the_documented_fields() -> None:
    request = EditRequest(id="a", subject="Ann", prompt="{} lives in", target_new="Rome", relation="home")
    line = json.loads(json.dumps(fact_line(request, 4, RECORDS[0])))
    assert {key: line[key] for key in ("id", "subject", "prompt", "target_new", "target_true", "relation")} == {
        "id": "a",
        "subject": "Ann",
        "prompt": "Ann lives in",
        "target_new": "Rome",
        "target_true": None,
        "relation": "home",
    }
    assert line["sequence"] == 4
    assert line["probes"][0] == {
        "kind": "edit",
        "prompt": "edit 1.0 True ",
        "expected": ["x"],
        "arms": {
            "memory": {
                "answer": "x",
                "ok": True,
                "right": True,
                "f1": 1.0,
                "accuracy": 1.0,
                "exact": True,
                "agreement": None,
                "chosen": "s",
                "reason": "why",
                "retrieved": [{"id": 3, "score": 0.5123, "statement": "s"}],
            }
        },
    }
