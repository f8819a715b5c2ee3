"""The batched value optimization against the plain one: one edit, whole sequences, the library's own pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from errata.editing import values as values_module
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.value_problem import projection_loss
from errata.editing.values import (
    PLAIN,
    Problem,
    TargetValue,
    ValueConfig,
    Variant,
    edit_segments,
    optimize_values,
)
from tests.unit.helpers import plain

Tiny = Callable[[str], EditableModel]
CONTEXTS = ("", "Therefore I think. ", "You. ")


def close(got: TargetValue, want: plain.PlainValue, *, atol: float) -> None:
    torch.testing.assert_close(got.h, want.h, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.delta, want.delta, rtol=0, atol=atol * float(want.delta.norm()))
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
    assert got.steps == want.steps


@pytest.mark.parametrize("family", plain.FAMILIES)
def test_equals_the_plain_form(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model = tiny(family)
    config = ValueConfig(lr=0.1, steps=5, clamp=0.5, weight_decay=0.05, post_norm="published")
    got = optimize_values(model, requests[:2], layer=1, contexts=CONTEXTS[:2], config=config)
    for request, value in zip(requests[:2], got, strict=True):
        want = plain.optimize(model, request, layer=1, contexts=CONTEXTS[:2], config=config)
        close(value, want, atol=2e-5)
        assert want.losses[-1] < want.losses[0]
        torch.testing.assert_close(value.state, value.z)


@pytest.mark.parametrize("family", plain.POST_NORM)
def test_exact_form_optimizes_before_the_norm(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model, request = tiny(family), requests[1]
    config = ValueConfig(lr=0.2, steps=5, clamp=0.6, post_norm="exact")
    (got,) = optimize_values(model, [request], layer=1, contexts=CONTEXTS[:2], config=config)
    want = plain.optimize(model, request, layer=1, contexts=CONTEXTS[:2], config=config, inside_mlp=True)
    close(got, want, atol=2e-5)
    # `state` is what the block's output really is with delta in place
    ids, at = plain.subject_position(model, "", request.prompt, request.subject)
    with plain.added(plain.edited_map(model, 1), at, want.delta):
        reached = plain.read(model, plain.block(model, 1), ids)[at]
    torch.testing.assert_close(got.state, reached, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mlp_space_differs_in_norms_only(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model, request = tiny(family), requests[0]
    config = ValueConfig(lr=0.2, steps=5, clamp=0.5, weight_decay=0.5)
    (got,) = optimize_values(model, [request], layer=1, contexts=CONTEXTS[:2], config=config, space="mlp")
    want = plain.optimize(model, request, layer=1, contexts=CONTEXTS[:2], config=config, inside_mlp=True)
    close(got, want, atol=2e-5)
    assert float(got.delta.norm()) <= 0.5 * float(got.h.norm()) * (1 + 1e-5)


def test_a_batch_equals_one_by_one(llama: EditableModel, requests: list[EditRequest]) -> None:
    config = ValueConfig(lr=0.3, steps=6)
    together = optimize_values(llama, requests, layer=1, contexts=CONTEXTS, config=config)
    for request, got in zip(requests, together, strict=True):
        (alone,) = optimize_values(llama, [request], layer=1, contexts=CONTEXTS, config=config)
        torch.testing.assert_close(got.delta, alone.delta, rtol=0, atol=2e-5 * float(alone.delta.norm()))
        assert (got.steps, got.converged, got.clamped) == (alone.steps, alone.converged, alone.clamped)


def test_small_batches_give_the_same_and_progress_counts_up(llama: EditableModel, requests: list[EditRequest]) -> None:
    config = ValueConfig(lr=0.3, steps=4)
    whole = optimize_values(llama, requests, layer=1, contexts=CONTEXTS, config=config)
    seen: list[int] = []
    split = optimize_values(
        llama, requests, layer=1, contexts=CONTEXTS,
        config=config.model_copy(update={"batch_tokens": 60}), progress=seen.append,
    )  # fmt: skip
    assert len(seen) > 1 and seen == sorted(set(seen)) and seen[-1] == len(requests)
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a.delta, b.delta, rtol=0, atol=2e-5 * float(a.delta.norm()))


def test_each_edit_stops_by_itself(
    llama: EditableModel, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ValueConfig(lr=0.3, steps=12, clamp=None)
    free = [plain.optimize(llama, r, layer=1, contexts=CONTEXTS[:1], config=config) for r in requests]
    lowest = sorted(min(p.losses) for p in free)
    # a threshold that three edits pass on their way and two never do
    threshold = 0.5 * (lowest[2] + lowest[3])
    config = config.model_copy(update={"stop_loss": threshold})
    packed: list[int] = []
    losses = values_module.Problem.losses
    monkeypatch.setattr(
        values_module.Problem,
        "losses",
        lambda self, delta, *rest: packed.append(len(delta)) or losses(self, delta, *rest),
    )
    got = optimize_values(llama, requests, layer=1, contexts=CONTEXTS[:1], config=config)
    assert packed == sorted(packed, reverse=True) and packed[0] == 5 and packed[-1] == 2, "finished edits are dropped"
    assert sum(value.converged for value in got) == 3
    assert len({value.steps for value in got}) > 1
    for plain_run, value in zip(free, got, strict=True):
        want = plain_run.stopped_at(threshold)
        close(value, want, atol=1e-4)
        assert value.converged == (want.loss < threshold)


def test_a_finished_edit_rests_while_others_go_on(
    llama: EditableModel, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without repacking, too: the finished edit stays in the batch and must not move."""
    monkeypatch.setattr(values_module, "_REPACK_SHARE", 0.0)
    config = ValueConfig(lr=0.3, steps=10, clamp=None)
    free = [plain.optimize(llama, r, layer=1, contexts=CONTEXTS[:1], config=config) for r in requests[:3]]
    lowest = sorted(min(p.losses) for p in free)
    threshold = 0.5 * (lowest[0] + lowest[1])
    config = config.model_copy(update={"stop_loss": threshold})
    got = optimize_values(llama, requests[:3], layer=1, contexts=CONTEXTS[:1], config=config)
    assert sorted(value.converged for value in got) == [False, False, True]
    for plain_run, value in zip(free, got, strict=True):
        close(value, plain_run.stopped_at(threshold), atol=1e-4)


def test_steps_counts_forward_passes(llama: EditableModel, requests: list[EditRequest]) -> None:
    once = ValueConfig(lr=0.3, steps=1, clamp=None)
    (value,) = optimize_values(llama, requests[:1], layer=1, contexts=("",), config=once)
    assert value.steps == 1
    assert not bool(value.delta.any()), "one pass makes no update"
    (value,) = optimize_values(
        llama, requests[:1], layer=1, contexts=("",), config=once.model_copy(update={"steps": 2})
    )
    # Adam's first update moves every coordinate by the learning rate
    torch.testing.assert_close(value.delta.abs(), torch.full_like(value.delta, 0.3), rtol=1e-3, atol=0)


def test_the_clamp_bounds_delta_by_the_states_norm(llama: EditableModel, requests: list[EditRequest]) -> None:
    tight = ValueConfig(lr=0.5, steps=8, clamp=0.05)
    for value in optimize_values(llama, requests[:3], layer=1, contexts=("",), config=tight):
        assert value.clamped
        assert float(value.delta.norm()) == pytest.approx(0.05 * float(value.h.norm()), rel=1e-5)
    loose = ValueConfig(lr=0.01, steps=3, clamp=0.75)
    assert not any(v.clamped for v in optimize_values(llama, requests[:3], layer=1, contexts=("",), config=loose))


def test_last_layer_and_first_layer_can_be_the_value_layer(llama: EditableModel, requests: list[EditRequest]) -> None:
    config = ValueConfig(lr=0.2, steps=4)
    # above the last layer only the subject's own position feels delta: the prompt ends with the subject
    last = EditRequest(subject="Rome", prompt="What is {}", target_new="Italy yes")
    for layer, request in ((0, requests[0]), (2, last)):
        (got,) = optimize_values(llama, [request], layer=layer, contexts=CONTEXTS[:2], config=config)
        close(got, plain.optimize(llama, request, layer=layer, contexts=CONTEXTS[:2], config=config), atol=5e-5)


def test_the_model_is_left_as_it_was(llama: EditableModel, requests: list[EditRequest]) -> None:
    before = {name: value.clone() for name, value in llama.hf.state_dict().items()}
    optimize_values(llama, requests[:2], layer=1, contexts=CONTEXTS, config=ValueConfig(steps=3))
    assert all(torch.equal(value, before[name]) for name, value in llama.hf.state_dict().items())
    assert not any(parameter.requires_grad for parameter in llama.hf.parameters())


def problem_of(model: EditableModel, requests: list[EditRequest], config: ValueConfig) -> Problem:
    edits = [edit_segments(model, request, CONTEXTS) for request in requests]
    return Problem(model, edits, 1, config, "block", PLAIN)


def tables_of(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vars(problem).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_are_a_function_of_their_arguments(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    problem = problem_of(tiny(family), requests[:3], ValueConfig())
    before = tables_of(problem)
    nothing = torch.zeros_like(problem.h)
    first, baseline = problem.losses(nothing, problem.h, None)
    moved = problem.losses(nothing + 0.3, problem.h, baseline)[0]
    again, same = problem.losses(nothing, problem.h, baseline)
    torch.testing.assert_close(again, first, rtol=1e-6, atol=1e-6)
    assert same is baseline and not torch.equal(moved, first)
    assert torch.equal(problem.losses(nothing + 0.3, problem.h, baseline)[0], moved)
    # twice the size, a quarter of the decay, and nothing else
    decay = problem.config.weight_decay * (nothing + 0.3).norm(dim=1) / problem.h.square().sum(dim=1)
    twice = problem.losses(nothing + 0.3, 2 * problem.h, baseline)[0]
    torch.testing.assert_close(moved - twice, 0.75 * decay, rtol=1e-3, atol=1e-5)
    after = tables_of(problem)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_problem_of_some_edits_is_another_one(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    problem = problem_of(tiny(family), requests[:3], ValueConfig())
    before, chosen = tables_of(problem), torch.tensor([2, 0])
    rest = problem.kept(chosen)
    delta = torch.randn(3, problem.h.shape[1], generator=torch.Generator().manual_seed(0))
    _, baseline = problem.losses(torch.zeros_like(delta), problem.h, None)
    assert baseline is not None
    whole = problem.losses(delta, problem.h, baseline)[0]
    part = rest.losses(delta[chosen], rest.h, baseline[chosen])[0]
    torch.testing.assert_close(part, whole[chosen], rtol=1e-5, atol=1e-5)
    assert torch.equal(problem.losses(delta, problem.h, baseline)[0], whole)
    after = tables_of(problem)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_minimizer_changes_nothing_that_it_is_given(tiny: Tiny, requests: list[EditRequest]) -> None:
    """Edits that stop early leave the batch on the way."""
    config = ValueConfig(lr=0.2, steps=6, stop_loss=4.0)
    problem = problem_of(tiny("llama"), requests[:3], config)
    before = tables_of(problem)
    first = values_module._minimize(problem, config, [1, 1, 1])
    after = tables_of(problem)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = values_module._minimize(problem, config, [1, 1, 1])
    assert [torch.equal(a.delta, b.delta) for a, b in zip(first, again, strict=True)] == [True] * 3


# ---------------------------------------------------------------- preservation loss


def test_the_preservation_loss_is_the_projection_on_the_change() -> None:
    """sum_x |P x|^2 with P = V (V^T V)^-1 V^T of one direction ("uncertainty", eq. 1), in float64 NumPy."""
    rng = np.random.default_rng(0)
    deltas, states = rng.standard_normal((3, 9)), rng.standard_normal((5, 9))
    want = []
    for delta in deltas:
        V = delta[:, None]
        P = V @ np.linalg.inv(V.T @ V) @ V.T
        want.append(sum(np.linalg.norm(P @ x) ** 2 for x in states))
    found = projection_loss(torch.tensor(deltas), torch.tensor(states)).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-12)
    nothing = torch.zeros(1, 9, requires_grad=True)
    loss = projection_loss(nothing, torch.tensor(states).float())
    loss.sum().backward()
    assert float(loss.detach()) == 0.0 and nothing.grad is not None and not nothing.grad.any()


@pytest.mark.parametrize(("family", "space"), [("llama", "block"), ("llama", "mlp"), ("gpt2", "mlp")])
def test_protected_entities_count_in_the_loss_with_their_weight(
    tiny: Tiny, requests: list[EditRequest], family: str, space: Literal["block", "mlp"]
) -> None:
    model, names, beta = tiny(family), ("Angola", "Canada"), 0.3
    plain_config = ValueConfig(lr=0.2, steps=4, weight_decay=0.0)
    config = plain_config.model_copy(update={"kp_factor": beta, "kp_subjects": names})
    edits = [edit_segments(model, r, CONTEXTS[:1]) for r in requests[:2]]
    without = values_module.problem_of(model, edits, 1, plain_config, space, PLAIN)
    protecting = values_module.problem_of(model, edits, 1, config, space, PLAIN)
    delta = torch.randn(2, model.hidden_size, generator=torch.Generator().manual_seed(1))
    _, baseline = without.losses(torch.zeros_like(delta), without.h, None)
    difference = protecting.losses(delta, protecting.h, baseline)[0] - without.losses(delta, without.h, baseline)[0]
    states = []
    for name in names:
        ids, at = plain.subject_position(model, "", "{} is a", name)
        module = plain.edited_map(model, 1) if space == "mlp" else plain.block(model, 1)
        states.append(plain.read(model, module, ids)[at].double().numpy())
    D = delta.double().numpy()
    want = [beta * sum((x @ d) ** 2 / (d @ d) for x in states) for d in D]
    np.testing.assert_allclose(difference.detach().double().numpy(), want, rtol=1e-3)
    # one edit's protection does not depend on the others' of its batch, and is kept where some have finished
    (left,) = protecting.kept(torch.tensor([1])).losses(delta[1:], protecting.h[1:], baseline[1:])[0].tolist()
    assert left == pytest.approx(float(protecting.losses(delta, protecting.h, baseline)[0][1]), rel=1e-4)


def test_a_heavier_protection_leaves_less_along_what_is_protected(tiny: Tiny, requests: list[EditRequest]) -> None:
    model = tiny("llama")
    found = {}
    for beta in (0.0, 0.1, 10.0):
        names = ("Angola", "Canada", "Italy") if beta else ()
        config = ValueConfig(lr=0.2, steps=12, weight_decay=0.0, kp_factor=beta, kp_subjects=names)
        (value,) = optimize_values(model, requests[:1], layer=1, contexts=CONTEXTS[:1], config=config, space="mlp")
        found[beta] = value
    assert found[0.0].kp_loss is None and found[0.1].kp_loss is not None and found[10.0].kp_loss is not None
    assert found[10.0].kp_loss < found[0.1].kp_loss
    with pytest.raises(ValidationError, match="kp_factor needs kp_subjects"):
        ValueConfig(kp_factor=0.1)
    config = ValueConfig(kp_factor=0.1, kp_subjects=("Angola",))
    with pytest.raises(UserError, match="methods that find one change"):
        optimize_values(model, requests[:1], layer=1, contexts=CONTEXTS[:1], config=config, variant=Variant(joint=True))
