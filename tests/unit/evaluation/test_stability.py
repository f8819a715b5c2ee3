"""Stability of matrices against the definitions written out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.evaluation.stability import (
    Spread,
    condition_number,
    principal_coordinates,
    random_orthogonal,
    spread_of,
    value_drift,
)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_condition_number_is_the_norm_times_that_of_the_pseudoinverse(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    want = np.linalg.norm(W, 2) * np.linalg.norm(np.linalg.pinv(W), 2)
    assert condition_number(torch.tensor(W)) == pytest.approx(want, rel=1e-12)
    # of lower rank: what is zero in exact arithmetic does not count
    W[:, -1] = W[:, 0]
    want = np.linalg.norm(W, 2) * np.linalg.norm(np.linalg.pinv(W, rcond=1e-13), 2)
    assert condition_number(torch.tensor(W)) == pytest.approx(want, rel=1e-9)


def test_a_random_orthogonal_matrix_turns_and_changes_no_norm():
    generator = torch.Generator().manual_seed(3)
    draws = [random_orthogonal(8, generator).numpy() for _ in range(400)]
    W = np.random.default_rng(1).standard_normal((8, 5))
    for Q in draws[:5]:
        np.testing.assert_allclose(Q @ Q.T, np.eye(8), atol=1e-12)
        np.testing.assert_allclose(np.linalg.svd(Q @ W)[1], np.linalg.svd(W)[1], rtol=1e-12)
    # uniform: every entry has mean 0 and variance 1 / n (without the signs the diagonal's mean is far from 0)
    mean, spread = np.mean(draws, axis=0), np.std(draws, axis=0)
    assert np.abs(mean).max() < 4.5 / np.sqrt(8 * 400) and np.abs(spread - 8**-0.5).max() < 0.06


def test_spread():
    assert spread_of([3.0, 1.0, 2.0]) == Spread(2.0, 3.0, 1.0) and spread_of([]) is None


def test_projection_is_on_the_leading_eigenvectors_of_the_covariance():
    X = np.random.default_rng(4).standard_normal((30, 6)) * np.array([5.0, 3.0, 1.0, 1.0, 0.5, 0.1])
    centered = X - X.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    found, shares = principal_coordinates(torch.tensor(X))
    np.testing.assert_allclose(found.numpy(), centered @ axes, atol=1e-10)
    np.testing.assert_allclose(shares.numpy(), values[::-1][:2] / values.sum(), rtol=1e-10)


def test_drift_of_values_by_hand():
    rng = np.random.default_rng(5)
    V, moved = rng.standard_normal((12, 4)), rng.standard_normal((12, 4))
    W = V + 0.1 * moved + np.array([1.0, 0, 0, 0])
    found = value_drift(3, torch.tensor(V), torch.tensor(W))
    norms = np.linalg.norm(V, axis=1)
    assert found.change == pytest.approx((np.linalg.norm(W - V, axis=1) / norms).mean())
    assert found.cosine == pytest.approx(
        np.mean([v @ w / (np.linalg.norm(v) * np.linalg.norm(w)) for v, w in zip(V, W, strict=True)])
    )
    spread = np.sqrt(((V - V.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert found.separation == pytest.approx(np.linalg.norm(W.mean(axis=0) - V.mean(axis=0)) / spread)
    assert len(found.then) == len(found.now) == 12 and 0 < found.explained[1] <= found.explained[0] <= 1
    # what lies in the plane keeps its distances
    still = value_drift(0, torch.tensor(V), torch.tensor(V))
    assert still.change == 0 and still.cosine == pytest.approx(1.0) and still.then == still.now
    with pytest.raises(ValueError, match="at least three"):
        value_drift(0, torch.tensor(V[:2]), torch.tensor(V[:2]))
