"""Fluency, fluency* and consistency of continuations that a model wrote."""

from __future__ import annotations

import pytest

from errata.editing.request import EditRequest
from errata.evaluation.free_text import FreeText, free_text_scores, free_texts, prompts_of
from errata.evaluation.metrics import TfIdf, consistency, fluency
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from tests.helpers.tiny import tiny_model


def test_texts_are_prompt_and_continuation_and_do_not_depend_on_company() -> None:
    engine = SamplingEngine(tiny_model(layers=2))
    requests = [EditRequest(id=n, subject=n, prompt="{} lies in", target_new="x") for n in ("Rome", "Paris")]
    short = SamplingConfig(top_k=5, max_new_tokens=8)
    found = free_texts(engine, prompts_of(requests), sampling=short)
    assert found["Rome"].texts[0].startswith("Rome lies in") and len(found["Rome"].logprobs) <= 8
    alone = free_texts(engine, {"Rome": ["Rome lies in"]}, sampling=short)
    assert alone["Rome"].texts == found["Rome"].texts
    assert free_texts(engine, {"Rome": ["Rome lies in"]}, sampling=short, seed=1)["Rome"].texts != alone["Rome"].texts


def test_scores_by_hand() -> None:
    edited = {
        "a": FreeText(("one two three one two three",), (-1.0, -3.0)),
        "b": FreeText(("red blue", "red"), (-2.0,)),
    }
    unedited = {"a": FreeText(("x",), (-4.0,)), "b": FreeText(("y",), (-4.0, -4.0))}
    found = free_text_scores(edited, unedited, references={"b": ["red red green"], "a": []})
    assert found.fluency_star == pytest.approx(2.0 / 4.0) and found.edits == 2
    assert found.fluency == pytest.approx(
        (fluency("one two three one two three") + (fluency("red blue") + fluency("red")) / 2) / 2
    )
    wanted = consistency(["red blue", "red"], ["red red green"], TfIdf(["red red green"]))
    assert wanted is not None and found.consistency == pytest.approx(wanted)


def test_what_cannot_be_measured_is_none() -> None:
    nothing = FreeText(("",), ())
    found = free_text_scores({"a": nothing}, {"a": nothing})
    assert found.fluency_star is None and found.consistency is None and found.fluency == 0
    assert free_text_scores({}, {}).fluency is None
