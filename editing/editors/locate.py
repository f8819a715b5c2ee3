"""The shared course of locate-then-edit methods: values, then keys, residual and update, layer by layer.

MEMIT, arXiv:2210.07229, Alg. 1. What differs between methods is the right factor of a layer's update.

Letters: m edits, I = d_in, O = d_out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from editing.covariance import KeyCovariance
from editing.delta import LayerDelta, WeightDelta, apply_delta
from editing.editors.base import Computation, Editor, Progress
from editing.errors import UserError
from editing.keys import SubjectPass, pull_back
from editing.linalg import Base
from editing.model.adapter import EditableModel
from editing.request import EditRequest
from editing.state import LifelongState
from editing.values import TargetValue, optimise_values


class LocateEditor(Editor):
    """Spreads the residual ``z - h`` over the layers and solves a least-squares problem at each."""

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        model.check_layers(self.layers)
        if covariance is None and self.needs_covariance:
            raise UserError(f"editor {self.config.type!r} needs a covariance; set covariance.source")
        sizes = {layer: model.weight(layer).shape[1] for layer in self.layers}
        return LifelongState.start(sizes, covariance, self.base_of)

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        """A_0 of the layer's system."""
        raise NotImplementedError

    def spread(self, remaining: int) -> float:
        """What the residual is divided by when ``remaining`` layers are still to be changed, this one included."""
        return float(remaining)

    @abstractmethod
    def right_factor(self, layer: int, keys: Tensor, state: LifelongState) -> Tensor:
        """Right factor (m, I) of the update ``R @ right`` for keys (I, m)."""

    def find_values(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        progress: Progress | None,
    ) -> list[TargetValue]:
        """Target values at the last edited layer."""
        return optimise_values(
            model,
            requests,
            layer=self.layers[-1],
            contexts=contexts,
            config=self.config.values,
            progress=progress,
        )

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        values = self.find_values(model, requests, contexts, progress)
        targets = torch.stack([value.state for value in values], dim=1).to(model.device)
        last = self.layers[-1]
        changes: dict[int, LayerDelta] = {}
        keys: dict[int, Tensor] = {}
        walk = SubjectPass(model, requests, contexts)
        with model.patched(self.layers):
            for place, layer in enumerate(self.layers):
                found = walk.keys(layer)
                reached, _ = walk.states(last)
                residual = (targets - reached) / self.spread(len(self.layers) - place)
                if self.config.values.post_norm == "exact":
                    _, mapped = walk.states(layer)
                    residual = pull_back(model, layer, mapped, residual)
                right = self.right_factor(layer, found, state)
                keys[layer] = found.cpu()
                changes[layer] = LayerDelta("low_rank", residual.float().cpu(), right.float().cpu().contiguous())
                model.set_weight(layer, apply_delta(model.weight(layer), changes[layer]))
        return Computation(WeightDelta(changes, self.config.type), keys, values)
