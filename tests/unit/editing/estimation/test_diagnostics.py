"""Spectra, overlaps, drift and divergences against hand examples and slow forms of the same formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.editing.estimation import diagnostics as d


def moment(seed: int, width: int = 8, keys: int = 60) -> torch.Tensor:
    k = torch.randn(keys, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return k.T @ k / keys


def rotation(seed: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(moment(seed, width)).Q


# ---------------------------------------------------------------- spectra


def test_a_spectrum_is_descending_and_not_negative() -> None:
    q = rotation(0, 4)
    values = torch.tensor([3.0, 1.0, 0.5, -1e-18], dtype=torch.float64)
    found = d.eigenspectrum(q @ torch.diag(values) @ q.T)
    torch.testing.assert_close(found, torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((found >= 0).all())


def test_effective_rank_by_hand() -> None:
    tensor = lambda *v: torch.tensor(v, dtype=torch.float64)
    assert d.effective_rank(tensor(2, 2, 2, 2)) == pytest.approx(4)
    assert d.effective_rank(tensor(5, 0, 0)) == pytest.approx(1)
    assert d.effective_rank(tensor(0, 0)) == 0.0
    # p = (3/4, 1/4): exp(3/4 ln 4/3 + 1/4 ln 4)
    assert d.effective_rank(tensor(3, 1)) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_null_spaces_are_counted_below_tau() -> None:
    values = torch.tensor([1.0, 0.02, 0.01, 0.0], dtype=torch.float64)
    assert [d.null_space_dimension(values, tau) for tau in (0.02, 0.021, 5.0, 1e-9)] == [2, 3, 4, 1]


def test_overlap_by_hand() -> None:
    e = torch.eye(4, dtype=torch.float64)
    c, s = math.cos(0.3), math.sin(0.3)
    turned = torch.stack([e[0], c * e[1] + s * e[2]], dim=1)
    assert d.subspace_overlap(e[:, :2], e[:, :2]) == pytest.approx(1)
    assert d.subspace_overlap(e[:, :2], e[:, 2:]) == pytest.approx(0)
    assert d.subspace_overlap(e[:, :2], turned) == pytest.approx((1 + c * c) / 2)
    # the basis within the subspace does not matter
    assert d.subspace_overlap(e[:, :2] @ rotation(1, 2), turned) == pytest.approx((1 + c * c) / 2)
    with pytest.raises(ValueError, match="different shapes"):
        d.subspace_overlap(e[:, :2], e[:, :3])


def test_the_leading_subspace_holds_the_most_energy() -> None:
    m = moment(3)
    basis = d.leading_subspace(m, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    want = float(d.eigenspectrum(m)[3:].sum() / m.trace())
    assert d.energy_outside(basis, m) == pytest.approx(want)
    with pytest.raises(ValueError, match=r"within 1\.\.8, got 9"):
        d.leading_subspace(m, 9)


# ---------------------------------------------------------------- drift


def test_energy_outside_by_hand_and_by_keys() -> None:
    basis = torch.eye(4, dtype=torch.float64)[:, :2]
    keys = torch.tensor([[3.0, 0, 4.0, 0], [0, 5.0, 0, 0]], dtype=torch.float64)
    assert d.energy_outside(basis, keys.T @ keys) == pytest.approx(16 / 50)
    assert d.key_energy_outside(basis, keys.float()) == pytest.approx(16 / 50)
    assert d.energy_outside(basis, torch.zeros(4, 4, dtype=torch.float64)) == 0.0
    assert d.key_energy_outside(basis, torch.zeros(0, 4)) == 0.0


def test_nll_shift_is_in_standard_deviations() -> None:
    first = [(10.0, 10), (20.0, 10), (30.0, 10)]  # 1, 2, 3 per token: mean 2, deviation 1
    assert d.nll_shift(first, [(45.0, 10), (0.0, 0)]) == pytest.approx(2.5)
    assert d.nll_shift(first, first) == 0.0
    assert d.nll_shift(first, []) == 0.0 and d.nll_shift(first[:1], first) == 0.0
    assert d.nll_shift([(10.0, 10)] * 3, [(20.0, 10)]) == math.inf


# ---------------------------------------------------------------- divergence


def slow_jsd(a: list[float], b: list[float]) -> float:
    """Equation 22 with loops: densities at 512 points, each normalized to one."""
    low, high = np.percentile([*a, *b], [0.5, 99.5])
    grid = [low + i * (high - low) / 511 for i in range(512)]

    def masses(sample: list[float]) -> list[float]:
        n = len(sample)
        mean = sum(sample) / n
        bandwidth = math.sqrt(sum((x - mean) ** 2 for x in sample) / (n - 1)) * n ** (-1 / 5)
        values = [sum(math.exp(-((g - x) ** 2) / (2 * bandwidth**2)) for x in sample) for g in grid]
        return [value / sum(values) for value in values]

    p, q = masses(a), masses(b)
    total = 0.0
    for x, y in zip(p, q, strict=True):
        m = (x + y) / 2
        total += (x * math.log(x / m) if x > 0 else 0.0) / 2 + (y * math.log(y / m) if y > 0 else 0.0) / 2
    return total


@pytest.mark.parametrize(("shift", "scale", "count"), [(0.0, 1.0, 40), (0.7, 1.0, 25), (3.0, 0.2, 60), (0.0, 4.0, 33)])
def test_divergence_equals_the_slow_form(shift: float, scale: float, count: int) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.gamma(6, 0.5, 40).tolist(), (shift + scale * rng.gamma(6, 0.5, count)).tolist()
    got = d.jensen_shannon(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert got == pytest.approx(slow_jsd(a, b), rel=1e-9, abs=1e-12)


def test_the_density_integrates_to_one_and_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = torch.tensor(np.random.default_rng(0).normal(2, 0.5, 500))
    grid = torch.linspace(-4, 8, 2000, dtype=torch.float64)
    whole = d.density(sample, grid)
    assert float(torch.trapezoid(whole, grid)) == pytest.approx(1, abs=1e-6)
    monkeypatch.setattr(d, "_KDE_ELEMENTS", 2000 * 7)
    torch.testing.assert_close(d.density(sample, grid), whole, rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    a=st.lists(st.floats(0, 20, width=32), min_size=1, max_size=30),
    b=st.lists(st.floats(0, 20, width=32), min_size=1, max_size=30),
)
def test_divergence_is_symmetric_within_bounds_and_zero_on_itself(a: list[float], b: list[float]) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    found = d.jensen_shannon(x, y)
    assert 0.0 <= found <= math.log(2)
    assert found == pytest.approx(d.jensen_shannon(y, x), abs=1e-12)
    assert d.jensen_shannon(x, x) == 0.0


def test_samples_far_apart_reach_the_bound_and_none_is_refused() -> None:
    far = d.jensen_shannon(torch.linspace(0, 1, 50), torch.linspace(1000, 1001, 50))
    assert far == pytest.approx(math.log(2), rel=1e-3)
    with pytest.raises(ValueError, match="at least one value"):
        d.jensen_shannon(torch.zeros(0), torch.zeros(3))


def documents(seed: int, count: int, shift: float = 0.0, tokens: int = 20) -> list[tuple[float, int]]:
    rng = np.random.default_rng(seed)
    return [(tokens * (3.0 + shift + 0.5 * x), tokens) for x in rng.standard_normal(count)]


def test_an_estimate_like_the_first_is_let_in_and_a_moved_one_is_not() -> None:
    first = documents(0, 200)
    ok, found = d.sanity(first, documents(1, 200), 0.2)
    assert ok and found is not None and found < 0.03
    ok, found = d.sanity(first, documents(2, 200, shift=1.2), 0.2)
    assert not ok and found is not None and 0.2 < found <= math.log(2)
    assert d.sanity(first, documents(2, 200, shift=1.2), 0.69)[0]


def test_a_broken_model_is_refused_and_few_documents_tell_nothing() -> None:
    first = documents(0, 200)
    assert d.sanity(first, [*documents(1, 100), (math.nan, 5)], 0.6) == (False, math.log(2))
    assert d.sanity(first, [*documents(1, 100), (math.inf, 5)], 0.6) == (False, math.log(2))
    mute = [(0.0, 0)] * 60 + documents(1, 40)
    assert d.sanity(first, mute, 0.6) == (False, math.log(2))
    assert d.sanity(mute, mute, 0.6)[0], "a model that always did so has not changed"
    assert d.sanity(first, documents(1, 5, shift=9), 0.1) == (True, None)
    assert d.sanity([], documents(1, 100), 0.1) == (True, None)


def test_documents_are_compared_at_equal_length() -> None:
    long, short = documents(0, 40, tokens=256), documents(1, 50, tokens=10)
    chosen = d.of_equal_length({"a": long + short, "b": documents(2, 40, tokens=250)})
    assert chosen.equal_length and [v.numel() for v in chosen.samples.values()] == [40, 40]
    torch.testing.assert_close(chosen.samples["a"], d.per_token_nll(long))
    mixed = d.of_equal_length({"a": long[:5] + short, "b": documents(2, 40, tokens=250)})
    assert not mixed.equal_length and [v.numel() for v in mixed.samples.values()] == [55, 40]
    assert d.of_equal_length({}).samples == {}


def test_per_token_nll_leaves_empty_documents_out() -> None:
    assert d.per_token_nll([(6.0, 3), (0.0, 0), (5.0, 2)]).tolist() == [2.0, 2.5]


def test_opening_shares_are_of_all_sequences() -> None:
    openings = [("Sure!", "I"), ("Sure!", "we"), ("A",), ()]
    assert d.opening_shares(openings, 0) == [d.WordShare("Sure!", 0.5), d.WordShare("A", 0.25)]
    assert d.opening_shares(openings, 1, most=1) == [d.WordShare("I", 0.25)]
    assert d.opening_shares(openings, 2) == [] and d.opening_shares([], 0) == []
