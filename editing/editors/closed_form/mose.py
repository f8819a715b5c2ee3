"""MOSE: the weight is rotated, not added to: ``W <- Q W`` with Q orthogonal, so norm and condition number stay.

Q solves ``min lam |Q W K_0 - W K_0|^2 + |Q W K - V|^2``, an orthogonal Procrustes problem: ``Q = U V^T`` from the
singular value decomposition of ``M = lam W C W^T + V (W K)^T`` (MOSE, eqs. 16-20). C is a mean per token, so ``lam``
here is the paper's times the number of tokens.

Layers are chosen for every batch (MOSE, sec. 5.2): of the ``candidates`` layers with the largest keys (eq. 21) the
one with the smallest ``|V_l - W_l K_l|_F / (|W_l|_2 |k_l|)`` (eq. 22), and the two beside it.

Letters: m edits, I = d_in, O = d_out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, LocateConfig, Progress
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.errors import UserError
from errata.editing.keys import SubjectPass
from errata.editing.linalg import nearest_orthogonal
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import TargetValue, ValueConfig, Variant, optimize_values

MAX_DRIFT = 1e-6
"""Root mean square of the entries of ``Q^T Q - I`` per row, from which the accumulated Q is made orthogonal again."""


class MoseValues(ValueConfig):
    """ROME's settings of the value optimization, on which MOSE builds."""

    steps: int = Field(20, ge=1)
    clamp: float | None = Field(4.0, gt=0)
    on: Literal["plain", "sphere"] = "plain"
    """Targets of any length (the paper), or of the length of the present output, the only ones a rotation reaches."""


class MoseConfig(LocateConfig):
    """Settings of MOSE; ``layers`` are those it may choose from."""

    type: Literal["mose"] = "mose"
    values: MoseValues = MoseValues()
    """How target values are optimized."""
    preservation: float = Field(10.0, gt=0)
    """lam: weight of the preserved second moment, a mean per token. The paper gives neither a value nor a grid."""
    selection: Literal["neighbours", "single", "predefined"] = "neighbours"
    """Edit the chosen layer and the two beside it, the chosen one alone, or all of ``layers``; with one of them given
    that is the ablation of figure 4."""
    candidates: int = Field(5, ge=1)
    """Layers with the largest keys among which the score decides; each costs a value optimization."""
    literal_values: bool = False
    """V holds the target values themselves, ``v* = W k + R`` of the bare prompts, as the paper's eqs. 17-19 read. Else
    it is the averaged keys' own output moved by the same R, as MEMIT and its kin have it."""
    beyond: bool = False
    """The layers beside the chosen one need not be among ``layers``, as in the paper; the lowest and the highest of
    ``layers`` then need a neighbor in the model."""

    @model_validator(mode="after")
    def _neighbors_exist(self) -> MoseConfig:
        if self.beyond and self.layers[0] == 0:
            raise ValueError("beyond needs a layer below the lowest of layers; leave out layer 0")
        return self


class Mose(LocateEditor):
    """Multiplicative, orthogonal editing."""

    config: MoseConfig
    commutes = False
    key_average = "mean"

    @property
    def layers(self) -> tuple[int, ...]:
        """The candidates, and with ``beyond`` their neighbors too."""
        chosen: tuple[int, ...] = self.config.layers
        if not self.config.beyond or self.config.selection != "neighbours":
            return chosen
        return tuple(sorted({layer + step for layer in chosen for step in (-1, 0, 1)}))

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        self.check(model, covariance)
        if self.config.norm_anchors:
            raise UserError("editor.norm_anchors: mose turns the weights, whose norm stays; there is nothing to anchor")
        # a rotation changes no singular value, so the base's spectral norms hold for good
        norms = {
            f"spectral.{layer}": torch.linalg.matrix_norm(model.weight(layer).cpu().double(), 2)
            for layer in self.layers
        }
        return LifelongState.start({}, covariance, None, memory=norms)

    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a rotation has no right factor")

    def variant(self, requests: Sequence[EditRequest]) -> Variant:
        return Variant(sphere=self.config.values.on == "sphere")

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        layers, values = self.choose(model, requests, state, contexts, progress)
        if not all(value.finite for value in values):
            return Computation(WeightDelta({}, self.config.type), {}, values)
        targets = torch.stack([value.state for value in values])
        changes, keys = self.write(model, requests, targets, state, contexts, layers)
        return Computation(self.finish(model, changes, state, len(requests)), keys, values, changes)

    def choose(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> tuple[tuple[int, ...], list[TargetValue]]:
        """The layers to edit for a batch, ascending, and the target values at the last of them."""

        def values_at(layer: int) -> list[TargetValue]:
            return self.more_values(model, requests, contexts, (layer,), progress)

        def values_over(layers: tuple[int, ...]) -> list[TargetValue]:
            if layers[-1] in by_layer and not self._together(model, layers):
                return by_layer[layers[-1]]
            return self.more_values(model, requests, contexts, layers)

        by_layer: dict[int, list[TargetValue]] = {}
        if self.config.selection == "predefined":
            return self.layers, values_over(self.layers)
        walk = SubjectPass(model, requests, contexts)
        allowed = self.config.layers
        sizes = {layer: walk.keys(layer, self.key_average).norm(dim=0).cpu() for layer in allowed}
        strongest = sorted(allowed, key=lambda layer: (-float(sizes[layer].mean()), layer))
        scores: dict[int, float] = {}
        for layer in sorted(strongest[: self.config.candidates]):
            by_layer[layer] = values_at(layer)
            # V - W K is what the value optimization adds to the map's output
            missing = torch.stack([value.delta.norm() for value in by_layer[layer]]) / sizes[layer]
            score = float(missing.norm() / state.memory[f"spectral.{layer}"])
            scores[layer] = score if math.isfinite(score) else math.inf
        best = min(scores, key=lambda layer: (scores[layer], layer))
        reach = 1 if self.config.selection == "neighbours" else 0
        layers = tuple(layer for layer in self.layers if abs(layer - best) <= reach)
        return layers, values_over(layers)

    def _together(self, model: EditableModel, layers: Sequence[int]) -> bool:
        return len(layers) > 1 and self.finds_outputs(model)

    def more_values(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        layers: Sequence[int],
        progress: Progress | None = None,
    ) -> list[TargetValue]:
        variant = self.variant(requests)
        return optimize_values(
            model,
            requests,
            layer=layers[-1],
            contexts=contexts,
            config=self.config.values,
            space="mlp",
            progress=progress,
            variant=replace(variant, layers=tuple(layers)) if self._together(model, layers) else variant,
        )

    def for_keys(self, model: EditableModel, walk: SubjectPass, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        if not self.config.literal_values:
            return residual
        bias = getattr(model.decoder.edited_map(layer), "bias", None)
        outputs = walk.states(layer)[1].double()
        outputs = outputs if bias is None else outputs - bias.detach().double()[:, None]
        return residual.double() + outputs - model.weight(layer).double() @ keys.double()

    def change(
        self,
        model: EditableModel,
        layer: int,
        keys: Tensor,
        residual: Tensor,
        state: LifelongState,
        ridge: Tensor | None = None,
    ) -> LayerDelta:
        assert state.covariance is not None
        weight = model.weight(layer).cpu().double()
        moment = weight @ state.covariance.mean(layer) @ weight.T
        outputs, missing = weight @ keys.cpu().double(), residual.cpu().double()
        if ridge is not None:
            # what is kept weighs less against an edit with a smaller ridge: the edit weighs more
            heavier = ridge.double().rsqrt()
            outputs, missing = outputs * heavier, missing * heavier
        rotation = procrustes(moment, outputs, missing, self.config.preservation)
        accumulated = state.memory.get(f"rotation.{layer}")
        if accumulated is not None and drift(accumulated) > MAX_DRIFT:
            # what is stored are float32 factors, whose errors add up; this one takes the product back to orthogonal
            rotation = rotation @ nearest_orthogonal(accumulated) @ torch.linalg.inv(accumulated)
        return LayerDelta("orthogonal", rotation.float())

    def advance(
        self,
        state: LifelongState,
        delta: WeightDelta,
        keys: Mapping[int, Tensor],
        request_ids: Sequence[str],
        fact_keys: Sequence[str],
    ) -> LifelongState:
        memory: dict[str, Tensor] = {}
        for layer, change in delta.layers.items():
            rotation = change.left.double()
            before = state.memory.get(f"rotation.{layer}")
            memory[f"rotation.{layer}"] = rotation if before is None else rotation @ before
        return super().advance(state, delta, keys, request_ids, fact_keys).remembering(memory)


def procrustes(moment: Tensor, outputs: Tensor, residual: Tensor, preservation: float) -> Tensor:
    """Q (O, O) for the moment ``W C W^T`` (O, O), outputs ``W K`` (O, m) and residuals ``V - W K`` (O, m), float64."""
    return nearest_orthogonal(preservation * moment + (outputs + residual) @ outputs.T)


def drift(rotation: Tensor) -> float:
    """How far a matrix is from orthogonal."""
    error = rotation.T @ rotation - torch.eye(rotation.shape[0], dtype=rotation.dtype)
    return float(error.norm() / rotation.shape[0] ** 0.5)
