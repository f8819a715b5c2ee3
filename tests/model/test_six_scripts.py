"""A stream of facts in six scripts through edit, memory and evaluation, on a model that knows them all a little."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.limits import check_request
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig
from errata.evaluation.arms import ArmEvaluator
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.outcomes import Arm
from errata.evaluation.probes import questions_of
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.memory import FactMemory, MemoryEntry
from errata.retrieval.scr import SelectiveReasoner

STREAM = Path(__file__).parents[2] / "configs" / "streams" / "six_scripts.jsonl"
UNSPACED = ("chinese", "japanese", "thai")
STOPS = {"latin": ".", "chinese": "。", "japanese": "。", "arabic": ".", "hindi": "।", "thai": ""}


@pytest.fixture(scope="module")
def requests() -> list[EditRequest]:
    records = list(open_dataset(STREAM))
    assert all(isinstance(record, ValidRecord) for record in records)
    return [record.request.cleaned() for record in records if isinstance(record, ValidRecord)]


@pytest.fixture(scope="module")
def qwen() -> EditableModel:
    given = os.environ.get("ERRATA_REAL_MODELS")
    directory = Path(given) / "qwen2.5-coder-0.5b" if given else None
    if directory is None or not directory.is_dir():
        pytest.skip("set ERRATA_REAL_MODELS to a directory with qwen2.5-coder-0.5b")
    torch.set_num_threads(1)
    return load_model(str(directory))


def script_of(request: EditRequest) -> str:
    return request.id.partition("-")[0]


def test_requests_are_taken_as_their_script_writes(qwen: EditableModel, requests: list[EditRequest]) -> None:
    assert {script_of(request) for request in requests} == set(STOPS)
    for request in requests:
        check_request(request, qwen.text, qwen.capacity)
        begun = qwen.text.decode(qwen.text.encode_target(request.target_new))
        assert begun == ("" if script_of(request) in UNSPACED else " ") + request.target_new
        assert request.statement == f"{request.text}{begun}{STOPS[script_of(request)]}"
        assert all("{}" not in prompt and request.subject in prompt for prompt in request.paraphrases)


@pytest.mark.slow
def test_the_memory_chooses_the_fact_that_is_asked_about(qwen: EditableModel, requests: list[EditRequest]) -> None:
    """Before anything is edited: the next test leaves the model with its edits."""
    memory = FactMemory(HashEmbedder())
    memory.add(MemoryEntry.of(request, number) for number, request in enumerate(requests))
    reasoner = SelectiveReasoner(LanguageEngine(qwen), qwen.text, capacity=qwen.capacity)
    asked = [prompt for request in requests for prompt in (request.text, *request.paraphrases)]
    chosen = reasoner.choose(asked, memory.search(asked, 3))
    wanted = [request.id for request in requests for _ in (request.text, *request.paraphrases)]
    assert [choice.hit and choice.hit.request_id for choice in chosen] == wanted
    near = [neighbor.prompt for request in requests for neighbor in request.neighborhood]
    wrong = [choice for choice in reasoner.choose(near, memory.search(near, 3)) if choice.hit is not None]
    assert len(wrong) <= 2  # German and French capital in Chinese, Japanese and Thai one in Thai


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_they_go_through_edit_memory_and_evaluation(qwen: EditableModel, requests: list[EditRequest]) -> None:
    """Every optimization but one or two reaches its target; how far the weights carry it is for the tables to say."""
    layers = (5, 6)
    width = qwen.weight(layers[0]).shape[1]
    covariance = KeyCovariance({layer: torch.eye(width).double() * 20 for layer in layers}, 1000, {"kind": "identity"})
    values = ValueConfig(lr=0.5, steps=20, clamp=2.0, weight_decay=0.1)
    config = MemitConfig(layers=layers, cov_weight=1.0, values=values)
    session = EditSession(qwen, make_editor(config), covariance, ("",))
    receipt = session.apply(EditBatch(sequence=1, requests=tuple(requests)))
    assert [result.applied for result in receipt.results] == [True] * len(requests)
    reached = [request for request, result in zip(requests, receipt.results, strict=True) if result.loss < 0.5]
    assert len(reached) >= len(requests) - 2 and {script_of(request) for request in reached} == set(STOPS)
    memory = FactMemory(HashEmbedder())
    memory.add(MemoryEntry.of(request, number) for number, request in enumerate(requests))
    questions = questions_of(requests)
    hits = dict(zip(questions, memory.search(questions, 3), strict=True))
    assert [hits[request.text][0].request_id for request in requests] == [request.id for request in requests]
    reasoner = SelectiveReasoner(LanguageEngine(qwen), qwen.text, capacity=qwen.capacity)
    evaluator = ArmEvaluator(qwen, reasoner, max_new_tokens=4)
    asked: tuple[Arm, ...] = ("base", "edited", "memory", "edited_memory")
    found = evaluator.evaluate(requests, base=session.base, edited=session.weights(), hits=hits, arms=asked)
    assert found.skipped == 0 and [record.request_id for record in found.records] == [r.id for r in requests]
    assert all(set(probe.arms) == set(asked) for record in found.records for probe in record.probes)
