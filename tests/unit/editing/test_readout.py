"""Losses read from logits, and their gradient, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from errata.editing.readout import read_losses

Array = NDArray[np.float64]


def log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def oracle(logits: Array, tokens: list[int], held_to: Array, weights: Array) -> tuple[Array, Array, Array]:
    """(-log p, KL, gradient of their weighted sum); the gradient by central differences."""

    def losses(at: Array) -> tuple[Array, Array]:
        log_p = log_probabilities(at)
        predicted, held = log_p[: len(tokens)], log_p[len(tokens) :]
        return -predicted[np.arange(len(tokens)), tokens], (np.exp(held) * (held - held_to)).sum(axis=1)

    gradient = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        ahead, behind = (float(np.concatenate(losses(logits + s)) @ weights) for s in (step, -step))
        gradient[place] = (ahead - behind) / 2e-5
    return (*losses(logits), gradient)


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize(("predicting", "held"), [(3, 2), (2, 0)])
def test_losses_and_gradients(spread: float, predicting: int, held: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(predicting + held, 7)) * spread
    tokens = [int(t) for t in random.integers(7, size=predicting)]
    held_to = log_probabilities(random.normal(size=(held, 7)) * spread)
    weights = random.normal(size=predicting + held)
    want_nll, want_kl, want_gradient = oracle(logits, tokens, held_to, weights)
    x = torch.tensor(logits, requires_grad=True)
    nll, kl, missed = read_losses(x, torch.tensor(tokens, dtype=torch.long), torch.tensor(held_to))
    (torch.cat([nll, kl]) * torch.tensor(weights)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(nll.detach(), want_nll, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kl.detach(), want_kl, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x.grad, want_gradient, atol=1e-7)
    assert missed.tolist() == [int(row.argmax()) != t for row, t in zip(logits, tokens, strict=False)]


def test_rows_at_what_they_are_held_to_lose_nothing() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    nll, kl, _ = read_losses(x, torch.tensor([1]), None)
    (nll.sum() + 5 * kl.sum()).backward()
    assert x.grad is not None and kl.tolist() == [0.0, 0.0]
    assert not x.grad[1:].any() and x.grad[0].any()


def test_float32_is_exact_to_rounding_where_the_target_is_almost_certain() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50_000)
    logits[0, 7] = 14.0  # p about .94, where p - 1 loses digits
    wanted = logits.double().requires_grad_()
    (-wanted.log_softmax(dim=-1)[0, 7]).backward()
    x = logits.clone().requires_grad_()
    read_losses(x, torch.tensor([7]), None)[0].sum().backward()
    assert x.grad is not None and wanted.grad is not None
    assert float((x.grad - wanted.grad).norm() / wanted.grad.norm()) < 5e-7
