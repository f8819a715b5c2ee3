"""Growing systems against a dense float64 inverse, and the update formulas of METHODS letter for letter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.errors import NumericalError, UserError
from errata.editing.forms import GramForm
from errata.editing.linalg import (
    Base,
    DenseBase,
    GrowingSystem,
    ProjectedIdentity,
    ScaledIdentity,
    null_space,
    update_factor,
)
from errata.editing.state import LifelongState

D = 20


def covariance(rng: np.random.Generator, size: int = D, *, rank: int | None = None) -> np.ndarray:
    keys = rng.standard_normal((size, 6 * size))
    if rank is not None:  # a few strong directions over a weak rest, as keys of real models have
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        keys = basis @ np.diag([1.0] * rank + [0.05] * (size - rank)) @ keys
    return keys @ keys.T / keys.shape[1]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64)


def bases(rng: np.random.Generator) -> dict[str, tuple[Base, np.ndarray, np.ndarray]]:
    """Each base with its A_0 (on the whole space) and its projector as dense matrices."""
    full = covariance(rng)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0][:, :6]
    eye, thin = np.eye(D), basis @ basis.T
    return {
        "dense": (DenseBase(tensor(full), what="A"), full, eye),
        "scaled": (ScaledIdentity(3.0), 3.0 * eye, eye),
        "projected": (ProjectedIdentity(2.0, tensor(basis), complement=False), 2.0 * eye, thin),
        "complement": (ProjectedIdentity(2.0, tensor(basis), complement=True), 2.0 * eye, eye - thin),
    }


@pytest.mark.parametrize("name", ["dense", "scaled", "projected", "complement"])
def test_two_hundred_random_changes(name: str) -> None:
    """Appends and removals, back and forth over the switch at p = d, against the dense inverse each time."""
    rng = np.random.default_rng(7)
    base, a0, projector = bases(rng)[name]
    system = GrowingSystem.start(base, torch.zeros(D, 0, dtype=torch.float64), D)
    past = np.zeros((D, 0))
    dense = []
    for step in range(200):
        growing = step % 60 < 34
        if growing or past.shape[1] < 3:
            new = rng.standard_normal((D, int(rng.integers(1, 4))))
            if step % 5 == 0 and past.shape[1]:
                new[:, 0] = past[:, 0]  # a repeated key
            system, past = system.append(tensor(new)), np.concatenate([past, new], axis=1)
        else:
            gone = sorted(rng.choice(past.shape[1], size=2, replace=False).tolist())
            system, past = system.without(gone), np.delete(past, gone, axis=1)
        dense.append(system.dense)
        if step % 4 == 0:
            inside = projector @ past
            right = rng.standard_normal((D, 2))
            want = projector @ np.linalg.solve(a0 + inside @ inside.T, projector @ right)
            got = system.solve(system.base.restrict(tensor(right))).numpy()
            assert np.linalg.norm(got - want) <= 1e-9 * np.linalg.norm(want), f"step {step}, p = {past.shape[1]}"
    assert any(dense) and not all(dense), "both forms were exercised"
    assert system.drift(tensor(rng.standard_normal((D, 3)))) < 1e-10


def test_starting_with_all_keys_equals_growing() -> None:
    rng = np.random.default_rng(1)
    for name, (base, _, _) in bases(rng).items():
        for count in (0, 7, D, D + 9):
            keys = tensor(rng.standard_normal((D, count)))
            grown = GrowingSystem.start(base, keys[:, :0], D)
            for at in range(0, count, 3):
                grown = grown.append(keys[:, at : at + 3])
            at_once = GrowingSystem.start(base, keys, D)
            right = base.restrict(tensor(rng.standard_normal((D, 2))))
            torch.testing.assert_close(at_once.solve(right), grown.solve(right), rtol=1e-9, atol=1e-11, msg=name)


def test_an_older_system_stays_usable() -> None:
    rng = np.random.default_rng(2)
    base = DenseBase(tensor(covariance(rng)), what="A")
    older = GrowingSystem.start(base, tensor(rng.standard_normal((D, 4))), D)
    right = tensor(rng.standard_normal((D, 2)))
    before = older.solve(right)
    for count in (3, 30):
        older.append(tensor(rng.standard_normal((D, count))))
    older.without([0, 1])
    assert torch.equal(older.solve(right), before)
    assert older.past.shape == (D, 4)


def test_a_dense_base_answers_the_question_that_was_asked() -> None:
    rng = np.random.default_rng(5)
    matrix = covariance(rng)
    base, fresh = DenseBase(tensor(matrix), what="A"), DenseBase(tensor(matrix), what="A")
    one, other = tensor(rng.standard_normal((D, 2))), tensor(rng.standard_normal((D, 2)))
    for right in (one, one.clone(), other, one, one[:, :1]):
        got = base.solve(right)
        assert torch.equal(got, fresh.solve(right)), "what is remembered changes no bit"
        np.testing.assert_allclose(got.numpy(), np.linalg.solve(matrix, right.numpy()), rtol=1e-9, atol=1e-12)
        fresh = DenseBase(tensor(matrix), what="A")


def test_drift_shows_a_wrong_factor() -> None:
    rng = np.random.default_rng(3)
    base = DenseBase(tensor(covariance(rng)), what="A")
    probe = tensor(rng.standard_normal((D, 3)))
    for count in (5, 40):
        system = GrowingSystem.start(base, tensor(rng.standard_normal((D, count))), D)
        assert system.drift(probe) < 1e-11
    assert isinstance(system.form, GramForm)
    spoilt = replace(system, form=replace(system.form, factor=1.01**-0.5 * system.form.factor))
    assert spoilt.drift(probe) == pytest.approx(1e-4, rel=1e-6), "refined once: the error is squared"


@pytest.mark.parametrize("count", [0, 8, 33])
@pytest.mark.parametrize("name", ["dense", "scaled", "projected", "complement"])
def test_update_factor_is_the_formula(name: str, count: int) -> None:
    rng = np.random.default_rng(4)
    base, a0, projector = bases(rng)[name]
    past, keys = rng.standard_normal((D, count)), rng.standard_normal((D, 5))
    kp, k = projector @ past, projector @ keys
    want = k.T @ np.linalg.inv(a0 + kp @ kp.T + k @ k.T) @ projector
    system = GrowingSystem.start(base, tensor(past), D)
    # float32 keys, as they are read from a model, are taken as they are
    got = update_factor(system, tensor(keys)).numpy()
    assert np.linalg.norm(got - want) <= 1e-10 * np.linalg.norm(want)
    assert update_factor(system, tensor(keys).float()).dtype == torch.float64


def test_a_singular_matrix_is_named() -> None:
    flat = torch.diag(torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64))
    with pytest.raises(NumericalError) as caught:
        DenseBase(flat, what="lambda * C of layer 5 (12 tokens)")
    assert "lambda * C of layer 5 (12 tokens) is not positive definite: leading minor 3 of 4" in str(caught.value)
    assert "more tokens" in str(caught.value)


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NumericalError, match="A is not positive definite"):
        DenseBase(torch.full((3, 3), torch.nan, dtype=torch.float64), what="A")


def test_null_space_holds_the_thinner_basis() -> None:
    rng = np.random.default_rng(5)
    vectors = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    for free in range(10):
        values = np.array([1e-3] * free + [1.0] * (9 - free))
        basis, complement, found = null_space(tensor(vectors @ np.diag(values) @ vectors.T), 2e-2)
        assert found == free
        assert basis.shape[1] == min(free, 9 - free)
        held = basis.numpy() @ basis.numpy().T
        projector = np.eye(9) - held if complement else held
        np.testing.assert_allclose(projector, vectors[:, :free] @ vectors[:, :free].T, atol=1e-12)


def state_of(editor: object, cov: np.ndarray, past: np.ndarray, tokens: int = 50) -> LifelongState:
    held = KeyCovariance({3: tensor(cov) * tokens}, tokens, {"kind": "test"})
    state = LifelongState.start({3: cov.shape[0]}, held, editor.base_of)  # type: ignore[attr-defined]
    for at in range(0, past.shape[1], 4):
        part = torch.tensor(past[:, at : at + 4], dtype=torch.float32)
        names = [f"r{at + i}" for i in range(part.shape[1])]
        state = state.appended({3: part}, names, names)
    return state


def keys32(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Keys that float32 holds exactly, so that the formulas are compared and not the rounding of inputs."""
    return rng.standard_normal((size, count)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("weight", [0.5, 15_000.0])
@pytest.mark.parametrize("count", [0, 8, 40])
def test_memit_right_factor(weight: float, count: int) -> None:
    """R K^T (lambda C + K_p K_p^T + K K^T)^-1, METHODS section 2."""
    rng = np.random.default_rng(6)
    C, K_p, K = covariance(rng, 30), keys32(rng, 30, count), keys32(rng, 30, 6)
    editor = make_editor(MemitConfig(layers=(3,), cov_weight=weight))
    got = editor.right_factor(3, torch.tensor(K, dtype=torch.float32), state_of(editor, C, K_p))  # type: ignore[attr-defined]
    want = K.T @ np.linalg.inv(weight * C + K_p @ K_p.T + K @ K.T)
    assert np.linalg.norm(got.numpy() - want) <= 1e-9 * np.linalg.norm(want)


def test_memit_as_first_published_forgets_past_keys() -> None:
    rng = np.random.default_rng(6)
    C, K_p, K = covariance(rng, 30), keys32(rng, 30, 8), keys32(rng, 30, 6)
    editor = make_editor(MemitConfig(layers=(3,), cov_weight=2.0, past_keys=False))
    got = editor.right_factor(3, torch.tensor(K, dtype=torch.float32), state_of(editor, C, K_p))  # type: ignore[attr-defined]
    want = K.T @ np.linalg.inv(2.0 * C + K @ K.T)
    assert np.linalg.norm(got.numpy() - want) <= 1e-9 * np.linalg.norm(want)


@pytest.mark.parametrize("rank", [5, 25])  # the null space is the wider, then the thinner part
@pytest.mark.parametrize("count", [0, 8, 40])
def test_alphaedit_right_factor(rank: int, count: int) -> None:
    """R K^T P (K_p K_p^T P + K K^T P + l2 I)^-1, METHODS section 2, with the unsymmetric matrix as it stands."""
    rng = np.random.default_rng(8)
    C, K_p, K = covariance(rng, 30, rank=rank), keys32(rng, 30, count), keys32(rng, 30, 6)
    values, vectors = np.linalg.eigh(C)
    U = vectors[:, values < 2e-2]
    assert U.shape[1] == 30 - rank
    P = U @ U.T
    want = K.T @ P @ np.linalg.inv(K_p @ K_p.T @ P + K @ K.T @ P + 10.0 * np.eye(30))
    editor = make_editor(AlphaEditConfig(layers=(3,), tau=2e-2, l2=10.0))
    got = editor.right_factor(3, torch.tensor(K, dtype=torch.float32), state_of(editor, C, K_p)).numpy()  # type: ignore[attr-defined]
    assert np.linalg.norm(got - want) <= 1e-9 * np.linalg.norm(want)
    # protected directions stay as they are
    protected = vectors[:, values >= 2e-2]
    assert np.abs(got @ protected).max() <= 1e-12 * np.abs(got).max()


def test_alphaedit_without_a_free_direction_is_refused() -> None:
    editor = make_editor(AlphaEditConfig(layers=(3,), tau=1e-9))
    with pytest.raises(UserError, match=r"editor\.tau 1e-09 leaves no direction free at layer 3"):
        state_of(editor, covariance(np.random.default_rng(0)), np.zeros((D, 0)))


@pytest.mark.parametrize("config", [MemitConfig(layers=(3,), cov_weight=1e-4), AlphaEditConfig(layers=(3,), l2=1e-4)])
def test_editing_the_same_key_again(config: MemitConfig | AlphaEditConfig) -> None:
    """With the old key taken out the whole residual is stored each time; left in, the n-th edit stores a 1/n share."""
    rng = np.random.default_rng(9)
    C = 1e-3 * np.eye(30)
    editor = make_editor(config)
    key = torch.tensor(rng.standard_normal((30, 1)), dtype=torch.float32)
    other = torch.tensor(rng.standard_normal((30, 2)), dtype=torch.float32)
    empty = state_of(editor, C, np.zeros((30, 0))).appended({3: other}, ["x", "y"], ["fx", "fy"])
    replaced = kept = empty
    for n in range(1, 5):
        stored = {}
        replaced = replaced.without(replaced.holding(["f"]))
        for name, state in (("replaced", replaced), ("kept", kept)):
            stored[name] = float(editor.right_factor(3, key, state) @ key.double())  # type: ignore[attr-defined]
        assert stored["replaced"] == pytest.approx(1.0, abs=1e-3)
        assert stored["kept"] == pytest.approx(1 / n, abs=1e-3)
        replaced = replaced.appended({3: key}, [f"r{n}"], ["f"])
        kept = kept.appended({3: key}, [f"r{n}"], ["f"])
    assert replaced.request_ids == ("x", "y", "r4")
    assert replaced.keys[3].shape == (30, 3)


def test_a_new_covariance_keeps_the_past_keys_whole() -> None:
    """The state holds the keys themselves: what one projector hid counts again under the next."""
    rng = np.random.default_rng(10)
    first, second = (covariance(rng, 30, rank=12) for _ in range(2))
    K_p, K = keys32(rng, 30, 8), torch.tensor(keys32(rng, 30, 3), dtype=torch.float32)
    editor = make_editor(AlphaEditConfig(layers=(3,)))
    swapped = state_of(editor, first, K_p).with_covariance(
        KeyCovariance({3: tensor(second) * 10}, 10, {"kind": "later"})
    )
    fresh = state_of(editor, second, K_p)
    assert torch.equal(swapped.keys[3], fresh.keys[3])
    got, want = (editor.right_factor(3, K, state) for state in (swapped, fresh))  # type: ignore[attr-defined]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
