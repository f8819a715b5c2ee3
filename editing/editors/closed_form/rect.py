"""RECT: of another editor's update only the entries with the largest relative change are kept.

Per matrix and batch, the share ``keep`` of entries with the largest ``|dW / W|`` against the current weight; the masks
are applied after all layers have been solved. Gu et al. 2024, arXiv:2401.04700.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, Progress
from errata.editing.editors.closed_form.locate import LeastSquaresConfig, LocateEditor
from errata.editing.editors.closed_form.memit import Memit
from errata.editing.editors.closed_form.rome import Rome, RomeKey
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState


class RectConfig(LeastSquaresConfig):
    """Settings of RECT."""

    type: Literal["rect"] = "rect"
    base: Literal["memit", "rome"] = "memit"
    """Whose update is thinned out; ``rome`` edits one layer and ignores cov_weight and past_keys."""
    key: RomeKey = "averaged"
    """Of base ``rome``, as there."""
    keep: float = Field(0.4, gt=0, le=1)
    """Share of a matrix's entries that keep their change."""

    @model_validator(mode="after")
    def _one_layer_of_rome(self) -> RectConfig:
        if self.base == "rome" and len(self.layers) != 1:
            raise ValueError(f"base 'rome' edits exactly one layer, got layers {list(self.layers)}")
        return self


class Rect(Editor):
    """Another editor's update, made sparse."""

    commutes = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.base: LocateEditor = Memit(config) if config.base == "memit" else Rome(config)

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        # computing a revert again takes all raw keys, as updates that are thinned out do not commute
        return replace(self.base.new_state(model, covariance), bounded=False)

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        whole = self.base.compute(model, requests, state, contexts, progress)
        return replace(whole, delta=self.finish(model, whole.raw, state, len(requests)))

    def finish(
        self, model: EditableModel, changes: Mapping[int, LayerDelta], state: LifelongState, edits: int
    ) -> WeightDelta:
        """The part of the base's change that is kept."""
        kept = {
            layer: change if self.config.keep == 1 else thinned(change, model.weight(layer), self.config.keep)
            for layer, change in changes.items()
        }
        return WeightDelta(kept, self.config.type)


def thinned(change: LayerDelta, weight: Tensor, keep: float) -> LayerDelta:
    """The dense change with the share ``keep`` of the entries of ``change`` that alter ``weight`` (O, I) most."""
    assert change.right is not None
    matrix = change.left.double() @ change.right.double()
    relative = (matrix / weight.cpu().double()).abs().nan_to_num(nan=0.0, posinf=torch.inf)
    count = max(1, round(keep * matrix.numel()))
    kept = torch.zeros(matrix.numel(), dtype=torch.bool)
    kept[relative.flatten().topk(count).indices] = True
    return LayerDelta("dense", torch.where(kept.reshape(matrix.shape), matrix, 0.0).float())
