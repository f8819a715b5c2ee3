"""RoSE's geometry against its definitions in float64 NumPy, and on a tiny model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import same_subject_geometry
from errata.editing.delta import LayerDelta
from errata.editing.request import EditRequest, PortabilityProbe
from errata.evaluation.robustness import (
    activation_deviation,
    gradient_conflicts,
    pairwise_cosines,
    target_probabilities,
    tolerance_radius,
    value_gradients,
)
from tests.helpers.tiny import tiny_model

REQUEST = EditRequest(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="Italy yes")
OTHER = EditRequest(subject="Danielle Darrieux", prompt="{} lies in", target_new="Canada")


def test_deviation_is_what_the_update_makes_of_the_keys_difference() -> None:
    rng = np.random.default_rng(0)
    L, R = rng.standard_normal((7, 3)), rng.standard_normal((3, 11))
    K, other = rng.standard_normal((11, 5)), rng.standard_normal((11, 5))
    want = np.linalg.norm((L @ R) @ (other - K), axis=0)
    low = LayerDelta("low_rank", torch.tensor(L).float(), torch.tensor(R).float())
    dense = LayerDelta("dense", torch.tensor(L @ R).float())
    for change in (low, dense):
        found = activation_deviation(change, torch.tensor(K), torch.tensor(other)).numpy()
        np.testing.assert_allclose(found, want, rtol=1e-5)
    with pytest.raises(ValueError, match="orthogonal"):
        activation_deviation(LayerDelta("orthogonal", torch.eye(7)), torch.tensor(K), torch.tensor(other))


def test_cosines_and_conflicts() -> None:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    want = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in B.T] for a in A.T])
    np.testing.assert_allclose(pairwise_cosines(torch.tensor(A), torch.tensor(B)).numpy(), want, atol=1e-12)
    G = rng.standard_normal((4, 9))
    G[3] = -2 * G[0]  # opposed is as little in conflict as parallel
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = [1 - abs(G[i] @ G[j]) / (np.linalg.norm(G[i]) * np.linalg.norm(G[j])) for i, j in pairs]
    found = gradient_conflicts(torch.tensor(G)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[pairs.index((0, 3))] == pytest.approx(0.0, abs=1e-12)


def test_radius_is_the_last_step_that_holds() -> None:
    generator = torch.Generator().manual_seed(0)

    def within(bound: float) -> float:
        return tolerance_radius(lambda noise: noise.norm(dim=1) <= bound, 20, generator, step=0.25, most=4.0)

    assert within(1.6) == 1.5 and within(100.0) == 4.0 and within(0.1) == 0.0
    assert tolerance_radius(lambda noise: torch.zeros(len(noise)) > 0, 20, generator, step=0.25, most=4.0) == 0.0
    # a share of the directions: nine in ten must hold, and lengths are exact
    seen: list[float] = []

    def most_of_them(noise: torch.Tensor) -> torch.Tensor:
        seen.extend(noise.norm(dim=1).tolist())
        kept = torch.ones(len(noise), dtype=torch.bool)
        if len(noise) > 1 and float(noise[0].norm()) > 0.6:
            kept[:2] = False
        return kept

    assert tolerance_radius(most_of_them, 20, generator, step=0.25, most=4.0) == 0.5
    np.testing.assert_allclose(seen[1:], [0.25] * 10 + [0.5] * 10 + [0.75] * 10, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_probability_of_the_target_with_a_change_is_that_of_a_hooked_pass(family: str) -> None:
    model = tiny_model(family, layers=3)
    rng = torch.Generator().manual_seed(2)
    deltas = torch.randn(3, model.hidden_size, generator=rng)
    found = target_probabilities(model, REQUEST, 1, deltas)
    tokens, subject = model.text.encode_with_subject("", REQUEST.prompt, REQUEST.subject)
    target = model.text.encode_target(REQUEST.target_new)
    for delta, probability in zip(deltas, found.tolist(), strict=True):

        def add(_: object, __: object, output: object, delta: torch.Tensor = delta) -> object:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()  # type: ignore[union-attr]
            hidden[:, subject] += delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = model.decoder.layers[1].register_forward_hook(add)
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([tokens + target[:-1]])).logits[0].double().numpy()
        handle.remove()
        rows = logits[len(tokens) - 1 :]
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        assert probability == pytest.approx(math.exp(sum(logs[i, t] for i, t in enumerate(target))), rel=1e-4)


def test_gradients_of_values_are_finite_differences_of_the_loss() -> None:
    model = tiny_model("llama", layers=3)
    gradients = value_gradients(model, [REQUEST, OTHER], 1, ("",)).double().numpy()
    tokens = len(model.text.encode_target(REQUEST.target_new))
    direction = np.random.default_rng(3).standard_normal(model.hidden_size)
    direction /= np.linalg.norm(direction)
    step = 1e-2
    both = torch.tensor(np.stack([step * direction, -step * direction])).float()
    up, down = (-math.log(p) / tokens for p in target_probabilities(model, REQUEST, 1, both).tolist())
    assert (up - down) / (2 * step) == pytest.approx(gradients[0] @ direction, rel=2e-2, abs=1e-4)


def test_the_benchmark_on_a_tiny_model() -> None:
    model = tiny_model("llama", layers=3)
    subjects = [
        [
            EditRequest(
                id=f"{name}-{i}",
                subject=name,
                prompt=prompt,
                target_new=target,
                portability=(PortabilityProbe(prompt=f"Where is {name}?", answers=(target,), kind="question"),),
            )
            for i, (prompt, target) in enumerate((("{} lies in", "Canada"), ("The capital of {} is", "Italy")))
        ]
        for name in ("Rome", "Angola")
    ]
    found = same_subject_geometry.measure(
        model, subjects, (0, 1), steps=3, cov_weight=2.0, step=0.5, tokens=200
    )  # fmt: skip
    assert found["facts"] == 4 and set(found["tolerance_radius"]) == {
        "MEMIT, alone", "MEMIT-Merge", "RoSE, 2 templates", "RoSE, 4 templates", "RoSE, 8 templates"
    }  # fmt: skip
    held = found["values_that_hold"]
    assert set(held) == set(found["tolerance_radius"]) and all(0 <= share <= 1 for share in held.values())
    assert all(found["tolerance_radius"][name] == 0 for name, share in held.items() if share == 0)
    assert 0 <= found["gradient_conflict"] <= 1 and set(found["activation_deviation"]["identity"]["question"]) == {0, 1}
    assert all(0 <= share <= 1 for forms in found["escapes"].values() for share in forms.values())
