"""The shipped stream keeps its promises: schema, counts, probes that no other edit in the file touches."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.quickstart_facts import Scored, criterion, score_targets
from errata.editing.request import EditRequest

STREAMS = Path(__file__).resolve().parents[3] / "configs" / "streams"
HELDOUT = STREAMS.parent / "text" / "heldout.txt"


@pytest.fixture(scope="module")
def requests() -> list[EditRequest]:
    lines = (STREAMS / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    return [EditRequest.model_validate_json(line) for line in lines]


def bare(name: str) -> str:
    return re.sub(r"^the ", "", name, flags=re.IGNORECASE).casefold()


def mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def test_enough_records_of_enough_relations(requests: list[EditRequest]) -> None:
    relations = Counter(request.relation for request in requests)
    assert len(requests) >= 125
    assert None not in relations
    assert len(relations) >= 10
    assert max(relations.values()) <= len(requests) // 5  # no relation dominates


def test_ids_are_unique_and_in_file_order(requests: list[EditRequest]) -> None:
    assert [request.id for request in requests] == [f"qs-{i:04d}" for i in range(1, len(requests) + 1)]


def test_relations_are_mixed(requests: list[EditRequest]) -> None:
    assert len({request.relation for request in requests[:40]}) >= 10


def test_each_fact_is_edited_once_and_really_changes(requests: list[EditRequest]) -> None:
    facts = Counter((request.subject, request.relation) for request in requests)
    assert [fact for fact, count in facts.items() if count > 1] == []
    for request in requests:
        assert request.target_true
        assert bare(request.target_new) != bare(request.target_true), request.id


def test_a_relation_has_several_new_targets(requests: list[EditRequest]) -> None:
    for relation in {request.relation for request in requests}:
        new = Counter(request.target_new for request in requests if request.relation == relation)
        assert max(new.values()) <= math.ceil(sum(new.values()) / 2), (relation, new)


def test_prompts_are_cloze_sentences_around_the_subject(requests: list[EditRequest]) -> None:
    for request in requests:
        assert request.prompt.count("{}") == 1, request.id
        assert len(request.paraphrases) == 2, request.id
        prompts = [request.text, *request.paraphrases]
        prompts += [probe.prompt for probe in (*request.neighborhood, *request.portability)]
        assert len(set(prompts)) == len(prompts), request.id
        for prompt in prompts:
            assert prompt == prompt.strip() and "{}" not in prompt, (request.id, prompt)
            assert prompt[0] == prompt[0].upper() and prompt[-1] not in ".?!", (request.id, prompt)
        for about in (*request.paraphrases, *(probe.prompt for probe in request.portability)):
            assert mentions(about, request.subject), (request.id, about)
        assert mentions(request.statement, request.subject) and mentions(request.statement, request.target_new)
        assert request.provenance is not None and request.provenance.why, request.id


def test_neighbors_are_three_and_never_edited(requests: list[EditRequest]) -> None:
    subjects = {request.subject for request in requests}
    for request in requests:
        assert len(request.neighborhood) == 3, request.id
        for probe in request.neighborhood:
            touched = [subject for subject in subjects if mentions(probe.prompt, subject)]
            assert touched == [], (request.id, probe.prompt)
            assert bare(probe.answer) != bare(request.target_new), (request.id, probe.prompt)


def test_most_records_ask_one_hop_and_no_hop_is_edited(requests: list[EditRequest]) -> None:
    edited = {bare(request.subject) for request in requests}
    assert 2 * sum(bool(request.portability) for request in requests) >= len(requests)
    for request in requests:
        assert bare(request.target_new) not in edited, request.id
        for probe in request.portability:
            assert edited.isdisjoint(bare(answer) for answer in probe.answers), request.id


def test_the_measurement_belongs_to_the_stream(requests: list[EditRequest]) -> None:
    known = json.loads((STREAMS / "quickstart_known.json").read_text(encoding="utf-8"))
    assert list(known["records"]) == [request.id for request in requests]
    assert re.fullmatch(r"[0-9a-f]{64}", known["model"]["digest"])
    for request in requests:
        row = known["records"][request.id]
        assert row["relation"] == request.relation
        assert row["criterion"] in ("strict", "loose"), request.id
        assert len(row["neighborhood_accuracy"]) == 3
        assert sum(accuracy == 1.0 for accuracy in row["neighborhood_accuracy"]) >= 2, request.id


def test_heldout_text_names_no_edited_subject(requests: list[EditRequest]) -> None:
    text = HELDOUT.read_text(encoding="utf-8")
    assert 2_500 <= len(text.split()) <= 3_200
    assert len(text.split("\n\n")) >= 15
    assert [request.subject for request in requests if mentions(text, request.subject)] == []


def test_scores_agree_with_probabilities_written_out() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    scored = score_targets(probabilities.log(), torch.tensor([1, 2]))
    assert scored.logprob == pytest.approx((math.log(0.3) + math.log(0.7)) / 2, abs=1e-6)
    assert scored.accuracy == 0.5
    assert scored.first_rank == 1


@pytest.mark.parametrize(
    ("true", "want"),
    [
        (Scored(-3.0, 1.0, 0), "strict"),
        (Scored(-3.0, 0.5, 4), "loose"),
        (Scored(-3.0, 0.5, 5), None),
        (Scored(-3.5, 0.5, 0), None),
    ],
)
def test_criterion(true: Scored, want: str | None) -> None:
    assert criterion(true, new=Scored(-5.0, 0.0, 100)) == want
