"""The judge as part of a run's configuration, and verdicts put on an evaluation's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.evaluation.arms import Evaluation
from errata.evaluation.datasets import counterfact
from errata.evaluation.judge import Case, build_judge, judge_name
from errata.evaluation.judged import judged
from errata.evaluation.outcomes import ProbeOutcome, ProbeResult, RecordResult
from errata.evaluation.probes import Probe
from errata.orchestrator.config.evaluation import EvaluationConfig, FreeTextConfig
from errata.orchestrator.config.loading import check_config
from errata.orchestrator.config.run import identity_of
from errata.orchestrator.measuring.free import FreeTexts, with_edit_score
from errata.orchestrator.measuring.measurer import run_judge

LLM = {"type": "llm", "endpoint": {"base_url": "http://judge/v1", "model": "m"}}


def whole(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"name": "m"},
        "editor": {"type": "memit", "layers": [0]},
        "stream": {"path": "s.jsonl"},
        "covariance": {"source": "identity"},
        "evaluation": evaluation,
    }


@pytest.mark.parametrize(
    ("given", "name"),
    [("contains", "contains"), ("exact", "exact"), ("f1", "f1>=0.5"), ({"type": "f1", "threshold": 0.8}, "f1>=0.8"),
     (LLM, "llm:m")],
)  # fmt: skip
def test_a_judge_by_name_or_with_settings(given: object, name: str) -> None:
    config = EvaluationConfig.model_validate({"judge": given})
    assert judge_name(config.judge) == name == build_judge(config.judge).name
    assert (run_judge(config.judge) is None) == (name == "contains")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"judge": "llm"}, "evaluation.judge"),
        ({"judge": "oracle"}, "oracle"),
        ({"final": 0}, "evaluation.final"),
        ({"final": "some"}, "evaluation.final"),
        ({"reasoning": {}}, "stop_at_newline"),
        ({"free_text": {"references": "r.json"}}, "openings"),
    ],
)
def test_what_does_not_fit_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_config(whole(given))
    assert "\n" not in str(caught.value)


def test_a_run_without_them_is_the_run_it_was() -> None:
    """Digests of runs and sweeps' cells of older releases stay what they were."""
    now = check_config(whole({})).dump()
    before = {k: v for k, v in now["evaluation"].items() if k not in ("judge", "reasoning", "final", "free_text")}
    assert identity_of(now) == identity_of({**now, "evaluation": before})
    for change in ({"judge": "exact"}, {"final": 5}, {"free_text": {}}):
        assert identity_of(check_config(whole(change)).dump()) != identity_of(now)


class Oracle:
    """Finds right what ends in an exclamation mark; remembers what it was asked."""

    name = "oracle"

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        self.cases += cases
        return [case.answer.endswith("!") for case in cases]


def test_verdicts_are_put_on_answers_and_locality_stays_agreement() -> None:
    def result(kind: Any, base: str, edited: str) -> ProbeResult:
        probe = Probe(kind, f"{kind}?", ("x",))
        ok = kind == "neighborhood" and base == edited
        return ProbeResult(
            probe, {"base": ProbeOutcome(base, True, None, 1.0), "edited": ProbeOutcome(edited, ok, None, 1.0)}
        )

    one = RecordResult("a", (result("edit", "no", "yes!"), result("neighborhood", "old", "true!")))
    two = RecordResult("b", (result("edit", "no", "no"), result("neighborhood", "old", "old")))
    oracle = Oracle()
    found = judged(Evaluation((one, two), ("base", "edited"), 0.0), oracle).metrics()
    assert found["edited"]["reliability"] == 0.5 and found["base"]["reliability"] == 0.0
    assert found["edited"]["locality"] == 0.5 and found["base"]["locality"] == 1.0
    assert found["edited"]["locality_true"] == 0.5 and found["base"]["locality_true"] == 0.0
    assert len(oracle.cases) == len({(case.question, case.answer) for case in oracle.cases}) == 4


RECORDS = [
    {
        "case_id": 7,
        "requested_rewrite": {"relation_id": "P19", "target_new": {"str": "Rome", "id": "Q220"}},
        "generation_prompts": ["Ann's friends", "Ann's friends", "Where Ann lives,"],
    },
    {"case_id": 8, "requested_rewrite": {"relation_id": "P19", "target_new": {"str": "Oslo", "id": "Q585"}}},
]
SNIPPETS = [{"relation_id": "P19", "target_id": "Q220", "samples": [{"name": "Bo", "text": "Bo was born in Rome."}]}]


def test_openings_and_references_in_romes_layout(tmp_path: Path) -> None:
    assert counterfact.openings(RECORDS) == {"cf-7": ["Ann's friends", "Ann's friends", "Where Ann lives,"]}
    assert counterfact.references(RECORDS, SNIPPETS) == {"cf-7": ["Bo was born in Rome."]}
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"subject": "Ann"}\n')
    with pytest.raises(UserError, match="holds no generation_prompts"):
        FreeTexts(FreeTextConfig(openings=str(plain)))
    with pytest.raises(UserError, match=r"free_text\.openings: .*does not exist"):
        FreeTexts(FreeTextConfig(openings=str(tmp_path / "none.json")))


def test_s_e_only_where_all_of_its_parts_are_there() -> None:
    parts: dict[str, float | None] = {
        "efficacy": 1.0, "generalization": 0.5, "specificity_exact": 0.5, "fluency_star": 1.0, "portability": 0.25,
    }  # fmt: skip
    assert with_edit_score(parts)["edit_score"] == pytest.approx(5 / (1 + 2 + 2 + 1 + 4))
    assert with_edit_score({**parts, "portability": None})["edit_score"] is None
