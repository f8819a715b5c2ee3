"""The geometry's figures against the definitions written out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.evaluation.geometry import (
    aggregated,
    change_norms,
    change_rates,
    principal,
    spearman,
    subspace_cosine,
    summary_of,
)
from errata.orchestrator.measuring.geometry import correlations, geometry, geometry_lines, pooled_outputs
from tests.helpers.tiny import tiny_model

N, D = 60, 12


def states(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, D)) * np.geomspace(1.0, 1e-2, D) + rng.standard_normal(D)


BEFORE = states(0)
AFTER = BEFORE + 0.05 * np.random.default_rng(1).standard_normal((N, D))


def spectrum(H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centered = (H - H.mean(axis=0)).T  # d x n, as in the paper
    U, sigma, _ = np.linalg.svd(centered, full_matrices=False)
    return U, sigma


def test_spectrum_effective_rank_and_condition() -> None:
    found = principal(torch.tensor(BEFORE))
    U, sigma = spectrum(BEFORE)
    assert found.values.numpy() == pytest.approx(sigma, rel=1e-10)
    assert np.abs(np.sum(found.directions.numpy() * U, axis=0)) == pytest.approx(np.ones(D), abs=1e-8)
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-12)
    assert found.condition == pytest.approx(sigma[0] / sigma[-1], rel=1e-10)


def test_what_rounding_leaves_is_no_direction() -> None:
    flat = BEFORE.copy()
    flat[:, -1] = flat[:, 0]  # one direction less
    assert principal(torch.tensor(flat)).values.numel() == D - 1
    assert principal(torch.tensor(flat, dtype=torch.float32)).values.numel() == D - 1
    with pytest.raises(ValueError, match="at least two"):
        principal(torch.tensor(BEFORE[:1]))


def test_change_rates_are_equation_11() -> None:
    U, sigma = spectrum(BEFORE)
    dh = (AFTER - BEFORE).T
    want = np.sqrt(N) * np.abs(U.T @ dh).mean(axis=1) / sigma
    base = principal(torch.tensor(BEFORE))
    got = change_rates(base, torch.tensor(BEFORE), torch.tensor(AFTER))
    assert got.numpy() == pytest.approx(want, rel=1e-9)
    rates = summary_of(got)
    assert (rates.mean, rates.median) == (pytest.approx(want.mean()), pytest.approx(np.median(want)))
    assert (rates.q90, rates.q95) == (pytest.approx(np.quantile(want, 0.9)), pytest.approx(np.quantile(want, 0.95)))
    assert rates.trimmed_mean == pytest.approx(np.sort(want)[1:-1].mean())
    assert rates.largest == pytest.approx(want.max()) and rates.above_one == pytest.approx((want > 1).mean())
    # equal changes weigh more in directions of less signal (theorem 4.5)
    equal = change_rates(base, torch.tensor(BEFORE), torch.tensor(BEFORE + (U @ np.full(D, 0.1))))
    assert bool((equal[1:] > equal[:-1]).all())
    assert equal.numpy() == pytest.approx(np.sqrt(N) * 0.1 / sigma, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, D])
def test_subspaces_by_their_largest_angle(k: int) -> None:
    U, _ = spectrum(BEFORE)
    V, _ = spectrum(AFTER)
    want = np.linalg.svd(U[:, :k].T @ V[:, :k], compute_uv=False).min()
    got = subspace_cosine(principal(torch.tensor(BEFORE)), principal(torch.tensor(AFTER)), k)
    assert got == pytest.approx(want, abs=1e-9)
    assert subspace_cosine(principal(torch.tensor(BEFORE)), principal(torch.tensor(BEFORE)), k) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="within"):
        subspace_cosine(principal(torch.tensor(BEFORE)), principal(torch.tensor(AFTER)), D + 1)


def test_norms_of_changes() -> None:
    norms = np.linalg.norm(AFTER - BEFORE, axis=1)
    want = (norms.mean(), norms.std(ddof=1), norms.min(), norms.max())
    assert change_norms(torch.tensor(BEFORE), torch.tensor(AFTER)) == pytest.approx(want)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # ranks differ by 0, 0, 1, 1
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # ties: ranks 1.5, 1.5, 3 against 1, 2, 3
    assert spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(1.5 * 2.0))
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="as many"):
        spearman([1], [1, 2])


def test_versions_of_a_tiny_model() -> None:
    model = tiny_model("llama", layers=3)
    rng = np.random.default_rng(0)
    documents = [list(map(int, rng.integers(5, 60, size=rng.integers(4, 9)))) for _ in range(30)]
    layers = (0, 2)
    pooled = pooled_outputs(model, documents, layers)
    # one document alone, by the library's own pass
    with model.map_outputs([2]) as caught, torch.no_grad():
        model.decoder.model(torch.tensor([documents[4]]))
    assert torch.allclose(pooled[2][4], caught[2][0].mean(dim=0).float(), atol=1e-5)
    weight = model.weight(0).clone()
    bytes_before = weight.numpy().tobytes()
    moved = weight + 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    half = (weight + moved) / 2
    versions = [(1, 5, lambda: {0: half}), (2, 10, lambda: {0: moved}), (3, 15, lambda: {0: weight})]
    found = list(geometry(model, documents, layers, versions))  # type: ignore[arg-type]
    assert model.weight(0).numpy().tobytes() == bytes_before
    first, second, same = found
    assert second.layers[0].norm[0] > first.layers[0].norm[0] > 0
    assert second.amplification("median", "mean") > first.amplification("median", "mean") > 0
    assert same.layers[0].norm[3] == 0 and same.layers[0].rates.largest == 0
    assert all(value == pytest.approx(1.0, abs=1e-6) for value in same.layers[0].cosines.values())
    # more amplification, less reliability
    metrics = {5: {"reliability": 0.6}, 10: {"reliability": 0.2}, 15: {"reliability": 0.9}}
    rows = correlations(found, metrics)
    assert [row.rho for row in rows] == pytest.approx([-1.0] * len(rows))
    assert rows and {row.metric for row in rows} == {"reliability"}
    assert aggregated({0: first.layers[0].rates, 2: first.layers[1].rates}, "q95", "max") == pytest.approx(
        max(item.rates.q95 for item in first.layers)
    )
    lines = list(geometry_lines(found, rows))
    assert len(lines) == 1 + 3 * 2 + 1 and "Spearman" in lines[-1]
