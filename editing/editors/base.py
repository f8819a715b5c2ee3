"""What every editor is: settings, a lifelong state, and a pure computation of one batch's weight change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import TargetValue, ValueConfig

Progress = Callable[[int], None]


class EditorConfig(Closed):
    """Settings every editor has; ``type`` tells them apart."""

    type: str
    """Which editor."""
    layers: tuple[int, ...] = Field(min_length=1)
    """Decoder layers to edit, ascending; the last one is the value layer."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError(f"must be ascending without repeats, got {list(layers)}; write {sorted(set(layers))}")
        return layers


class LocateConfig(EditorConfig):
    """Settings of editors that first find a target value."""

    values: ValueConfig = ValueConfig()
    """How target values are optimized."""
    norm_anchors: bool = False
    """Scale each target value to the norm that the original model's state has there (NAS, arXiv:2602.02543): values do
    not grow with the weights that they have made grow."""
    regime: Literal["accumulated", "retrieved"] = "accumulated"
    """``accumulated``: every edit goes into the same weights, behind those before it. ``retrieved``: every edit is
    computed from the base on its own and kept as a piece, and a question is answered with the pieces of the facts that
    the router chose for it alone; for alphaedit, emmet, memit, pmet and rome."""

    retrievable: ClassVar[bool] = False
    """Whether an edit of the method can be computed from the base alone, as a low-rank change of each layer."""

    @model_validator(mode="after")
    def _pieces_suit_method(self) -> LocateConfig:
        if self.regime == "retrieved" and not self.retrievable:
            raise ValueError(
                f"regime 'retrieved' is for alphaedit, emmet, memit, pmet and rome; {self.type!r} does not write each "
                "edit as a piece of its own"
            )
        return self


@dataclass(frozen=True)
class Sweep:
    """One write of a batch, the first or a correction of it: enough to compute it again without one of its edits."""

    targets: Tensor
    """As in a receipt: float32 (m, d), or (m, n, d)."""
    ridge: Tensor
    """(m,) float32: what the method's own ridge was multiplied by for each edit; 1 in a first write."""
    keys: Mapping[int, Tensor]
    """Float32 (d_in, m) by layer."""


@dataclass(frozen=True)
class Computation:
    """One batch, computed but not applied.

    ``keys`` are float32 (d_in, m) by layer, columns in the order of the requests; they join the past keys when the
    batch is committed. An editor without past keys puts here what else its ``advance`` needs. ``values`` are the
    target values, one per request.
    """

    delta: WeightDelta
    keys: Mapping[int, Tensor]
    values: Sequence[TargetValue]
    raw: Mapping[int, LayerDelta] = field(default_factory=dict)
    """The change by layer before the method's last touch (thinning, damping): what a correction is joined to."""
    sweeps: tuple[Sweep, ...] = ()
    """All writes that make up the change, in order, where there was more than one."""


class Editor(ABC):
    """A method of writing facts into weights."""

    needs_covariance: bool = True
    corrects: bool = False
    """Whether a batch that is not there yet can be written once more, toward its targets (`LocateEditor`)."""
    commutes: bool = True
    """Whether an update stays right when an earlier one is taken out; else a revert computes all later ones anew."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose weights the editor may change."""
        layers: tuple[int, ...] = self.config.layers
        return layers

    @property
    def mapped_layers(self) -> tuple[int, ...]:
        """Maps whose keys the editor preserves: a covariance must cover them."""
        return self.layers

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        """The state before the first edit; a method that keeps no systems of past keys begins with an empty one.

        Raises:
            UserError: the model has no such layer.
        """
        model.check_layers(self.layers)
        return LifelongState.start({}, covariance, None)

    @abstractmethod
    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        """The change that writes ``requests`` into the model's current weights.

        Neither the model (bytes are restored) nor the state is changed.
        """

    def pieces_for(self, request: EditRequest) -> tuple[int, ...]:
        """Owners of the pieces that a request's own question is answered with; none where the weights hold it."""
        return ()

    def advance(
        self,
        state: LifelongState,
        delta: WeightDelta,
        keys: Mapping[int, Tensor],
        request_ids: Sequence[str],
        fact_keys: Sequence[str],
    ) -> LifelongState:
        """The state after a commit: a function of the state before it and of what the commit stores."""
        return state.appended(keys, request_ids, fact_keys)


def scalar_outcome(loss: float, *, steps: int, converged: bool) -> TargetValue:
    """Outcome of one request for editors that optimize no target value; its tensors are empty."""
    nothing = torch.zeros(0)
    return TargetValue(nothing, nothing, nothing, loss, steps, converged, clamped=False)
