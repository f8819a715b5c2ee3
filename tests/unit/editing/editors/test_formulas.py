"""Every closed form against a float64 NumPy evaluation of its row in the methods' table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.mose import procrustes
from errata.editing.editors.closed_form.prune import damped_part
from errata.editing.editors.closed_form.rect import thinned
from errata.editing.editors.gradient.ultraedit import merged, moments_of, normalized, solved
from errata.editing.errors import NumericalError
from errata.editing.linalg import DependentColumnsError, dependent_columns
from errata.editing.state import LifelongState
from tests.unit.editing.editors.common import config_of, keys32, spread

D = 24
CONDITIONS = (3.0, 1e7)


def factor(name: str, cov: np.ndarray, past: np.ndarray, keys: np.ndarray, **settings: Any) -> np.ndarray:
    """What the editor's state and right factor make of these matrices."""
    editor: Any = make_editor(config_of(name, layers=(3,), **settings))
    held = KeyCovariance({3: torch.tensor(cov) * 50}, 50, {"kind": "test"})
    state = LifelongState.start({3: len(cov)}, held, editor.base_of, grows=editor.keeps_past_keys)
    for at in range(0, past.shape[1], 4):
        part = torch.tensor(past[:, at : at + 4], dtype=torch.float32)
        names = [f"r{at + i}" for i in range(part.shape[1])]
        state = state.appended({3: part}, names, names)
    found = editor.right_factor(3, torch.tensor(keys, dtype=torch.float32), state)
    assert found.dtype == torch.float64
    return np.asarray(found)


def same(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def with_repeat(keys: np.ndarray) -> np.ndarray:
    return np.concatenate([keys, keys[:, :1]], axis=1)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("past", [0, 5, 40])
@pytest.mark.parametrize("count", [1, 6, 40])  # one edit, some, more than dimensions
@pytest.mark.parametrize("name", ["memit", "memit_merge", "pmet", "prune", "rose"])
def test_least_squares(name: str, count: int, past: int, condition: float) -> None:
    """R K^T (lambda C + K_p K_p^T + K K^T)^-1; RoSE with the identity in the place of lambda C."""
    rng = np.random.default_rng(count + past)
    C, K_p, K = spread(rng, D, condition), keys32(rng, D, past), with_repeat(keys32(rng, D, count))
    settings: dict[str, Any] = {"past_keys": True} | ({} if name == "rose" else {"cov_weight": 0.7})
    A = np.eye(D) if name == "rose" else 0.7 * C
    want = K.T @ np.linalg.inv(A + K_p @ K_p.T + K @ K.T)
    same(factor(name, C, K_p, K, **settings), want, 1e-14 * condition + 1e-11)
    without = factor(name, C, K_p, K, **settings | {"past_keys": False})
    same(without, K.T @ np.linalg.inv(A + K @ K.T), 1e-14 * condition + 1e-11)


def test_rose_stores_what_weight_one_stores() -> None:
    rng = np.random.default_rng(0)
    k = keys32(rng, D, 1)
    stored = factor("rose", spread(rng, D, 9.0), np.zeros((D, 0)), k) @ k
    assert stored[0, 0] == pytest.approx(float((k.T @ k / (1 + k.T @ k))[0, 0]), rel=1e-12)
    # a weight of 15 000 in that place would store almost nothing
    assert stored[0, 0] > 0.9 > 0.01 > float((k.T @ k / (15_000 + k.T @ k))[0, 0])


def test_rose_without_iga_uses_the_covariance() -> None:
    rng = np.random.default_rng(1)
    C, K = spread(rng, D, 9.0), keys32(rng, D, 4)
    want = K.T @ np.linalg.inv(0.7 * C + K @ K.T)
    same(factor("rose", C, np.zeros((D, 0)), K, iga=False, cov_weight=0.7), want, 1e-11)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("count", [1, 6, 20])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("past", [0, 7])
def test_emmet(past: int, damping: float, count: int, condition: float) -> None:
    """R (K^T A^-1 K + e I)^-1 K^T A^-1 with A = w C + ridge I (+ K_p K_p^T)."""
    rng = np.random.default_rng(2)
    C, K_p, K = spread(rng, D, condition), keys32(rng, D, past), keys32(rng, D, count)
    settings = {"cov_weight": 3.0, "damping": damping}
    for ridge in (0.0, 1e-3):
        A = 3.0 * C + ridge * np.eye(D) + K_p @ K_p.T
        S = np.linalg.solve(A, K).T
        want = np.linalg.solve(S @ K + damping * np.eye(count), S)
        got = factor("emmet", C, K_p, K, ridge=ridge, past_keys=True, **settings)
        same(got, want, 1e-14 * condition + 1e-10)
        if not damping:
            np.testing.assert_allclose(got @ K, np.eye(count), atol=1e-14 * condition + 1e-9)
    plain = factor("emmet", C, K_p, K, past_keys=False, **settings)
    S = np.linalg.solve(3.0 * C, K).T
    same(plain, np.linalg.solve(S @ K + damping * np.eye(count), S), 1e-14 * condition + 1e-10)


@pytest.mark.parametrize("count", [1, 6, 40])
def test_damped_emmet_is_memit_with_that_lambda(count: int) -> None:
    rng = np.random.default_rng(3)
    C, K = spread(rng, D, 100.0), with_repeat(keys32(rng, D, count))
    none = np.zeros((D, 0))
    for weight in (0.1, 20.0):
        emmet = factor("emmet", C, none, K, damping=weight)
        same(emmet, factor("memit", C, none, K, cov_weight=weight), 1e-9)


def test_undamped_emmet_names_dependent_columns() -> None:
    rng = np.random.default_rng(4)
    C, K = spread(rng, D, 1e4), keys32(rng, D, 5)
    K[:, 3] = 2 * K[:, 0] - K[:, 2]
    with pytest.raises(DependentColumnsError) as caught:
        factor("emmet", C, np.zeros((D, 0)), K)
    assert caught.value.columns == {3: [0, 2]}
    with pytest.raises(DependentColumnsError) as caught:
        factor("emmet", C, np.zeros((D, 0)), keys32(rng, D, D + 2))
    assert sorted(caught.value.columns) == [D, D + 1], "no more independent keys than dimensions"


def test_dependent_columns_of_zero_and_of_nothing() -> None:
    assert dependent_columns(torch.eye(4, dtype=torch.float64)) == {}
    assert dependent_columns(torch.diag(torch.tensor([2.0, 0.0, 1e-30], dtype=torch.float64))) == {1: []}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("count", [1, 6])
def test_rome(count: int, condition: float) -> None:
    """(C^-1 k)^T / (k^T C^-1 k), for every key on its own."""
    rng = np.random.default_rng(5)
    C, K = spread(rng, D, condition), with_repeat(keys32(rng, D, count))
    got = factor("rome", C, keys32(rng, D, 3), K)
    for k, row in zip(K.T, got, strict=True):
        u = np.linalg.inv(C) @ k
        same(row, u / (k @ u), 1e-14 * condition + 1e-11)
        assert row @ k == pytest.approx(1.0, abs=1e-8)


def test_a_moment_of_too_few_tokens_is_refused() -> None:
    flat = np.diag([1.0] * (D - 1) + [0.0])
    for name in ("rome", "emmet"):
        with pytest.raises(NumericalError, match=r"of layer 3 \(50 tokens\) is not positive definite"):
            factor(name, flat, np.zeros((D, 0)), np.ones((D, 1)))
    ridged = factor("emmet", flat, np.zeros((D, 0)), np.ones((D, 1)), ridge=0.5)
    assert np.isfinite(ridged).all()


# --- RECT ---


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75])
def test_rect_keeps_the_stated_share(keep: float) -> None:
    rng = np.random.default_rng(6)
    L, R, W = rng.standard_normal((10, 3)), rng.standard_normal((3, 14)), rng.standard_normal((10, 14))
    W[0, 0], L[1], W[1, 1] = 0.0, 0.0, 0.0  # an infinite and an undefined ratio
    change = LayerDelta("low_rank", torch.tensor(L).float(), torch.tensor(R).float())
    got = thinned(change, torch.tensor(W).float(), keep).left.numpy()
    dW = change.left.numpy().astype(float) @ change.right.numpy().astype(float)  # type: ignore[union-attr]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(dW / W.astype(np.float32)), nan=0.0, posinf=np.inf)
    count = round(keep * 140)
    kept = np.zeros(140, bool)
    kept[np.argsort(-ratio.ravel(), kind="stable")[:count]] = True
    np.testing.assert_allclose(got, np.where(kept.reshape(10, 14), dW, 0.0), rtol=1e-6)
    assert np.count_nonzero(got) == count and got[0, 0] != 0


# --- PRUNE ---


@pytest.mark.parametrize("rank", [1, 5, 10])
def test_prune_holds_back_what_is_too_large(rank: int) -> None:
    rng = np.random.default_rng(7)
    L, R = rng.standard_normal((10, rank)), rng.standard_normal((rank, 14))
    s_max, a = 2.0, 2.5
    left, right = damped_part(torch.tensor(L).float(), torch.tensor(R).float(), s_max, a)
    S = torch.tensor(L).float().double().numpy() @ torch.tensor(R).float().double().numpy()
    u, s, vh = np.linalg.svd(S, full_matrices=False)
    F = np.where(s > s_max, np.log(s) / np.log(a) - np.log(s_max) / np.log(a) + s_max, s)
    assert left.shape[1] == (s > s_max).sum() > 0
    np.testing.assert_allclose(S - (left @ right).numpy(), u * F @ vh, atol=2e-6)
    assert (s + 1e-12 >= F).all(), "it never amplifies where a >= exp(1 / s_max)"


def test_prune_leaves_small_values_alone() -> None:
    left, right = damped_part(torch.eye(4)[:, :2], torch.eye(6)[:2], 1.0, 3.0)
    assert left.shape == (4, 0) and right.shape == (0, 6)
    left, right = damped_part(torch.zeros(4, 0), torch.zeros(0, 6), 1.0, 3.0)
    assert left.shape == (4, 0) and right.shape == (0, 6)


# --- MOSE ---


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("count", [1, 6, 30])
def test_mose_solves_the_procrustes_problem(count: int, condition: float) -> None:
    """A and B column by column as in eqs. 17-20, with the preserved keys themselves."""
    rng = np.random.default_rng(8)
    W, K, R = rng.standard_normal((10, D)), rng.standard_normal((D, count)), rng.standard_normal((10, count))
    K_0 = np.linalg.cholesky(spread(rng, D, condition)) @ rng.standard_normal((D, 90))
    tokens, lam = K_0.shape[1], 4.0
    V = W @ K + R
    A = np.concatenate([np.sqrt(lam / tokens) * W @ K_0, W @ K], axis=1)
    B = np.concatenate([np.sqrt(lam / tokens) * W @ K_0, V], axis=1)
    u, _, vh = np.linalg.svd(B @ A.T)
    C = K_0 @ K_0.T / tokens
    got = procrustes(*(torch.tensor(x) for x in (W @ C @ W.T, W @ K, R)), lam).numpy()
    np.testing.assert_allclose(got, u @ vh, atol=1e-8)
    np.testing.assert_allclose(got @ got.T, np.eye(10), atol=1e-13)
    best = np.linalg.norm(got @ A - B)
    for _ in range(20):  # no other rotation does better
        other = np.linalg.qr(got + 0.05 * rng.standard_normal((10, 10)))[0]
        assert np.linalg.norm(other @ np.diag(np.sign(np.diag(other.T @ got))) @ A - B) >= best - 1e-9


# --- UltraEdit ---


@pytest.mark.parametrize("count", [1, 5, 60])
def test_ultraedit_system(count: int) -> None:
    """dW^T = (H^T H + I)^-1 H^T V."""
    rng = np.random.default_rng(9)
    H, V = rng.standard_normal((count, 14)), rng.standard_normal((count, 10))
    want = (np.linalg.inv(H.T @ H + np.eye(14)) @ H.T @ V).T
    got = solved(torch.tensor(H), torch.tensor(V))
    matrix = got.left if got.right is None else got.left @ got.right
    np.testing.assert_allclose(matrix.numpy(), want, atol=1e-6)
    assert got.kind == ("dense" if count == 60 else "low_rank")


def test_ultraedit_statistics_are_those_of_everything_seen() -> None:
    rng = np.random.default_rng(10)
    parts = [torch.tensor(3.0 + 2.0 * rng.standard_normal((n, 4))) for n in (1, 7, 3, 50)]
    moments = None
    for part in parts:
        moments = merged(moments, moments_of(part))
    whole = torch.cat(parts).numpy()
    assert moments is not None
    got = normalized(parts[1], moments).numpy()
    want = (parts[1].numpy() - whole.mean(axis=0)) / whole.std(axis=0, ddof=1)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert np.isfinite(normalized(parts[0], moments_of(parts[0])).numpy()).all(), "one token has no deviation"
