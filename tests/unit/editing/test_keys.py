"""Keys and states of the progressive pass against hooks on the library's own pass over the whole prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from errata.editing import keys as keys_module
from errata.editing.keys import SubjectPass, pull_back
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from tests.unit.helpers import plain

Tiny = Callable[[str], EditableModel]
CONTEXTS = ("", "Therefore I think. ", "You. ", "The answer is known. ")


def plain_keys(model: EditableModel, requests: list[EditRequest], layer: int) -> torch.Tensor:
    """Keys (m, J, I) of every edit in every context."""
    rows = []
    for request in requests:
        for context in CONTEXTS:
            ids, at = plain.subject_position(model, context, request.prompt, request.subject)
            rows.append(plain.read(model, plain.edited_map(model, layer), ids, "in")[at])
    return torch.stack(rows).reshape(len(requests), len(CONTEXTS), -1)


def plain_states(model: EditableModel, requests: list[EditRequest], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, mapped = [], []
    for request in requests:
        ids, at = plain.subject_position(model, "", request.prompt, request.subject)
        outputs.append(plain.read(model, plain.block(model, layer), ids)[at])
        mapped.append(plain.read(model, plain.edited_map(model, layer), ids)[at])
    return torch.stack(outputs, 1), torch.stack(mapped, 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gptj", "gpt_neox", "gemma3_text"])
def test_keys_and_states_while_weights_change(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model, chosen = tiny(family), requests[:3]
    walk = SubjectPass(model, chosen, CONTEXTS)
    for layer in range(3):
        found = plain_keys(model, chosen, layer)
        half = 0.5 * found[:, 0] + 0.5 * (found[:, 1] + found[:, 2] + found[:, 3]) / 3
        torch.testing.assert_close(walk.keys(layer), half.T, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(walk.keys(layer, "mean"), found.sum(dim=1).T / 4, rtol=1e-4, atol=2e-5)
        for above in range(layer, 3):
            got, want = walk.states(above), plain_states(model, chosen, above)
            torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=5e-5)
        # as an editor does: this layer's weight changes before the next layer's keys are read
        model.set_weight(layer, model.weight(layer) * 1.3)


def test_one_context_needs_no_average(llama: EditableModel, requests: list[EditRequest]) -> None:
    walk = SubjectPass(llama, requests, ("",))
    want = plain_keys(llama, requests, 1)[:, 0].T
    torch.testing.assert_close(walk.keys(1), want, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(walk.keys(1, "mean"), want, rtol=1e-4, atol=2e-5)


def test_parts_give_the_same_as_the_whole(
    llama: EditableModel, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SubjectPass(llama, requests, CONTEXTS)
    want = whole.keys(2), *whole.states(2)
    monkeypatch.setattr(keys_module, "_CHUNK_TOKENS", 150)
    split = SubjectPass(llama, requests, CONTEXTS)
    assert len(split._parts) > 1
    for a, b in zip(want, (split.keys(2), *split.states(2)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_empty_context_comes_first(llama: EditableModel, requests: list[EditRequest]) -> None:
    with pytest.raises(ValueError, match=r"the first context must be the empty one, got 'You\. '"):
        SubjectPass(llama, requests, ("You. ", ""))


@pytest.mark.parametrize("family", plain.POST_NORM)
def test_pull_back_goes_through_the_norm(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    generator = torch.Generator().manual_seed(0)
    layer_norm = plain.block(model, 1).post_feedforward_layernorm
    with torch.no_grad():  # a gain that is not the same everywhere, as in a trained model
        layer_norm.weight.copy_(torch.rand(32, generator=generator) * 0.8 + (0.4 if family == "olmo2" else -0.2))
    mapped = 2 * torch.randn(32, 6, generator=generator)
    norm = lambda x: layer_norm(x.T).T
    # a target that the norm can produce is reached exactly
    wanted = norm(mapped + torch.randn(32, 6, generator=generator)) - norm(mapped)
    moved = mapped + pull_back(model, 1, mapped, wanted)
    torch.testing.assert_close(norm(moved) - norm(mapped), wanted, rtol=1e-4, atol=1e-4)
    # one that it cannot is reached in direction, at the norm's own length, without shrinking the output away
    wanted = 5 * torch.randn(32, 6, generator=generator)
    moved = mapped + pull_back(model, 1, mapped, wanted)
    cosine = torch.nn.functional.cosine_similarity(norm(moved), norm(mapped) + wanted, dim=0)
    torch.testing.assert_close(cosine, torch.ones(6), rtol=0, atol=1e-4)
    assert bool((moved.norm(dim=0) >= 0.499 * mapped.norm(dim=0)).all())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_pull_back_without_a_norm_changes_nothing(tiny: Tiny, family: str) -> None:
    residual = torch.randn(32, 3)
    assert pull_back(tiny(family), 1, torch.randn(32, 3), residual) is residual
