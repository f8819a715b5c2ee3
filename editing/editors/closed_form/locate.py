"""The shared course of locate-then-edit methods: values, then keys, residual and update, layer by layer.

MEMIT, arXiv:2210.07229, Alg. 1. What differs between methods is the right factor of a layer's update.

Letters: m edits, I = d_in, O = d_out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta, apply_delta
from errata.editing.editors.base import Computation, Editor, LocateConfig, Progress
from errata.editing.errors import DependentKeysError, UserError
from errata.editing.keys import KeyAverage, SubjectPass, pull_back
from errata.editing.linalg import Base, DependentColumnsError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import PLAIN, TargetValue, Variant, optimize_values

Written = tuple[dict[int, LayerDelta], dict[int, Tensor]]
"""Changes by layer, and keys (I, m) by layer."""


class LeastSquaresConfig(LocateConfig):
    """Settings of methods that weigh new associations against the preserved second moment."""

    cov_weight: float = Field(15_000.0, gt=0, allow_inf_nan=False)
    """lambda: how strongly old keys are kept; unitless. The papers' grid: 500, 1500, 5000, 15 000, 30 000."""
    units: Literal["absolute", "relative"] = "absolute"
    """``relative``: ``cov_weight`` counts in the mean of ``k^T C^-1 k`` over what is preserved, which is the width of
    the keys, so that the same number stores the same share on every model. ``absolute``: the papers' form."""
    past_keys: bool = True
    """Keep the keys of earlier edits (the lifelong form); false is the method as first published."""


class LocateEditor(Editor):
    """Spreads the residual ``z - h`` over the layers and solves a least-squares problem at each."""

    key_average: KeyAverage = "half"
    _original: Mapping[int, Tensor] | None = None
    """The maps of the model that a lifetime began on, for norm anchors."""
    corrects = True
    measures: Literal["state", "outputs"] = "state"
    """What tells how far an edit got: the last layer's state, or what the last layer's map puts out."""

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        self.check(model, covariance)
        if self.config.norm_anchors:
            self._original = {layer: weight.cpu() for layer, weight in model.weights(self.layers).items()}
        sizes = {layer: model.weight(layer).shape[1] for layer in self.layers}
        bases = model.shared_bases(self.base_of)
        return LifelongState.start(sizes, covariance, bases, grows=self.keeps_past_keys, bounded=self.commutes)

    def check(self, model: EditableModel, covariance: KeyCovariance | None) -> None:
        """Raise UserError unless the layers exist and there is a covariance if one is needed."""
        model.check_layers(self.layers)
        if covariance is None and self.needs_covariance:
            raise UserError(f"editor {self.config.type!r} needs a covariance; set covariance.source")

    @property
    def keeps_past_keys(self) -> bool:
        """Whether the keys of earlier edits are preserved like the covariance."""
        config: Any = self.config
        return bool(config.past_keys) if isinstance(config, LeastSquaresConfig) else True

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        """A_0 of the layer's system."""
        raise NotImplementedError

    def spread(self, remaining: int) -> float:
        """What the residual is divided by when ``remaining`` layers are still to be changed, this one included."""
        return float(remaining)

    @abstractmethod
    def right_factor(self, layer: int, keys: Tensor, state: LifelongState, ridge: Tensor | None = None) -> Tensor:
        """Right factor (m, I) of the update ``R @ right`` for keys (I, m); see `write` for the ridge (m,)."""

    def find_values(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        progress: Progress | None,
    ) -> list[TargetValue]:
        """Target values at the last edited layer."""
        variant = self.variant(requests)
        if self.finds_outputs(model):
            variant = replace(variant, layers=self.layers)
        return optimize_values(
            model,
            requests,
            layer=self.layers[-1],
            contexts=contexts if variant.prompts is None else contexts[:1],
            config=self.config.values,
            progress=progress,
            variant=variant,
        )

    def finds_outputs(self, model: EditableModel) -> bool:
        """Whether targets are what each edited map puts out: a norm follows the maps, and it is not to be ignored."""
        return self.config.values.post_norm == "exact" and model.decoder.post_norm(self.layers[-1]) is not None

    def variant(self, requests: Sequence[EditRequest]) -> Variant:
        """What the method's target values do differently from MEMIT's."""
        return PLAIN

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        values = self.find_values(model, requests, contexts, progress)
        if not all(value.finite for value in values):
            # one such value would spoil the keys of every edit above; the session refuses it and asks again
            return Computation(WeightDelta({}, self.config.type), {}, values)
        if self.config.norm_anchors:
            values = self.anchored(model, requests, contexts, values)
        targets = torch.stack([value.state for value in values])
        changes, keys = self.write(model, requests, targets, state, contexts)
        return Computation(self.finish(model, changes, state, len(requests)), keys, values, changes)

    def more_values(
        self, model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str], layers: Sequence[int]
    ) -> list[TargetValue]:
        """Target values once more, on the weights as they are now, for a batch that was written to ``layers``."""
        values = self.find_values(model, requests, contexts, None)
        return self.anchored(model, requests, contexts, values) if self.config.norm_anchors else values

    def finish(
        self, model: EditableModel, changes: Mapping[int, LayerDelta], state: LifelongState, edits: int
    ) -> WeightDelta:
        """What a batch's change becomes before it is applied to the model's weights, which are those before it."""
        return WeightDelta(changes, self.config.type)

    def anchored(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        values: Sequence[TargetValue],
    ) -> list[TargetValue]:
        """Target values with the norm of the original model's states: ``z |h_0| / |z|`` (NAS, arXiv:2602.02543)."""
        if self._original is None:
            raise UserError(
                "editor.norm_anchors: this method does not keep the original maps that anchors are read from"
            )
        with model.patched(self.layers):
            model.set_weights(self._original)
            states, _ = SubjectPass(model, requests, contexts).states(self.layers[-1])
        anchors = states.norm(dim=0).tolist()
        return [
            replace(value, state=value.state * (anchor / float(value.state.norm().clamp_min(1e-12))))
            for value, anchor in zip(values, anchors, strict=True)
        ]

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
        """The changes that bring the subjects to ``targets``; the model's bytes are restored.

        Args:
            targets: states of the last layer (m, d), toward which every layer does its share, or outputs of the maps
                of all layers (m, n, d), of which every layer reaches its own.
            layers: of this batch, ascending; by default all of the editor's.
            ridge: (m,), by what the method's ridge is multiplied for each edit: below 1, more of it is stored.

        Raises:
            DependentKeysError: the method must hit every target, and some keys depend on others.
        """
        layers = self.layers if layers is None else tuple(layers)
        wanted = targets.transpose(0, -1).to(model.device)
        changes: dict[int, LayerDelta] = {}
        keys: dict[int, Tensor] = {}
        walk = SubjectPass(model, requests, contexts)
        with model.patched(layers):
            for place, layer in enumerate(layers):
                columns = walk.keys(layer, self.key_average)
                if wanted.ndim == 3:
                    residual = wanted[:, place] - walk.states(layer)[1]
                else:
                    residual = self.residual(model, walk, wanted, layer, layers[-1], self.spread(len(layers) - place))
                residual = self.for_keys(model, walk, layer, columns, residual)
                try:
                    changes[layer] = self.change(model, layer, columns, residual, state, ridge)
                except DependentColumnsError as error:
                    raise named(error, requests, layer) from error
                keys[layer] = columns.cpu()
                model.set_weight(layer, apply_delta(model.weight(layer), changes[layer]))
        return changes, keys

    def residual(
        self, model: EditableModel, walk: SubjectPass, wanted: Tensor, layer: int, last: int, divisor: float
    ) -> Tensor:
        """What the map of ``layer`` must add to its outputs (O, m), when the last layer's states are ``wanted``."""
        reached, _ = walk.states(last)
        residual = (wanted - reached) / divisor
        if self.config.values.post_norm == "exact":
            _, mapped = walk.states(layer)
            residual = pull_back(model, layer, mapped, residual)
        return residual

    def for_keys(self, model: EditableModel, walk: SubjectPass, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        """The residual (O, m) that is written at the averaged keys (I, m); found as it was for the bare prompts."""
        return residual

    def change(
        self,
        model: EditableModel,
        layer: int,
        keys: Tensor,
        residual: Tensor,
        state: LifelongState,
        ridge: Tensor | None = None,
    ) -> LayerDelta:
        """The change of one layer's map for keys (I, m) and residuals (O, m)."""
        right = self.right_factor(layer, keys, state, ridge)
        return LayerDelta("low_rank", residual.float().cpu(), right.float().cpu().contiguous())


def named(error: DependentColumnsError, requests: Sequence[EditRequest], layer: int) -> DependentKeysError:
    """The same error in terms of requests."""
    reasons = {}
    for column, others in error.columns.items():
        ids = ", ".join(requests[i].id for i in others)
        what = f"depends linearly on that of {ids}" if others else "is zero"
        reasons[requests[column].id] = (
            f"its key at layer {layer} {what}, so not every target can be hit; "
            "apply it in a later batch or set editor.damping"
        )
    return DependentKeysError(reasons)
