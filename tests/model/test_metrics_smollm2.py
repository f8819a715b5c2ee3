"""Metrics and arms on the real small model: batched and padded equals one by one, and the numbers stay
put."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.edit_scores import edit_scores, mean_scores
from errata.evaluation.metrics import token_accuracy
from errata.evaluation.outcomes import arm_metrics
from tests.unit.evaluation.fakes import FakeHit, KeywordChooser

# SmolLM2-135M-Instruct in float32, unedited, first 50 records of the CounterFact sample with two
# neighborhood
# prompts each; all metrics in version 1. A change of these numbers is a change of meaning: raise the version.
GOLDEN = {
    "efficacy_score": 0.2,
    "paraphrase_score": 0.18,
    "neighborhood_score": 0.76,
    "neighborhood_score_argmax": 0.0,
    "efficacy": 0.07,
    "generalization": 0.05,
    "specificity": 0.09,
}
# a near tie may fall the other way on another machine: half of one record's score
TOLERANCE = 0.5 / 50 + 1e-6


@pytest.fixture(scope="module")
def requests(shared_data: Path) -> list[EditRequest]:
    found = open_dataset(shared_data / "counterfact/counterfact.json", limit=50)
    return [
        record.request.model_copy(update={"neighborhood": record.request.neighborhood[:1]})
        for record in found
        if isinstance(record, ValidRecord)
    ]


def test_golden_scores(model: EditableModel, requests: list[EditRequest]) -> None:
    found = mean_scores(edit_scores(LanguageEngine(model), model.text, requests))
    assert found == pytest.approx(GOLDEN, abs=TOLERANCE)


def library_pass(model: EditableModel, prompt: list[int], target: list[int]) -> list[bool]:
    """Which target tokens are the argmax, by one unpadded pass of the library's own model."""
    with torch.no_grad():
        predicted = model.decoder.model(torch.tensor([prompt + target])).logits[0].argmax(-1).tolist()
    return [a == b for a, b in zip(predicted[len(prompt) - 1 : -1], target, strict=True)]


def test_arms_equal_one_by_one_evaluation(model: EditableModel, requests: list[EditRequest]) -> None:
    some = requests[:3]
    chooser = KeywordChooser(model.text)
    hits = {request.text: [FakeHit(n, 0.9, request.statement)] for n, request in enumerate(some)}
    base = model.weights((5,))
    noise = torch.randn(base[5].shape, generator=torch.Generator().manual_seed(0)) * base[5].std()
    edited = {5: base[5] + noise}
    got = ArmEvaluator(model, chooser, max_new_tokens=8).evaluate(some, base=base, edited=edited, hits=hits)
    informed = 0
    for arm, weights in (("base", base), ("edited", edited), ("memory", base), ("edited_memory", edited)):
        model.set_weights(weights)
        for record in got.records:
            for result in record.probes:
                (choice,) = chooser.choose([result.probe.prompt], [hits.get(result.probe.prompt, [])])
                if "memory" not in arm or choice.hit is None:
                    prompt = model.text.encode_prompt(result.probe.prompt)
                else:
                    prompt = chooser.prompt_ids(result.probe.prompt, choice)
                    informed += 1
                assert result.probe.teacher is not None
                want = token_accuracy(library_pass(model, prompt, model.text.encode_target(result.probe.teacher)))
                assert result.arms[arm].accuracy == pytest.approx(want)  # type: ignore[index]
    model.set_weights(base)
    assert informed == 2 * len(some)  # the edit prompts, in both arms with memory
    metrics = {arm: arm_metrics(got.records, arm) for arm in got.arms}
    assert metrics["base"]["locality"] == metrics["memory"]["locality"] == 1.0
    assert (metrics["memory"]["efficacy"] or 0) > (metrics["base"]["efficacy"] or 0)
    # the statement in front of the prompt is read: the model repeats its object
    assert (metrics["memory"]["reliability"] or 0) > (metrics["base"]["reliability"] or 0)
