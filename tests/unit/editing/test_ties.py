"""TIES against NumPy, entry by entry as the paper writes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.editing.ties import ties


def by_the_paper(base: np.ndarray, copies: list[np.ndarray], density: float) -> np.ndarray:
    """arXiv:2306.01708, Alg. 1 with lambda = 1, in float64."""
    trimmed = []
    for copy in copies:
        difference = copy - base
        order = np.argsort(-np.abs(difference), axis=None)
        kept = np.zeros(difference.size)
        top = order[: max(1, round(density * difference.size))]
        kept[top] = difference.ravel()[top]
        trimmed.append(kept)
    merged = np.zeros(base.size)
    for entry in range(base.size):
        values = [t[entry] for t in trimmed]
        sign = np.sign(sum(values))
        agreeing = [v for v in values if v != 0 and np.sign(v) == sign]
        merged[entry] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return base + merged.reshape(base.shape)


@pytest.mark.parametrize("density", [0.1, 0.53, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_ties_is_that_of_the_paper(count: int, density: float) -> None:
    rng = np.random.default_rng(count)
    base = rng.standard_normal((7, 11))
    copies = [base + 0.1 * rng.standard_normal(base.shape) for _ in range(count)]
    got = ties(torch.tensor(base), [torch.tensor(copy) for copy in copies], density)
    np.testing.assert_allclose(got.numpy(), by_the_paper(base, copies, density), atol=1e-12)


def test_one_whole_copy_stays_what_it_is_and_opposites_do_not_cancel() -> None:
    base, change = torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert torch.equal(ties(base, [change], 1.0), change)
    assert torch.equal(ties(base, [change, -0.5 * change], 1.0), change)
