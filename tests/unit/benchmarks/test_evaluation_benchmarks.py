"""The benchmarks of the evaluation and of the memory on a tiny model."""

from __future__ import annotations

import pytest

from benchmarks import evaluation_throughput, memory_cost
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.evaluation.probes import probes_of
from errata.retrieval.embedder import HashEmbedder
from tests.helpers.tiny import tiny_model


def request(subject: str, prompt: str, target: str, paraphrase: str, other: str) -> EditRequest:
    return EditRequest.model_validate(
        {
            "subject": subject,
            "prompt": prompt,
            "target_new": target,
            "paraphrases": [paraphrase],
            "neighborhood": [{"prompt": other, "answer": "Italy"}],
        }
    )


REQUESTS = [
    request("Danielle Darrieux", "The mother tongue of {} is", "Italy yes", "Danielle Darrieux speaks", "Rome is in"),
    request("Angola", "{} is located in", "Canada", "Angola lies in", "The mother tongue of Alice Munro is"),
]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama")


def test_every_answer_is_compared_before_a_ratio_is_given(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = evaluation_throughput.ASKED
    result = evaluation_throughput.measure(model, REQUESTS, 2, layers=(1,))
    assert result["asked_one_by_one"] == result["questions"] == len(arms) * sum(len(probes_of(r)) for r in REQUESTS)
    assert result["ratio"] == result["one_by_one_seconds_per_fact"] / result["seconds_per_fact"]
    asked = evaluation_throughput.OneByOne.ask
    monkeypatch.setattr(evaluation_throughput.OneByOne, "ask", lambda *given: (asked(*given)[0] + "x", 0.0))
    with pytest.raises(AssertionError, match="in a batch"):
        evaluation_throughput.measure(model, REQUESTS, 1, layers=(1,))


def test_the_memory_is_measured_by_size_and_by_statements_considered(model: EditableModel) -> None:
    result = memory_cost.measure(model, HashEmbedder(), REQUESTS, (2, 40), (1, 3), alone=1, asked=2)
    rows = {(row["statements"], row["k"]): row for row in result["rows"]}
    assert set(rows) == {(2, 1), (2, 3), (40, 1), (40, 3)}
    for row in rows.values():
        assert row["questions"] == sum(len(probes_of(r)) for r in REQUESTS)
        assert all(row[stage] > 0 for stage in ("embed", "search", "choose", "answer", "total"))
    assert result["plain_seconds"] > 0


def test_other_statements_are_about_others() -> None:
    entries = memory_cost.others(9000, 7)
    assert len({entry.fact_key for entry in entries}) == 9000 and entries[0].id == 7
    assert all(entry.subject in entry.statement for entry in entries)
    vectors = memory_cost.vectors_of(entries[:20], HashEmbedder(dim=16))
    assert vectors.shape == (20, 16)
