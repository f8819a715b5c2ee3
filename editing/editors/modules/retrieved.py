"""The regime ``retrieved`` of a locate-then-edit method: every edit is computed from the base on its own.

What the method would add to each map is not added: it is kept as a piece, a low-rank factor a layer, and a question is
answered with the pieces of the facts that were chosen for it alone (`errata.editing.modules.pieces`). The system of
each layer holds what is preserved and no past keys, values are still optimized for a whole batch at once, and a lower
layer's piece never enters another edit's keys: computed in a batch is computed alone. So the ten-thousandth edit is as
good as the first, edits do not depend on their order, and a revert drops rows.

Letters: m edits, n pieces, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta, side_by_side
from errata.editing.editors.base import Computation, Progress
from errata.editing.editors.closed_form.locate import LocateEditor, named
from errata.editing.editors.modules.store import StoreEditor, Tables, owners_of
from errata.editing.errors import DependentKeysError
from errata.editing.linalg import DependentColumnsError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of, module_number
from errata.editing.modules.packed import EMPTY, Content
from errata.editing.modules.pieces import KIND
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

Changes = Mapping[int, LayerDelta]


class Retrieved(StoreEditor):
    """A method's edits, each on its own."""

    tables = ("left", "right", "owners")

    def __init__(self, method: LocateEditor) -> None:
        super().__init__(method.config)
        self.method = method
        self.needs_covariance = method.needs_covariance
        self._fresh: LifelongState | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the slots, one for each layer of the method."""
        return tuple(module_number(layer) for layer in self.method.layers)

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        self.method.check(model, covariance)
        return LifelongState.start({}, covariance, None)

    def fresh(self, model: EditableModel, state: LifelongState) -> LifelongState:
        """The method's state before any edit, on the covariance that is in force; the maps are the base's."""
        if self._fresh is None or self._fresh.covariance_digest != state.covariance_digest:
            self._fresh = self.method.new_state(model, state.covariance)
        return self._fresh

    def silence(self, model: EditableModel) -> None:
        """Take the pieces out of a model whose slots the caller has patched: it then runs as the base does."""
        model.set_weights(dict.fromkeys(self.layers, EMPTY))

    def pieces_for(self, request: EditRequest) -> tuple[int, ...]:
        return tuple(owners_of([request.id]).tolist())

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        fresh, method = self.fresh(model, state), self.method
        changes, reasons = list[Changes](), dict[str, str]()
        with model.patched(self.layers):
            self.silence(model)
            values = method.more_values(model, requests, contexts, method.layers)
            if not all(value.finite for value in values):
                return Computation(WeightDelta({}, self.config.type), {}, values)
            for number, (request, value) in enumerate(zip(requests, values, strict=True)):
                try:
                    change, _ = method.write(model, [request], value.state[None], fresh, contexts)
                except DependentColumnsError as error:
                    reasons |= named(error, [request], method.layers[0]).reasons
                except DependentKeysError as error:
                    reasons |= error.reasons
                else:
                    changes.append(method.finish(model, change, fresh, 1).layers)
                if progress is not None:
                    progress(number + 1)
        if reasons:
            raise DependentKeysError(reasons)
        raw = {layer: side_by_side([change[layer] for change in changes]) for layer in method.layers}
        return Computation(self.together(model, requests, state, changes), {}, values, raw)

    def apart(self, computation: Computation) -> list[Computation]:
        """The edits of a batch that was written once, each as a batch of the method."""
        parts = []
        for number, value in enumerate(computation.values):
            here = slice(number, number + 1)
            changes = {
                layer: LayerDelta("low_rank", raw.left[:, here].contiguous(), raw.rows[here].contiguous())
                for layer, raw in computation.raw.items()
            }
            parts.append(Computation(WeightDelta(changes, self.config.type), {}, [value], changes))
        return parts

    def together(
        self, model: EditableModel, requests: Sequence[EditRequest], state: LifelongState, changes: Sequence[Changes]
    ) -> WeightDelta:
        """One change of the slots that appends the pieces of these edits, and drops those of superseded ones."""
        owners, slots = owners_of([request.id for request in requests]), dict[int, LayerDelta]()
        # every slot has the same rows: an edit writes all layers in each of its sweeps
        gone = self.gone(self.rows(model), state)
        for number in self.layers:
            layer = layer_of(number)
            parts = [change[layer] for change in changes]
            ranks = torch.tensor([part.rows.shape[0] for part in parts])
            tensors = {
                "drop": gone,
                "append.left": torch.cat([part.left.T for part in parts]),
                "append.right": torch.cat([part.rows for part in parts]),
                "append.owners": owners.repeat_interleave(ranks),
            }
            slots[number] = LayerDelta("module", Content(KIND, layer, {}, tensors, "rows").pack())
        return WeightDelta(slots, self.config.type)

    def settled(self, tables: Tables, rule: Mapping[str, Any]) -> Tables:
        return tables
