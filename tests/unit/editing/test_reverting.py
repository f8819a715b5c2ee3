"""Reverts leave what would have been without the edit, for editors that commute and for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.editors.closed_form.emmet import EmmetConfig
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.editors.closed_form.mose import MoseConfig, MoseValues
from errata.editing.editors.closed_form.pmet import PmetConfig, PmetValues
from errata.editing.editors.closed_form.prune import PruneConfig
from errata.editing.editors.closed_form.rect import RectConfig
from errata.editing.editors.closed_form.rome import RomeConfig, RomeValues
from errata.editing.editors.closed_form.rose import RoseConfig
from errata.editing.editors.gradient.ft_l import FtLConfig
from errata.editing.editors.gradient.ultraedit import UltraEditConfig
from errata.editing.errors import ErrataError, NumericalError
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder, contribution, revert
from errata.editing.session import EditReceipt, EditSession
from errata.editing.values import ValueConfig
from tests.helpers.tiny import tiny_model

VALUES = ValueConfig(lr=0.3, steps=2, clamp=2.0, weight_decay=0.0)
MEMIT = MemitConfig(layers=(0, 1), cov_weight=2.0, values=VALUES)
ALPHA = AlphaEditConfig(layers=(0, 1), tau=1.0, l2=1.0, values=VALUES)
COMMUTING = [
    MEMIT,
    ALPHA,
    PmetConfig(layers=(0, 1), cov_weight=2.0, values=PmetValues(lr=0.3, steps=2)),
    EmmetConfig(layers=(0, 1), values=VALUES),
    RomeConfig(layers=(1,), values=RomeValues(lr=0.3, steps=2)),
    RoseConfig(layers=(0, 1), cov_weight=2.0),
]
OTHERS = [
    FtLConfig(layers=(1,), steps=2, lr=1e-3),
    UltraEditConfig(layers=(0, 1), lr=1e-3),
    RectConfig(layers=(0, 1), cov_weight=2.0, values=VALUES),
    PruneConfig(layers=(0, 1), cov_weight=2.0, base=8.0, values=VALUES),
    MoseConfig(layers=(0, 1), values=MoseValues(lr=0.3, steps=2)),
]
Build = Callable[..., EditSession]


@pytest.fixture
def build(spread_covariance: Callable[..., KeyCovariance]) -> Build:
    """Sessions on models of their own that start from the same bytes."""

    def make(config: Any = MEMIT) -> EditSession:
        model = tiny_model("llama", layers=3)
        editor = make_editor(config)
        covariance = spread_covariance(model, editor.layers) if editor.needs_covariance else None
        return EditSession(model, editor, covariance, ("", "You. "))

    return make


class Run:
    """A session with the history it has, as a journal would keep it."""

    def __init__(self, session: EditSession) -> None:
        self.session = session
        covariance = session.state.covariance
        self.items: list[HistoryItem] = [] if covariance is None else [covariance]
        self.requests: dict[str, EditRequest] = {}
        self.gone: set[str] = set()

    def edit(self, *requests: EditRequest) -> EditReceipt:
        receipt = self.session.apply(EditBatch(sequence=self.session.sequence + 1, requests=requests))
        self.items.append(receipt)
        self.requests |= {request.id: request for request in requests}
        return receipt

    def swap(self, covariance: KeyCovariance) -> None:
        self.session.swap_covariance(covariance)
        self.items.append(covariance)

    def order(self, *names: str) -> RevertOrder:
        gone = self.gone | set(names)
        edits = [i for i in self.items if isinstance(i, EditReceipt) and i.kind == "edit"]
        touched = {i.sequence: i.delta for i in edits if set(names) & set(i.request_ids)}
        for item in self.items:
            if isinstance(item, EditReceipt) and item.kind == "revert":
                touched |= {b: found for b in touched if (found := contribution(item, b)) is not None}
        first = min(i.sequence for i in edits if gone & set(i.request_ids))
        return RevertOrder(self.session.sequence + 1, names, frozenset(gone), touched, first, self.requests)  # type: ignore[arg-type]

    def revert(self, *names: str) -> EditReceipt:
        receipt = revert(self.session, self.order(*names), list(self.items))
        self.gone |= set(names)
        self.items.append(receipt)
        return receipt


def close(left: EditSession, right: EditSession, atol: float = 1e-6) -> None:
    for layer, weight in left.weights().items():
        torch.testing.assert_close(weight, right.weights()[layer], rtol=0, atol=atol)


def names(requests: Sequence[EditRequest]) -> tuple[str, ...]:
    return tuple(request.id for request in requests)


@pytest.mark.parametrize("config", COMMUTING + OTHERS, ids=lambda config: config.type)
def test_after_a_revert_of_the_newest_batch_all_is_as_if_it_had_been_made_without_the_edit(
    build: Build, requests: list[EditRequest], config: Any
) -> None:
    run, other = Run(build(config)), Run(build(config))
    for each in (run, other):
        each.edit(*requests[:2])
    receipt = run.edit(*requests[2:5])
    run.revert(requests[3].id)
    # values found together may differ from values found apart: the oracle takes the stored ones where the editor does
    walk = other.session
    if other.session.editor.commutes:
        editor: Any = walk.editor
        assert receipt.targets is not None
        kept = [requests[2], requests[4]]
        changes, keys = editor.write(walk.model, kept, receipt.targets[[0, 2]], walk.state, walk.contexts)
        from errata.editing.delta import apply_delta

        for layer, change in changes.items():
            walk.model.set_weight(layer, apply_delta(walk.model.weight(layer), change))
        walk.state = walk.state.appended(keys, names(kept), tuple(r.fact_key for r in kept))
    else:
        other.edit(requests[2], requests[4])
    close(run.session, walk)
    assert run.session.state.request_ids == walk.state.request_ids
    for layer, past in walk.state.keys.items():
        assert torch.equal(run.session.state.keys[layer], past)
    for name, value in walk.state.memory.items():
        assert torch.equal(run.session.state.memory[name], value)


@pytest.mark.parametrize("config", [ALPHA, MEMIT, OTHERS[0], OTHERS[4]], ids=lambda config: config.type)
def test_a_replay_across_reverts_gives_the_same_bits(build: Build, requests: list[EditRequest], config: Any) -> None:
    run = Run(build(config))
    run.edit(*requests[:3])
    run.revert(requests[1].id)
    run.edit(requests[3])
    run.revert(requests[0].id)
    run.edit(requests[4])
    fresh = build(config)
    for item in run.items[int(run.session.state.covariance is not None) :]:
        assert isinstance(item, EditReceipt)
        fresh.replay(item)
    for layer, weight in run.session.weights().items():
        assert torch.equal(weight, fresh.weights()[layer])
    left, right = run.session.state.tensors(), fresh.state.tensors()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert run.session.state.request_ids == fresh.state.request_ids


def test_reverting_one_after_the_other_is_reverting_both(build: Build, requests: list[EditRequest]) -> None:
    one, both = Run(build(ALPHA)), Run(build(ALPHA))
    for run in (one, both):
        run.edit(*requests[:3])
        run.edit(*requests[3:5])
    one.revert(requests[0].id)
    one.revert(requests[2].id)
    both.revert(requests[0].id, requests[2].id)
    close(one.session, both.session)
    assert set(one.session.state.request_ids) == set(both.session.state.request_ids)


def test_edits_of_several_batches_leave_in_one_commit_and_what_came_later_stays(
    build: Build, requests: list[EditRequest]
) -> None:
    run = Run(build(ALPHA))
    run.edit(*requests[:2])
    run.edit(*requests[2:4])
    before = run.session.weights()
    later = run.edit(requests[4])
    receipt = run.revert(*names(requests[:4]))
    assert [(part.sequence, part.width) for part in receipt.parts] == [(1, 0), (2, 0)]
    base, assert_delta = run.session.base, later.delta
    assert assert_delta is not None
    for layer, change in assert_delta.layers.items():
        assert change.right is not None
        torch.testing.assert_close(
            run.session.weights()[layer], base[layer] + change.left @ change.right, rtol=0, atol=1e-6
        )
        assert not torch.equal(before[layer], base[layer])
    assert run.session.state.request_ids == (requests[4].id,)


def test_computing_a_batch_again_without_losing_any_request_changes_nothing(
    build: Build, requests: list[EditRequest], spread_covariance: Callable[..., KeyCovariance]
) -> None:
    """The walk through the history puts weights, state and covariance exactly where the batch found them."""
    run = Run(build(ALPHA))
    run.edit(*requests[:2])
    run.swap(spread_covariance(run.session.model, (0, 1), seed=3))
    second = run.edit(*requests[2:4])
    order = RevertOrder(3, (), frozenset(), {2: second.delta}, 2, run.requests)  # type: ignore[dict-item]
    again = contribution(revert(run.session, order, list(run.items)), 2)
    assert again is not None and second.delta is not None and again.digest == second.delta.digest


def test_an_overwritten_request_stays_in_its_batch_but_its_key_does_not_come_back(
    build: Build, requests: list[EditRequest]
) -> None:
    run = Run(build(ALPHA))
    run.edit(*requests[:3])
    newer = requests[1].model_copy(update={"id": "newer", "target_new": "football"})
    run.edit(newer)
    receipt = run.revert(requests[0].id)
    assert receipt.request_ids == (requests[2].id,)
    assert receipt.parts[0].width == 2
    assert set(run.session.state.request_ids) == {requests[2].id, "newer"}


def test_a_fact_reverted_and_edited_again_is_stored_whole(build: Build, requests: list[EditRequest]) -> None:
    """Its old key has left the past keys: else the new edit would store a share of its residual only."""
    run = Run(build(AlphaEditConfig(layers=(1,), tau=1e9, l2=1e-6, values=VALUES)))
    run.edit(*requests[:2])
    run.revert(requests[0].id)
    again = run.edit(requests[0].model_copy(update={"id": "again"}))
    assert again.delta is not None
    change, key = again.delta.layers[1], again.keys[1]
    assert change.right is not None
    torch.testing.assert_close(change.right @ key, torch.eye(1), rtol=0, atol=1e-3)


def test_the_same_revert_twice_is_one_commit(build: Build, requests: list[EditRequest]) -> None:
    run = Run(build(ALPHA))
    run.edit(*requests[:2])
    order = run.order(requests[0].id)
    first = revert(run.session, order, list(run.items))
    weights = run.session.weights()
    assert revert(run.session, order, list(run.items)) is first
    assert all(torch.equal(weights[layer], weight) for layer, weight in run.session.weights().items())


def test_a_revert_out_of_order_or_of_a_batch_that_is_not_there_changes_nothing(
    build: Build, requests: list[EditRequest]
) -> None:
    run = Run(build(ALPHA))
    run.edit(*requests[:2])
    weights, state = run.session.weights(), run.session.state
    order = run.order(requests[0].id)
    with pytest.raises(ErrataError, match="revert 7 does not follow batch 1"):
        revert(run.session, RevertOrder(7, *list(vars(order).values())[1:]), list(run.items))
    with pytest.raises(ErrataError, match=r"does not hold the batches \[1\]"):
        revert(run.session, order, run.items[:1])
    assert run.session.state is state and run.session.sequence == 1
    assert all(torch.equal(weights[layer], weight) for layer, weight in run.session.weights().items())


def test_an_edit_that_cannot_be_applied_without_the_others_stops_the_revert(
    build: Build, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(build(OTHERS[0]))
    run.edit(*requests[:2])
    monkeypatch.setattr(EditSession, "_check", lambda self, asked: ([], {r.id: "no more" for r in asked}))
    weights = run.session.weights()
    with pytest.raises(NumericalError, match=f"edit '{requests[1].id}' of batch 1 cannot be applied: no more"):
        revert(run.session, run.order(requests[0].id), list(run.items))
    assert all(torch.equal(weights[layer], weight) for layer, weight in run.session.weights().items())


@pytest.mark.parametrize("config", [ALPHA, OTHERS[1], OTHERS[3], OTHERS[4]], ids=lambda config: config.type)
def test_a_session_resumed_from_a_snapshot_goes_on_with_the_same_bits(
    build: Build, requests: list[EditRequest], config: Any
) -> None:
    run = Run(build(config))
    run.edit(*requests[:2])
    run.revert(requests[0].id)
    snapshot = run.session.snapshot()
    fresh = build(config)
    fresh.resume(snapshot)
    assert fresh.sequence == 2
    for session in (run.session, fresh):
        session.apply(EditBatch(sequence=3, requests=tuple(requests[2:4])))
    for layer, weight in run.session.weights().items():
        assert torch.equal(weight, fresh.weights()[layer])
    left, right = run.session.state.tensors(), fresh.state.tensors()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_snapshot_of_other_layers_or_another_covariance_is_refused(
    build: Build, requests: list[EditRequest], spread_covariance: Callable[..., KeyCovariance]
) -> None:
    session = build(ALPHA)
    session.apply(EditBatch(sequence=1, requests=tuple(requests[:1])))
    snapshot = session.snapshot()
    other = build(ALPHA)
    other.swap_covariance(spread_covariance(other.model, (0, 1), seed=9))
    with pytest.raises(ErrataError, match="the snapshot was made on covariance"):
        other.resume(snapshot)
    with pytest.raises(ErrataError, match=r"holds layers \[0, 1\], want \[1\]"):
        build(AlphaEditConfig(layers=(1,), tau=1.0, values=VALUES)).resume(snapshot)
