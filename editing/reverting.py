"""Taking edits out again: the batches they came in are computed anew without them.

An editor whose updates commute computes only those batches, from the target values that were found for them, on the
weights and the state that they were computed on; what later batches added stays. Any other editor computes everything
from the first such batch on again. Either way the result is one more change: the parent's weights go in, the reverted
ones come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errata.editing.corrections import written_again
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Sweep
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.editors.modules.store import StoreEditor
from errata.editing.errors import ErrataError, NumericalError
from errata.editing.model.decoder import is_module, layer_of
from errata.editing.modules.packed import replacing
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditReceipt, EditSession, Part, Snapshot
from errata.editing.state import OldKeys

HistoryItem = EditReceipt | KeyCovariance | Snapshot
"""A commit to replay, a covariance that takes effect at that point, or what stands for all that came before."""


@dataclass(frozen=True)
class RevertOrder:
    """What is to be taken out, and what computing without it needs."""

    sequence: int
    """Number of the revert's own commit."""
    taken_out: tuple[str, ...]
    """Requests that leave the weights with this commit."""
    gone: frozenset[str]
    """All that are out of the weights after it: those, and those of earlier reverts."""
    touched: Mapping[int, WeightDelta]
    """Batches that lose a request now, with what each of them contributes to the weights at present."""
    first: int
    """The first batch that lost a request, now or earlier."""
    requests: Mapping[str, EditRequest]
    """By id, at least those that were applied by the batches to be computed again."""
    written_last: Mapping[str, int] = field(default_factory=dict)
    """By request, the commit that wrote it last, where that is not the first: a repair. Its key is of that commit."""
    old_keys: OldKeys = field(default_factory=dict)
    """Keys as they are in the state now, of those that leave it: needed once the editor does not hold them any more."""


def revert(session: EditSession, order: RevertOrder, items: Iterable[HistoryItem]) -> EditReceipt:
    """Take requests out of a session's weights and state.

    Args:
        items: the history in its order, from the beginning; needed up to the last touched batch, or, where updates do
            not commute, up to the newest commit.

    Raises:
        NumericalError: computed again, another request of a batch could not be applied; nothing has changed then.
        ErrataError: the order does not follow the session's last commit.
    """

    def compute(live: EditSession) -> EditReceipt:
        before = live.weights()
        with live.model.patched(live.editor.layers):
            live.model.set_weights(live.base)
            if live.editor.commutes and isinstance(live.editor, LocateEditor):
                return _batches_again(live, live.editor, order, items)
            if isinstance(live.editor, StoreEditor):
                return _entries_out(live, live.editor, before, order)
            return _all_again(live, before, order, items)

    return session.take_out(order.sequence, compute)


def contribution(receipt: EditReceipt, sequence: int) -> WeightDelta | None:
    """What batch ``sequence`` adds to the weights since the revert of ``receipt``; None if that did not touch it."""
    part = next((part for part in receipt.parts if part.sequence == sequence), None)
    if part is None or receipt.delta is None:
        return None
    layers: dict[int, LayerDelta] = {}
    for layer, change in receipt.delta.layers.items():
        assert change.right is not None
        until = part.start + part.width
        layers[layer] = LayerDelta(
            "low_rank", change.left[:, part.start : until].clone(), change.right[part.start : until].clone()
        )
    return WeightDelta(layers, receipt.delta.editor)


# ---------------------------------------------------------------- updates that commute


def _batches_again(
    live: EditSession, editor: LocateEditor, order: RevertOrder, items: Iterable[HistoryItem]
) -> EditReceipt:
    walk = _Walk(live)
    held = set(live.state.request_ids)
    lefts: dict[int, list[Tensor]] = {layer: [] for layer in editor.layers}
    rights: dict[int, list[Tensor]] = {layer: [] for layer in editor.layers}
    keys: dict[int, list[Tensor]] = {layer: [] for layer in editor.layers}
    names: list[str] = []
    parts: list[Part] = []
    at = 0
    missing = set(order.touched)
    for item in items:
        if not missing:
            break
        if isinstance(item, EditReceipt) and item.sequence in missing:
            missing.remove(item.sequence)
            kept = [i for i, name in enumerate(item.request_ids) if name not in order.gone]
            width = 0
            if kept:
                assert item.targets is not None
                requests = [order.requests[item.request_ids[i]] for i in kept]
                state = walk.session().state.without(item.superseded, item.old_keys)
                sweeps = [_cut(sweep, kept) for sweep in item.sweeps or (_only_sweep(item),)]
                changes, columns = written_again(live.model, editor, requests, sweeps, state, live.contexts)
                width = next(iter(_right(change).shape[0] for change in changes.values()))
                # a request that was overwritten meanwhile stays in the weights, but its key has left
                last = order.written_last
                back = [
                    i
                    for i, request in enumerate(requests)
                    if request.id in held and last.get(request.id, item.sequence) == item.sequence
                ]
                names += [requests[i].id for i in back]
                for layer, change in changes.items():
                    lefts[layer].append(change.left)
                    rights[layer].append(_right(change))
                    keys[layer].append(columns[layer][:, back])
            parts.append(Part(item.sequence, at, width))
            old = order.touched[item.sequence]
            for layer, change in old.layers.items():
                lefts[layer].append(-change.left)
                rights[layer].append(_right(change))
            at += width + next(iter(_right(change).shape[0] for change in old.layers.values()))
        walk.take(item)
    if missing:
        raise ErrataError(f"the history does not hold the batches {sorted(missing)}, of which edits are to be reverted")
    changes = {
        layer: LayerDelta(
            "low_rank", torch.cat(lefts[layer], dim=1).contiguous(), torch.cat(rights[layer]).contiguous()
        )
        for layer in editor.layers
    }
    return EditReceipt(
        sequence=order.sequence,
        delta=WeightDelta(changes, editor.config.type),
        results=(),
        request_ids=tuple(names),
        fact_keys=tuple(order.requests[name].fact_key for name in names),
        superseded=(),
        keys={layer: torch.cat(columns, dim=1) for layer, columns in keys.items()} if names else {},
        covariance_digest=live.state.covariance_digest,
        kind="revert",
        taken_out=order.taken_out,
        parts=tuple(parts),
        old_keys=order.old_keys,
    )


def _only_sweep(receipt: EditReceipt) -> Sweep:
    assert receipt.targets is not None
    return Sweep(receipt.targets, torch.ones(len(receipt.targets)), receipt.keys)


def _cut(sweep: Sweep, kept: list[int]) -> Sweep:
    return Sweep(sweep.targets[kept], sweep.ridge[kept], {})


def _right(change: LayerDelta) -> Tensor:
    if change.right is None:
        raise ErrataError(f"an editor whose updates commute gives factors, got a {change.kind} change")
    return change.right


# ---------------------------------------------------------------- entries of a module


def _entries_out(
    live: EditSession, editor: StoreEditor, before: Mapping[int, Tensor], order: RevertOrder
) -> EditReceipt:
    changes = {
        number: LayerDelta("module", replacing(editor.without(packed, order.taken_out), layer_of(number)))
        for number, packed in before.items()
    }
    return EditReceipt(
        sequence=order.sequence,
        delta=WeightDelta(changes, editor.config.type),
        results=(),
        request_ids=(),
        fact_keys=(),
        superseded=(),
        covariance_digest=live.state.covariance_digest,
        kind="revert",
        taken_out=order.taken_out,
    )


# ---------------------------------------------------------------- updates that do not


def _all_again(
    live: EditSession, before: Mapping[int, Tensor], order: RevertOrder, items: Iterable[HistoryItem]
) -> EditReceipt:
    walk = _Walk(live)
    for item in items:
        if not isinstance(item, EditReceipt) or item.sequence < order.first:
            walk.take(item)
            continue
        session = walk.session()
        kept = [name for name in item.request_ids if name not in order.gone] if item.kind == "edit" else []
        if kept:
            receipt = session.apply(
                EditBatch(sequence=item.sequence, requests=tuple(order.requests[name] for name in kept))
            )
            for result in receipt.results:
                if not result.applied:
                    raise NumericalError(
                        f"without the reverted edits, edit {result.request_id!r} of batch {item.sequence} "
                        f"cannot be applied: {result.reason}"
                    )
        session.sequence = item.sequence
    state = walk.session().state
    after = live.model.weights(live.editor.layers)
    changes = {layer: _difference(layer, before[layer], after[layer]) for layer in after}
    return EditReceipt(
        sequence=order.sequence,
        delta=WeightDelta(changes, live.editor.config.type),
        results=(),
        request_ids=state.request_ids,
        fact_keys=state.fact_keys,
        superseded=(),
        keys=state.keys,
        covariance_digest=live.state.covariance_digest,
        kind="revert",
        taken_out=order.taken_out,
        whole=True,
        memory=state.memory,
    )


def _difference(number: int, before: Tensor, after: Tensor) -> LayerDelta:
    """What makes the content of a map or of a slot another's."""
    if is_module(number):
        return LayerDelta("module", replacing(after, layer_of(number)))
    return LayerDelta("dense", (after.double() - before.double()).float().cpu())


class _Walk:
    """A second session on the live session's model, whose maps its owner has set back to the beginning."""

    def __init__(self, live: EditSession) -> None:
        self._live = live
        self._session: EditSession | None = None

    def session(self) -> EditSession:
        """The session as far as the history has been taken."""
        if self._session is None:
            self._session = self._new(None)
        return self._session

    def _new(self, covariance: KeyCovariance | None) -> EditSession:
        live = self._live
        # corrected as they were, but what was kept once is kept
        verify = live.verify and live.verify.model_copy(update={"on_weak": "keep", "max_damage": None})
        return EditSession(live.model, live.editor, covariance, live.contexts, verify)

    def take(self, item: HistoryItem) -> None:
        """Replay one item."""
        if isinstance(item, KeyCovariance):
            if self._session is None:
                self._session = self._new(item)
            else:
                self._session.swap_covariance(item)
        elif isinstance(item, Snapshot):
            self.session().resume(item)
        else:
            self.session().replay(item)
