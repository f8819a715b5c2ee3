"""ROME: one layer, one edit at a time, its key mapped exactly to its value.

``W + (v - W k) (C^-1 k)^T / (k^T C^-1 k)``. Meng et al. 2022, arXiv:2202.05262, eq. 2. The key averaged over all
contexts stands in *both* factors; the published code has the bare prompt's key in one of them, which later work
found to be the cause of its collapse.

Letters: m edits, I = d_in, O = d_out, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta, apply_delta, side_by_side
from errata.editing.editors.base import Computation, LocateConfig, Progress
from errata.editing.editors.closed_form.locate import LocateEditor, Written
from errata.editing.keys import SubjectPass
from errata.editing.linalg import Base, DenseBase, equality_factor
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import TargetValue, ValueConfig, optimize_values


class RomeValues(ValueConfig):
    """ROME's settings of the value optimization, for GPT-2 XL and GPT-J; Llama-3: 25 steps, weight decay 1e-3."""

    steps: int = Field(20, ge=1)
    clamp: float | None = Field(4.0, gt=0)


RomeKey = Literal["averaged", "published"]


class RomeConfig(LocateConfig):
    """Settings of ROME."""

    retrievable: ClassVar[bool] = True
    type: Literal["rome"] = "rome"
    values: RomeValues = RomeValues()
    """How target values are optimized."""
    key: RomeKey = "averaged"
    """``averaged``: the key averaged over the contexts stands in both factors; ``published``: the factor that is solved
    against has the bare prompt's key, as the published code, so that ``W_new k != v``."""

    @field_validator("layers")
    @classmethod
    def _one_layer(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if len(layers) != 1:
            raise ValueError(f"must name exactly one layer, got {list(layers)}")
        return layers


class Rome(LocateEditor):
    """Requests of a batch are written one after the other, each into the weights the one before it left."""

    key_average = "mean"
    measures = "outputs"

    @property
    def keeps_past_keys(self) -> bool:
        return False

    @property
    def publishes(self) -> bool:
        """Whether the bare prompt's key stands where the published code has it."""
        config: Any = self.config
        return bool(config.key == "published")

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        return DenseBase(covariance.mean(layer), what=f"C of layer {layer} ({covariance.tokens} tokens)")

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        """One row for each key (I, m) on its own; there is no ridge."""
        rows = [equality_factor(state.systems[layer], key[:, None].cpu()) for key in keys.T]
        return torch.cat(rows)

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        values: list[TargetValue] = []
        parts: list[Written] = []
        with model.patched(self.layers):
            for request in requests:
                value = self._value(model, request, contexts)
                values.append(value)
                if value.finite:
                    parts.append(self._write_one(model, request, value.state, state, contexts))
                if progress is not None:
                    progress(len(values))
        if len(parts) < len(values):
            return Computation(WeightDelta({}, self.config.type), {}, values)
        changes, keys = self._joined(parts)
        return Computation(self.finish(model, changes, state, len(requests)), keys, values, changes)

    def more_values(
        self, model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str], layers: Sequence[int]
    ) -> list[TargetValue]:
        return [self._value(model, request, contexts) for request in requests]

    def write(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        targets: Tensor,
        state: LifelongState,
        contexts: Sequence[str],
        layers: Sequence[int] | None = None,
        ridge: Tensor | None = None,
    ) -> Written:
        """As in the base class; ``targets`` (m, d) are outputs of the edited map."""
        with model.patched(self.layers):
            parts = [self._write_one(model, r, v, state, contexts) for r, v in zip(requests, targets, strict=True)]
        return self._joined(parts)

    def _value(self, model: EditableModel, request: EditRequest, contexts: Sequence[str]) -> TargetValue:
        (value,) = optimize_values(
            model, [request], layer=self.layers[0], contexts=contexts, config=self.config.values, space="mlp"
        )
        # what is written is the map's output, and the receipt keeps what is written
        return replace(value, state=value.z)

    def _write_one(
        self,
        model: EditableModel,
        request: EditRequest,
        target: Tensor,
        state: LifelongState,
        contexts: Sequence[str],
    ) -> Written:
        (layer,) = self.layers
        key = SubjectPass(model, [request], contexts).keys(layer, self.key_average)
        # what is read for the value's side: the same key, or, as published, that of the bare prompt
        read = SubjectPass(model, [request], ("",)).keys(layer, self.key_average) if self.publishes else key
        bias = getattr(model.decoder.edited_map(layer), "bias", None)
        wanted = target.to(key.device) if bias is None else target.to(key.device) - bias.detach().float()
        residual = wanted[:, None].double() - model.weight(layer).double() @ read.double()
        change = self.change(model, layer, key, residual, state)
        if self.publishes:
            # the row is (C^-1 k)^T / (k^T C^-1 k); as published it is divided by what the bare key makes of it
            right = change.rows
            change = LayerDelta(
                "low_rank", change.left, (right.double() / (right.double() @ read.cpu().double())).float()
            )
        model.set_weight(layer, apply_delta(model.weight(layer), change))
        return {layer: change}, {layer: key.cpu()}

    def _joined(self, parts: Sequence[Written]) -> Written:
        (layer,) = self.layers
        keys = torch.cat([columns[layer] for _, columns in parts], dim=1)
        return {layer: side_by_side([changes[layer] for changes, _ in parts])}, {layer: keys}
