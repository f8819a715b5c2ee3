"""A tiny model that really knows a few facts: an edit changes its answer, and leaves its other answers alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance, merge
from errata.editing.delta import WeightDelta, apply_delta
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig
from tests.helpers.tiny import tiny_hf, tiny_tokenizer

# Prompts end with their subject: so small a model reads a subject's embedding from afar and needs no state above it.
# The answers are one token each: what follows a token was learned together with its subject.
FACTS = {
    "What is the place of {}": {"Rome": "two", "Paris": "nine", "Angola": "ten", "Toronto": "no"},
    "I think of {}": {"Thierry Henry": "nine", "Alice Munro": "ten", "Danielle Darrieux": "two", "Angola": "no"},
    "The answer to {}": {"Rome": "ten", "Paris": "no", "Toronto": "two", "Alice Munro": "nine"},
}
LAYERS = (1, 2)


@dataclass(frozen=True)
class Known:
    """A trained model with its base covariance; use ``fresh`` for a copy to edit."""

    hf: torch.nn.Module
    covariance: KeyCovariance
    contexts: tuple[str, ...]

    def fresh(self) -> EditableModel:
        return EditableModel(copy.deepcopy(self.hf), tiny_tokenizer(), name="memorized")


def facts() -> list[tuple[str, str]]:
    return [(template.replace("{}", s), target) for template, known in FACTS.items() for s, target in known.items()]


def trained(steps: int = 250) -> torch.nn.Module:
    """A tiny llama that continues every fact with its answer and an end-of-text token."""
    torch.manual_seed(0)
    hf, tokenizer = tiny_hf("llama", layers=4, hidden=48, inner=96), tiny_tokenizer()
    rows = [
        tokenizer(f"{prompt} {target}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for prompt, target in facts()
    ]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.Adam(hf.parameters(), lr=3e-3)
    hf.train()
    for _ in range(steps):
        optimizer.zero_grad()
        hf(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return hf.eval()


@pytest.fixture(scope="module")
def known() -> Known:
    hf = trained()
    model = EditableModel(copy.deepcopy(hf), tiny_tokenizer(), name="memorized")
    config = SelfGenerationConfig(max_new_tokens=24, sequences_per_unit=32, slots=32)
    units = [run_unit(model, unit_of(i, seed=0, sequences=32), LAYERS, config) for i in range(6)]
    parts = [KeyCovariance(u.sums, u.tokens, {"kind": "self_generated", "unit": u.unit_id}) for u in units]
    return Known(hf, merge(parts), sample_contexts(model, count=2, length=4, seed=0))


def answers(model: EditableModel) -> dict[str, str]:
    prompts = [prompt for prompt, _ in facts()]
    said = LanguageEngine(model).generate([model.text.encode_prompt(p) for p in prompts], max_new_tokens=8)
    return {prompt: answer.text.strip() for prompt, answer in zip(prompts, said, strict=True)}


VALUES = ValueConfig(lr=0.2, steps=30, clamp=2.0, weight_decay=0.05)
EDITORS = {
    "memit": MemitConfig(layers=LAYERS, cov_weight=0.3, values=VALUES),
    "alphaedit": AlphaEditConfig(layers=LAYERS, tau=0.1, l2=0.1, values=VALUES),
}
CHANGES = {"What is the place of Rome": "nine", "I think of Thierry Henry": "no"}


def asked() -> list[EditRequest]:
    return [
        EditRequest(subject="Rome", prompt="What is the place of {}", target_new="nine", relation="place"),
        EditRequest(subject="Thierry Henry", prompt="I think of {}", target_new="no", relation="plays"),
    ]


def test_the_model_knows_its_facts(known: Known) -> None:
    assert answers(known.fresh()) == dict(facts())
    assert known.covariance.tokens > 500


@pytest.mark.parametrize("name", sorted(EDITORS))
def test_edits_change_their_answers_and_no_others(known: Known, name: str) -> None:
    model = known.fresh()
    session = EditSession(model, make_editor(EDITORS[name]), known.covariance, known.contexts)
    for number, request in enumerate(asked(), start=1):
        receipt = session.apply(EditBatch(sequence=number, requests=(request,)))
        assert receipt.results[0].applied and receipt.results[0].loss < 0.5
    after = answers(model)
    assert {prompt: after[prompt] for prompt in CHANGES} == CHANGES
    others = {prompt: target for prompt, target in facts() if prompt not in CHANGES}
    kept = [prompt for prompt, target in others.items() if after[prompt] == target]
    assert len(kept) >= len(others) - 1, {p: after[p] for p in others if p not in kept}


def test_a_version_is_the_base_and_its_deltas(known: Known, tmp_path: Path) -> None:
    """Stored changes applied to a fresh base give the edited model's bytes and answers; undone, the base's."""
    model = known.fresh()
    session = EditSession(model, make_editor(EDITORS["alphaedit"]), known.covariance, known.contexts)
    for number, request in enumerate(asked(), start=1):
        receipt = session.apply(EditBatch(sequence=number, requests=(request,)))
        assert receipt.delta is not None
        receipt.delta.save(tmp_path / f"{number}.safetensors")
    other = known.fresh()
    with other.patched(LAYERS):
        for number in (1, 2):
            for layer, change in WeightDelta.load(tmp_path / f"{number}.safetensors").layers.items():
                other.set_weight(layer, apply_delta(other.weight(layer), change))
        assert all(torch.equal(other.parameter(i), model.parameter(i)) for i in LAYERS)
        assert answers(other) == answers(model) != dict(facts())
    assert answers(other) == dict(facts())


def test_a_later_edit_of_the_fact_overwrites_the_earlier(known: Known) -> None:
    model = known.fresh()
    session = EditSession(model, make_editor(EDITORS["alphaedit"]), known.covariance, known.contexts)
    for number, target in enumerate(("nine", "no", "ten", "nine"), start=1):
        request = EditRequest(
            id=f"r{number}", subject="Rome", prompt="What is the place of {}", target_new=target, relation="place"
        )
        session.apply(EditBatch(sequence=number, requests=(request,)))
        assert answers(model)["What is the place of Rome"] == target
    assert session.state.request_ids == ("r4",)


def test_a_refresh_from_the_edited_model_keeps_the_edits(known: Known) -> None:
    """Covariance of the live model, swapped in between two batches: what was edited before still answers."""
    model = known.fresh()
    session = EditSession(model, make_editor(EDITORS["alphaedit"]), known.covariance, known.contexts)
    first, second = asked()
    session.apply(EditBatch(sequence=1, requests=(first,)))
    result = run_unit(
        model, unit_of(0, seed=7, sequences=96), LAYERS, SelfGenerationConfig(max_new_tokens=24, slots=48)
    )
    session.swap_covariance(KeyCovariance(result.sums, result.tokens, {"kind": "self_generated", "of": "version 1"}))
    session.apply(EditBatch(sequence=2, requests=(second,)))
    after = answers(model)
    assert {prompt: after[prompt] for prompt in CHANGES} == CHANGES
