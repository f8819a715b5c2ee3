"""Lifetimes of appends and removals against float64 from scratch, and to the bit against their replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from errata.editing import columns, forms
from errata.editing.bases import Base, DenseBase, ProjectedIdentity, ScaledIdentity
from errata.editing.columns import Columns, Grid, Panels
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.editing.forms import CapacitanceForm, GramForm
from errata.editing.linalg import GrowingSystem, update_factor
from errata.editing.state import LifelongState

D = 40
RIDGES = [0.01, 1.0, 10.0, 15_000.0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 columns, so that forty dimensions have several, and factors that are cleared of a few keys."""
    monkeypatch.setattr(columns, "BLOCK", 8)
    monkeypatch.setattr(forms, "_FEW_GONE", 5)


def base_of(kind: str, ridge: float, rng: np.random.Generator) -> tuple[Base, np.ndarray, np.ndarray]:
    """A base with its A_0 on the whole space and its projector."""
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    moment = basis @ np.diag(np.geomspace(3.0, 0.05, D)) @ basis.T
    part = torch.tensor(basis[:, :9])
    thin, eye = basis[:, :9] @ basis[:, :9].T, np.eye(D)
    return {
        "dense": (DenseBase(torch.tensor(ridge * moment), what="A"), ridge * moment, eye),
        "scaled": (ScaledIdentity(ridge), ridge * eye, eye),
        "complement": (ProjectedIdentity(ridge, part, complement=True), ridge * eye, eye - thin),
        "thin": (ProjectedIdentity(ridge, part, complement=False), ridge * eye, thin),
    }[kind]


Step = tuple[np.ndarray | None, list[int]]


def life(rng: np.random.Generator, steps: int, swing: int) -> Iterator[Step]:
    """Steps of a lifetime: new keys, float32 and some of them strong or repeated, or the numbers of those that leave.

    The number of keys swings between few and more than D.
    """
    count, newest = 0, np.zeros((D, 1), np.float32)
    for step in range(steps):
        if count < 4 or ((step // swing) % 2 == 0 and count < D + 25):
            keys = rng.standard_normal((D, int(rng.integers(1, 4)))).astype(np.float32)
            keys *= np.float32(30.0 if step % 7 == 0 else 1.0)
            if step % 5 == 0:
                keys[:, 0] = newest[:, 0]  # a fact that is written again brings the key it had
            newest, count = keys, count + keys.shape[1]
            yield keys, []
        else:
            gone = sorted(rng.choice(count, size=int(rng.integers(1, 4)), replace=False).tolist())
            count -= len(gone)
            yield None, gone


def walk(system: GrowingSystem, step: Step) -> GrowingSystem:
    keys, gone = step
    return system.without(gone) if keys is None else system.append(torch.from_numpy(keys))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("kind", ["dense", "scaled", "complement", "thin"])
def test_two_thousand_random_changes(kind: str, ridge: float) -> None:
    """Against a system solved from scratch, in both forms, and against the system's own replay, bit for bit."""
    rng = np.random.default_rng(11)
    base, a0, projector = base_of(kind, ridge, rng)
    steps = list(life(np.random.default_rng(12), 2000, 60))
    again, _, _ = base_of(kind, ridge, np.random.default_rng(11))
    empty = torch.zeros(D, 0, dtype=torch.float64)
    system, replay = GrowingSystem.start(base, empty, D), GrowingSystem.start(again, empty, D)
    past = np.zeros((D, 0))
    kinds, worst, peak = set(), 0.0, 0.0
    smallest = float(np.linalg.eigvalsh(a0)[0])
    for number, step in enumerate(steps):
        keys, gone = step
        past = np.delete(past, gone, axis=1) if keys is None else np.concatenate([past, keys.astype(float)], axis=1)
        system, replay = walk(system, step), walk(replay, step)
        kinds.add(type(system.form))
        if number % 10 and number != len(steps) - 1:
            continue
        right = projector @ rng.standard_normal((D, 2))
        got = system.solve(base.restrict(torch.tensor(right)))
        assert torch.equal(got, replay.solve(base.restrict(torch.tensor(right)))), f"step {number}"
        inside = projector @ past
        want = projector @ np.linalg.solve(a0 + inside @ inside.T, right)
        worst = max(worst, float(np.linalg.norm(got.numpy() - want) / np.linalg.norm(want)))
        peak = max(peak, float(np.linalg.norm(past, 2)) ** 2)
    assert kinds == {CapacitanceForm, GramForm}
    # what float64 allows: a sum that once was as large as the peak keeps its last digit of then
    allowed = max(1e-13, np.finfo(float).eps * peak / smallest)
    assert worst <= allowed, f"worst {worst:.2g}, allowed {allowed:.2g}"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["dense", "complement"])
def test_a_factor_that_keys_have_left_answers_as_one_that_never_had_them(kind: str) -> None:
    rng = np.random.default_rng(2)
    base, a0, projector = base_of(kind, 0.5, rng)
    keys = rng.standard_normal((D, 30))
    system = GrowingSystem.start(base, torch.tensor(keys), D)
    gone = [0, 3, 17, 18]
    system = system.without(gone)
    assert isinstance(system.form, CapacitanceForm) and system.form.changed, "nothing was computed afresh"
    inside = projector @ np.delete(keys, gone, axis=1)
    right = projector @ rng.standard_normal((D, 3))
    want = projector @ np.linalg.solve(a0 + inside @ inside.T, right)
    np.testing.assert_allclose(system.solve(torch.tensor(right)).numpy(), want, rtol=0, atol=1e-12)
    assert system.without(list(range(26))).count == 0
    one = system.append(torch.tensor(keys[:, :2])).without([26, 27])
    torch.testing.assert_close(one.solve(torch.tensor(right)), torch.tensor(want), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [12, 60])  # with a factor, with an inverse
def test_keys_leave_by_number_or_by_value(count: int) -> None:
    rng = np.random.default_rng(4)
    base, _, _ = base_of("dense", 1.0, rng)
    keys = torch.tensor(rng.standard_normal((D, count)))
    system = GrowingSystem.start(base, keys, D)
    right = torch.tensor(rng.standard_normal((D, 2)))
    by_number, by_value = system.without([1, 5]), system.without(keys[:, [1, 5]])
    assert torch.equal(by_number.solve(right), by_value.solve(right))
    with pytest.raises(ErrataError, match=f"key 1 of those to leave is not among the {count - 2} past keys"):
        by_value.without(keys[:, [7, 5]])


def test_a_system_that_holds_no_keys_says_so() -> None:
    base = ScaledIdentity(2.0)
    system = GrowingSystem.over(base, Columns.of(torch.randn(D, D + 3)), keep=False)
    with pytest.raises(ErrataError, match="give the keys that are to leave"):
        system.without([0])
    with pytest.raises(ErrataError, match="holds no past keys"):
        print(system.past)


@pytest.mark.parametrize("kind", ["dense", "complement"])
def test_a_bounded_state_forgets_its_keys_and_answers_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw keys go once there are d_in of them; what leaves is said from outside; another covariance is no matter."""
    monkeypatch.setattr(forms, "_FEW_GONE", 3)
    rng = np.random.default_rng(5)
    moments = [KeyCovariance({1: torch.tensor(_moment(rng)) * 9}, 9, {"kind": str(i)}) for i in range(2)]

    def make(covariance: KeyCovariance, layer: int) -> Base:
        matrix = covariance.mean(layer).double()
        if kind == "dense":
            return DenseBase(0.3 * matrix, what="A")
        return ProjectedIdentity(0.3, torch.linalg.eigh(matrix)[1][:, -6:], complement=True)

    bounded = LifelongState.start({1: D}, moments[0], make, bounded=True)
    whole = LifelongState.start({1: D}, moments[0], make)
    known: dict[str, dict[int, torch.Tensor]] = {}
    right = torch.tensor(rng.standard_normal((D, 2)))
    for number in range(70):
        keys = {1: torch.tensor(rng.standard_normal((D, 2)), dtype=torch.float32)}
        names, facts = [f"r{number}.0", f"r{number}.1"], [f"f{number % 29}.0", f"f{number % 29}.1"]
        known |= {name: {1: keys[1][:, i]} for i, name in enumerate(names)}
        old = bounded.holding(facts)
        assert old == whole.holding(facts)
        if number == 50:
            bounded, whole = bounded.with_covariance(moments[1]), whole.with_covariance(moments[1])
        bounded = bounded.without(old, known).appended(keys, names, facts)
        whole = whole.without(old).appended(keys, names, facts)
        assert bounded.request_ids == whole.request_ids
        systems = bounded.systems[1], whole.systems[1]
        got, want = (system.solve(system.base.restrict(right)) for system in systems)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert bounded.keys[1].shape[1] == (len(whole.request_ids) if not bounded.wants_keys else 0)
    assert bounded.wants_keys and len(bounded.request_ids) == 58
    with pytest.raises(ErrataError, match=r"the keys of \['r69.0'\] at layer 1 are to leave and are not held any more"):
        bounded.without(["r69.0"])
    size = sum(t.numel() for t in bounded.tensors().values())
    more = bounded
    for number in range(70, 120):
        keys = {1: torch.tensor(rng.standard_normal((D, 2)), dtype=torch.float32)}
        more = more.appended(keys, [f"a{number}", f"b{number}"], [f"a{number}", f"b{number}"])
    assert sum(t.numel() for t in more.tensors().values()) <= size + 4 * 8 * D, "no tensor grows any more"


def _moment(rng: np.random.Generator) -> np.ndarray:
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return basis @ np.diag(np.geomspace(0.1, 4.0, D)) @ basis.T


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("until", [40, 130])
@pytest.mark.parametrize("kind", ["dense", "complement"])
def test_a_lifetime_goes_on_from_a_file_to_the_bit(kind: str, until: int) -> None:
    rng = np.random.default_rng(6)
    base, _, _ = base_of(kind, 0.1, rng)
    steps = list(life(np.random.default_rng(7), 200, 30))
    system = GrowingSystem.start(base, torch.zeros(D, 0, dtype=torch.float64), D)
    for step in steps[:until]:
        system = walk(system, step)
    form = type(system.form).restored(base, {name: t.clone() for name, t in system.form.tensors().items()})
    other = GrowingSystem(form, None if system.held is None else Columns.of(system.held.dense()))
    right = base.restrict(torch.tensor(rng.standard_normal((D, 2))))
    for step in steps[until:]:
        assert torch.equal(system.solve(right), other.solve(right))
        system, other = walk(system, step), walk(other, step)
    assert torch.equal(system.solve(right), other.solve(right))


def test_a_capacitance_of_an_earlier_release_goes_on() -> None:
    """Earlier releases kept one whole factor."""
    rng = np.random.default_rng(8)
    base, a0, _ = base_of("dense", 1.0, rng)
    past = torch.tensor(rng.standard_normal((D, 5)))
    solved = torch.tensor(np.linalg.solve(a0, past.numpy()))
    s = np.eye(5) + past.numpy().T @ solved.numpy()
    old = {"past": past, "solved": solved, "factor": torch.tensor(np.linalg.cholesky(s))}
    system = GrowingSystem(CapacitanceForm.restored(base, old), None)
    right = torch.tensor(rng.standard_normal((D, 2)))
    for gone in ([], [0, 3]):
        kept = np.delete(past.numpy(), gone, axis=1)
        want = np.linalg.solve(a0 + kept @ kept.T, right.numpy())
        now = system.without(past[:, gone]) if gone else system
        np.testing.assert_allclose(now.solve(right).numpy(), want, rtol=1e-9, atol=1e-12)


# --- the parts ---


@pytest.mark.usefixtures("small_blocks")
def test_columns_are_values_however_they_share() -> None:
    rng = np.random.default_rng(9)
    known: list[tuple[Columns, np.ndarray]] = [(Columns.of(torch.zeros(3, 0, dtype=torch.float64)), np.zeros((3, 0)))]
    for _ in range(300):
        value, plain = known[int(rng.integers(len(known)))]
        if plain.shape[1] > 2 and rng.random() < 0.3:
            gone = sorted(rng.choice(plain.shape[1], size=2, replace=False).tolist())
            known.append((value.without(gone), np.delete(plain, gone, axis=1)))
        else:
            new = rng.standard_normal((3, int(rng.integers(1, 12))))
            known.append((value.append(torch.tensor(new)), np.concatenate([plain, new], axis=1)))
    for value, plain in known:
        assert value.count == plain.shape[1]
        np.testing.assert_array_equal(value.dense().numpy(), plain)
        x, t = torch.tensor(rng.standard_normal((3, 2))), torch.tensor(rng.standard_normal((value.total, 2)))
        torch.testing.assert_close(value.tdot(x), value.whole().T @ x)
        torch.testing.assert_close(value.dot(t), value.whole() @ t)
        places = value.places(list(range(plain.shape[1])))
        np.testing.assert_array_equal(value.at(places).numpy(), plain)


@pytest.mark.usefixtures("small_blocks")
def test_panels_are_a_cholesky_factor() -> None:
    rng = np.random.default_rng(10)
    half = rng.standard_normal((30, 40))
    whole = torch.tensor(np.linalg.cholesky(half @ half.T))
    panels, older, at = Panels.empty(whole), [], 0
    while at < 30:
        take = min(panels.room, 3, 30 - at)
        panels = panels.append(whole[at : at + take, :at], whole[at : at + take, at : at + take].contiguous())
        at += take
        older.append((at, panels))
    for size, value in [*older, (30, Panels.split(whole)), (30, Panels.of(panels.tensors(), whole))]:
        assert value.size == size
        factor, right = whole[:size, :size], torch.tensor(rng.standard_normal((size, 2)))
        torch.testing.assert_close(factor @ value.forward(right), right)
        torch.testing.assert_close(factor.T @ value.backward(right), right)
        torch.testing.assert_close(factor @ (factor.T @ value.solve(right)), right)


def test_grids_are_values() -> None:
    rng = np.random.default_rng(1)
    known = [(Grid.of(torch.zeros(0, 0, dtype=torch.float64)), np.zeros((0, 0)))]
    for _ in range(120):
        value, plain = known[int(rng.integers(len(known)))]
        if rng.random() < 0.5:
            new = rng.standard_normal((int(rng.integers(1, 4)), plain.shape[1]))
            known.append((value.rows(torch.tensor(new)), np.concatenate([plain, new])))
        else:
            new = rng.standard_normal((plain.shape[0], int(rng.integers(1, 4))))
            known.append((value.columns(torch.tensor(new)), np.concatenate([plain, new], axis=1)))
    for value, plain in known:
        np.testing.assert_array_equal(value.view().numpy(), plain)


@pytest.mark.parametrize("gone", [0, 7])
def test_keys_join_with_the_same_bits_whether_they_were_solved_for_before_or_not(gone: int) -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(640, 5, generator=generator, dtype=torch.float64))[0]
    base = ProjectedIdentity(0.7, basis, complement=True)
    system = GrowingSystem.start(base, torch.randn(640, 530, generator=generator), 640)  # more than a panel
    system = system.without(list(range(20, 20 + gone)))
    keys, probe = torch.randn(640, 9, generator=generator), torch.randn(640, 2, generator=generator).double()
    plain = system.append(keys)
    again = GrowingSystem(replace(system.form), system.held)
    update_factor(again, keys)
    told = again.append(keys)
    other = GrowingSystem(replace(system.form), system.held)
    update_factor(other, keys.T.contiguous().T)  # laid out another way: computed afresh
    for grown in (told, other.append(keys)):
        assert torch.equal(grown.solve(probe), plain.solve(probe))
        assert grown.form.tensors().keys() == plain.form.tensors().keys()
        assert all(torch.equal(part, plain.form.tensors()[name]) for name, part in grown.form.tensors().items())


def test_high_columns_are_multiplied_as_any_are() -> None:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(2100, 700, generator=generator, dtype=torch.float64)
    for width in (1, 2, 10):
        x = torch.randn(2100, width, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(Columns.of(matrix).tdot(x), matrix.T @ x, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kind", ["dense", "scaled", "complement", "thin"])
def test_a_gram_matrix_is_restricted_in_place_as_by_the_formula(kind: str) -> None:
    rng = np.random.default_rng(5)
    base, _, projector = base_of(kind, 2.0, rng)
    keys = rng.standard_normal((D, 90))
    full, gram = torch.eye(D, dtype=torch.float64), torch.tensor(keys @ keys.T)
    base.add_restricted(full, gram)
    np.testing.assert_allclose(full.numpy(), np.eye(D) + projector @ keys @ keys.T @ projector, rtol=0, atol=1e-11)


def test_high_keys_that_leave_are_projected_out_with_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of high keys keeps Y^T Y: the same answers, and the same bits from a file and from a replay."""
    rng = np.random.default_rng(6)
    batches = [torch.tensor(rng.standard_normal((D, 6))) for _ in range(4)]
    base, a0, projector = base_of("complement", 2.0, rng)

    def lived(system: GrowingSystem, after: int = 0) -> Iterator[GrowingSystem]:
        for keys in batches[after:]:
            system = system.append(keys).without([1, 4])
            yield system

    empty = torch.zeros(D, 0, dtype=torch.float64)
    x = base.restrict(torch.tensor(rng.standard_normal((D, 3))))
    low = [system.solve(x) for system in lived(GrowingSystem.start(base, empty, D))]
    monkeypatch.setattr(forms, "HIGH", D - 1)
    high = list(lived(GrowingSystem.start(base, empty, D)))
    for below, above in zip(low, high, strict=True):
        torch.testing.assert_close(above.solve(x), below, rtol=1e-12, atol=1e-13)
        want = np.linalg.solve(a0 + projector @ (above.past @ above.past.T).numpy() @ projector, x.numpy())
        np.testing.assert_allclose(above.solve(x).numpy(), projector @ want, rtol=0, atol=1e-12)
    assert isinstance(high[1].form, CapacitanceForm) and high[1].form.cross.shape == (4, 4)
    read = GrowingSystem(CapacitanceForm.restored(base, high[1].form.tensors()), high[1].held)
    last = list(lived(read, after=2))[-1]
    assert torch.equal(last.solve(x), high[-1].solve(x))
