"""Tiny models that know something: trained for seconds on made-up facts, so that an edit has something to change."""

from __future__ import annotations

from functools import lru_cache

import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from tests.helpers.tiny import tiny_hf, tiny_tokenizer

SUBJECTS = (
    "Danielle Darrieux", "Rome", "Angola", "Alice Munro", "Thierry Henry", "Paris", "Canada", "Italy", "the writer",
    "the sport", "France", "the capital", "Danielle Munro", "Alice Henry", "Thierry Darrieux", "Alice Darrieux",
)  # fmt: skip
RELATIONS = {
    "The mother tongue of {} is": ("French", "Italian", "English", "known"),
    "{} works as a": ("writer", "subject", "capital", "question"),
    "{} lies in": ("Italy", "Canada", "Africa", "France"),
}
_STEPS = 150


def facts() -> list[tuple[str, str, str]]:
    """(Prompt template, subject, answer), the same every time."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for template, answers in RELATIONS.items():
        for subject in SUBJECTS:
            found.append((template, subject, answers[int(torch.randint(len(answers), (1,), generator=generator))]))
    return found


def edits(count: int) -> list[EditRequest]:
    """Edits of known facts to another answer of the same relation, each of another subject where there are enough."""
    known = facts()
    chosen = []
    for number in range(count):
        template, subject, answer = known[(number * (len(SUBJECTS) + 1)) % len(known)]
        others = [other for other in RELATIONS[template] if other != answer]
        chosen.append(
            EditRequest(id=f"t{number}", subject=subject, prompt=template, target_new=others[number % len(others)])
        )
    return chosen


def _sentences(model: EditableModel, prefixes: tuple[str, ...] = ("",)) -> list[list[int]]:
    text = model.text
    return [
        text.encode_prompt(prefix + template.replace("{}", subject)) + text.encode_target(answer)
        for prefix in prefixes
        for template, subject, answer in facts()
    ]


@lru_cache(maxsize=4)
def _weights(model_type: str, layers: int) -> dict[str, torch.Tensor]:
    model = _fresh(model_type, layers)
    hf = model.hf.train().requires_grad_(True)
    rows = _sentences(model)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    mask = (labels >= 0).long()
    adam = torch.optim.Adam(hf.parameters(), lr=4e-3)
    for step in range(_STEPS):
        for group in adam.param_groups:
            group["lr"] = 4e-3 * (1 - step / _STEPS) + 1e-4
        adam.zero_grad()
        hf(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        adam.step()
    return {name: value.detach().clone() for name, value in hf.state_dict().items()}


def _fresh(model_type: str, layers: int) -> EditableModel:
    hf = tiny_hf(model_type, layers=layers, hidden=48, inner=96)
    return EditableModel(hf, tiny_tokenizer(), name=f"trained-{model_type}")


def trained_model(model_type: str = "llama", layers: int = 6) -> EditableModel:
    """A model of its own that answers `facts`; the training is done once a process."""
    weights = _weights(model_type, layers)
    hf = tiny_hf(model_type, layers=layers, hidden=48, inner=96)
    hf.load_state_dict(weights)
    return EditableModel(hf, tiny_tokenizer(), name=f"trained-{model_type}")


@torch.no_grad()
def covariance_of(model: EditableModel, layers: tuple[int, ...]) -> KeyCovariance:
    """Second moments of the keys of the sentences the model was trained on, the first tokens left out."""
    sums = {layer: torch.zeros(model.weight(layer).shape[1], model.weight(layer).shape[1]).double() for layer in layers}
    count = 0
    for row in _sentences(model, ("", "You. ", "I think that ")):
        with model.map_inputs(layers) as keys:
            model.hf(input_ids=torch.tensor([row]))
        for layer in layers:
            own = keys[layer][0, 1:].double()
            sums[layer] += own.T @ own
        count += len(row) - 1
    sums = {layer: value + 1e-4 * count * torch.eye(value.shape[0]).double() for layer, value in sums.items()}
    return KeyCovariance(sums, count, {"kind": "trained"})
