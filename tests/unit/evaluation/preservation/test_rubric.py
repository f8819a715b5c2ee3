"""Scores from 0 to 5 by a chat model that stands in for one, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from errata.editing.errors import UserError
from errata.editing.request import EditRequest, NeighborhoodProbe
from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig
from errata.evaluation.preservation.battery import scores_of
from errata.evaluation.preservation.rubric import RubricSuite, falls, read_score
from errata.evaluation.preservation.suites import BatteryConfig, SpuqSuite, build_suites
from errata.evaluation.sampling import SamplingEngine
from errata.evaluation.uncertainty import SpuqConfig
from errata.orchestrator.measuring.preserve import Asked, preserve, report_lines
from tests.helpers.tiny import tiny_model

NEAR = tuple(NeighborhoodProbe(prompt=f"{name} lies in", answer="Italy") for name in ("Canada", "Africa", "Paris"))
REQUESTS = [
    EditRequest(id=name, subject=name, prompt="{} lies in", target_new="France", neighborhood=near)
    for name, near in (("Rome", NEAR), ("Angola", NEAR[:1]), ("Italy", ()))
]
CONFIG = EndpointConfig(base_url="http://judge/v1", model="m", parallel=1)


def suite(replies: dict[str, str], seen: list[str]) -> RubricSuite:
    def handle(request: httpx.Request) -> httpx.Response:
        told = json.loads(request.content)["messages"][-1]["content"]
        seen.append(told)
        question = told.split("\n")[0].removeprefix("Text: ")
        return httpx.Response(200, json={"choices": [{"message": {"content": replies.get(question, "no number")}}]})

    return RubricSuite(REQUESTS, CONFIG, endpoint=ChatEndpoint(CONFIG, transport=httpx.MockTransport(handle)))


@pytest.mark.parametrize(
    ("reply", "score"),
    [("4", 4), ("Score: 3.", None), ("I think 2, no: 5", 5), ("10", None), ("6", None), ("", None), ("a 0 b", 0)],
)
def test_a_reply_is_read_to_its_last_lone_digit(reply: str, score: int | None) -> None:
    assert read_score(reply) == score


def test_own_question_and_two_neighbors_are_scored() -> None:
    seen: list[str] = []
    replies = {"Rome lies in": "5", "Canada lies in": "4", "Africa lies in": "1", "Angola lies in": "2"}
    own = suite(replies, seen)
    outcomes = own.run(SamplingEngine(tiny_model(layers=2)), own.items)
    # one of six is another's neighbor too, with the same continuation: it is asked once
    assert len(seen) == 5 and all("Reference answer: " in one for one in seen)
    assert outcomes == {"primary": [5, 2, None], "neighborhood": [2.5, 4.0, None]}
    values = {score.metric: score.value for score in scores_of(own, outcomes)}
    assert values == {"primary": pytest.approx(3.5), "neighborhood": pytest.approx(3.25)}
    # one edit alone gives what it gives among others, and another judge is another suite
    assert own.run(SamplingEngine(tiny_model(layers=2)), own.items[1:2]) == {"primary": [2], "neighborhood": [4.0]}
    other = RubricSuite(REQUESTS, CONFIG.model_copy(update={"model": "n"}))
    assert other.fingerprint != own.fingerprint == RubricSuite(REQUESTS, CONFIG).fingerprint


def test_a_fall_takes_both_times() -> None:
    before = {"primary": [5, 4, None], "neighborhood": [3.0, None, 2.0]}
    after = {"primary": [2, 4, None], "neighborhood": [2.0, None, None]}
    assert falls(before, after) == [2.0, 0.0, None]


def test_the_fall_is_correlated_with_the_growth_edit_by_edit(tmp_path: Path) -> None:
    requests = [REQUESTS[2].model_copy(update={"id": str(i)}) for i in range(5)]
    fall, before, after = [0, 1, 3, 2, 4], [1.0, 2.0, 1.0, 1.0, 2.0], [1.1, 2.6, 1.5, 1.2, 5.0]
    growths = [(b - a) / a for a, b in zip(before, after, strict=True)]
    ranks = [np.argsort(np.argsort(values)) for values in (fall, growths)]
    want = np.corrcoef(*ranks)[0, 1]
    v0, v1 = Asked(0, "a" * 64), Asked(1, "b" * 64)
    suites = {
        "rubric": RubricSuite(requests, CONFIG),
        "uncertainty": SpuqSuite(requests, None, SpuqConfig(), embedder={"type": "hash"}),
    }

    def ask(name: str, items: object, version: str, weights: object) -> dict[str, list[float | None]]:
        edited = version == v1.digest
        if name == "rubric":
            return {"primary": [5 - f if edited else 5 for f in fall], "neighborhood": [None] * 5}
        total = after if edited else before
        return {"aleatoric": total, "epistemic": total, "total": total}

    report = preserve(tmp_path, [v0, v1], suites, ask, lambda _: {})
    assert report.comparisons[0].rubric_correlation == pytest.approx(want)
    assert f"Spearman {want:+.3f} over the edits" in "\n".join(report_lines(report))


def test_it_needs_a_chat_model() -> None:
    with pytest.raises(UserError, match="--judge-url URL --judge-model NAME"):
        build_suites(BatteryConfig(tasks=("rubric",)), requests=REQUESTS)
