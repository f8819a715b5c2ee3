"""Self-generation: the fused keys against a second pass over what was sampled, and what decides a unit's result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editing.errors import UserError
from errata.editing.estimation import selfgen
from errata.editing.estimation.selfgen import SelfGenerationConfig, UnitResult, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from tests.helpers.tiny import tiny_model
from tests.unit.helpers import plain

LAYERS = (0, 2)


def config(**given: Any) -> SelfGenerationConfig:
    return SelfGenerationConfig(**({"max_new_tokens": 7, "sequences_per_unit": 6, "slots": 4} | given))


class Spy(selfgen._Sequence):
    """A sequence that remembers its seeds and the tokens it took."""

    made: list[Spy]

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(seeds)
        self.seeds, self.taken = list(seeds), []
        type(self).made.append(self)

    def take(self, token: int, loss: float, stops: frozenset[int], limit: int) -> bool:
        before = self.sampled
        ended = super().take(token, loss, stops, limit)
        if self.sampled > before:
            self.taken.append(token)
        return ended


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    Spy.made = []
    monkeypatch.setattr(selfgen, "_Sequence", Spy)
    return Spy


def second_pass(model: EditableModel, made: list[Spy], layer: int) -> torch.Tensor:
    """Sum of k k^T over the sampled tokens by running every sequence once more, whole and alone."""
    total = torch.zeros(48, 48, dtype=torch.float64)
    for sequence in made:
        ids = sequence.seeds + sequence.taken
        keys = plain.read(model, plain.edited_map(model, layer), ids, "in")[len(sequence.seeds) :].double()
        total += keys.T @ keys
    return total


@pytest.mark.parametrize(
    "family, given",
    [
        ("llama", {}),
        ("llama", {"seed_tokens": 3, "slots": 2}),
        ("mistral", {"max_new_tokens": 10}),  # beyond its window
        ("gpt2", {"slots": 1}),
        ("gemma3_text", {"slots": 16}),
        ("llama", {"seed_mode": "bos"}),
    ],
)
def test_fused_keys_equal_a_second_pass(tiny: Any, spy: type[Spy], family: str, given: dict[str, Any]) -> None:
    model = tiny(family)
    # many tokens end a sequence, so that slots fall free at different times
    model.text.eos_ids, kept = frozenset(range(0, 400, 4)), model.text.eos_ids
    try:
        result = run_unit(model, unit_of(3, seed=1, sequences=9), LAYERS, config(**given))
    finally:
        model.text.eos_ids = kept
    assert len(spy.made) == 9
    assert len({len(sequence.taken) for sequence in spy.made}) > 1, "sequences of several lengths"
    assert result.tokens == sum(len(sequence.taken) for sequence in spy.made) > 0
    for layer in LAYERS:
        want = second_pass(model, spy.made, layer)
        assert float((result.sums[layer] - want).norm()) <= 1e-5 * float(want.norm())
        assert result.sums[layer].dtype == torch.float64
    limit = config(**given).max_new_tokens
    for sequence in spy.made:
        assert len(sequence.taken) <= limit
        assert not any(token % 4 == 0 for token in sequence.taken), "an end token is not part of a sequence"


def test_documents_hold_each_sequences_likelihood(llama: EditableModel, spy: type[Spy]) -> None:
    result = run_unit(llama, unit_of(0, seed=2, sequences=5), LAYERS, config())
    want = {}
    for sequence in spy.made:
        with torch.no_grad():
            scores = plain.logits(llama, sequence.seeds + sequence.taken).double().log_softmax(dim=-1)
        first = len(sequence.seeds) - 1
        nll = -sum(float(scores[first + i, token]) for i, token in enumerate(sequence.taken))
        want[round(nll, 2)] = len(sequence.taken)
    assert {round(nll, 2): count for nll, count in result.documents} == want


def test_without_layers_the_tokens_are_counted_all_the_same(llama: EditableModel) -> None:
    unit = unit_of(0, seed=2, sequences=5)
    bare, full = run_unit(llama, unit, (), config()), run_unit(llama, unit, LAYERS, config())
    assert bare.tokens == full.tokens > 0 and bare.documents == full.documents and bare.sums == {}


def same(a: UnitResult, b: UnitResult) -> bool:
    return (
        a.tokens == b.tokens
        and a.documents == b.documents
        and all(torch.equal(a.sums[layer], b.sums[layer]) for layer in LAYERS)
    )


def test_a_unit_is_decided_by_itself() -> None:
    """Same bytes on another copy of the model, whatever ran before; another id or seed gives something else."""
    first, second = tiny_model("llama", layers=3), tiny_model("llama", layers=3)
    unit = unit_of(5, seed=1, sequences=6)
    result = run_unit(first, unit, LAYERS, config())
    torch.manual_seed(99)
    run_unit(second, unit_of(4, seed=1, sequences=3), LAYERS, config())
    assert same(run_unit(second, unit, LAYERS, config()), result)
    for other in (unit_of(6, seed=1, sequences=6), unit_of(5, seed=2, sequences=6)):
        assert not same(run_unit(first, other, LAYERS, config()), result)


def test_units_have_different_seeds() -> None:
    seeds = {unit_of(i, seed=s, sequences=1).seed for i in range(200) for s in range(3)}
    assert len(seeds) == 600 and all(0 <= seed < 2**63 for seed in seeds)


def test_every_seed_is_used_whatever_the_number_of_slots(llama: EditableModel, spy: type[Spy]) -> None:
    unit, started = unit_of(0, seed=3, sequences=7), []
    for slots in (1, 3, 16):
        spy.made = []
        result = run_unit(llama, unit, LAYERS, config(slots=slots))
        started.append([tuple(sequence.seeds) for sequence in spy.made])
        assert len(result.documents) == 7
    assert started[0] == started[1] == started[2]


def test_seeds_are_uniform_tokens_or_the_beginning(spy: type[Spy], llama: EditableModel) -> None:
    run_unit(llama, unit_of(0, seed=0, sequences=400), (), config(max_new_tokens=1, slots=400))
    drawn = [sequence.seeds[0] for sequence in spy.made]
    vocabulary = llama.hf.config.vocab_size
    assert all(len(sequence.seeds) == 1 for sequence in spy.made)
    assert 0 <= min(drawn) < vocabulary / 10 and 9 * vocabulary / 10 < max(drawn) < vocabulary
    assert len(set(drawn)) > 200
    spy.made = []
    run_unit(llama, unit_of(0, seed=0, sequences=3), (), config(seed_mode="bos"))
    assert [sequence.seeds for sequence in spy.made] == [[llama.text.tokenizer.eos_token_id]] * 3


def test_a_model_that_ends_at_once_yields_no_keys(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.text, "eos_ids", frozenset(range(400)))
    result = run_unit(llama, unit_of(0, seed=0, sequences=4), LAYERS, config())
    assert result.tokens == 0 and result.documents == ((0.0, 0),) * 4
    assert not any(bool(result.sums[layer].any()) for layer in LAYERS)


def test_a_model_that_never_ends_stops_at_the_limit(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.text, "eos_ids", frozenset())
    result = run_unit(llama, unit_of(0, seed=0, sequences=6), LAYERS, config(max_new_tokens=9))
    assert [count for _, count in result.documents] == [9] * 6 and result.tokens == 54


def test_the_beginning_needs_a_token(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        bos_token_id = eos_token_id = None

    monkeypatch.setattr(llama.text, "tokenizer", Bare())
    with pytest.raises(UserError, match="'bos' needs a tokenizer with a BOS or EOS token"):
        run_unit(llama, unit_of(0, seed=0, sequences=1), LAYERS, config(seed_mode="bos"))
