"""MEND: one backward pass, whose factors a trained network turns into an edit.

Mitchell et al. 2022, arXiv:2110.11309, Alg. 2: ``W <- W - lr_l sum_t delta~_t x~_t^T`` for every edited map. The
network is trained beforehand (``errata train-editor mend``); its digest is part of a run's identity. Without one it is
the identity, and the edit ``lr`` times the gradient of the targets' mean negative log-likelihood.

A batch is one backward pass, so its requests share one change. The papers' result for sequences is collapse: the
network has learned to edit the base, not what it has edited before.

Letters: m edits, t tokens, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, EditorConfig, Progress, scalar_outcome
from errata.editing.editors.gradient.mend_network import (
    MendNetwork,
    changed_by,
    factors_of,
    load_network,
    network_digest,
)
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import NumericalError, UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of, map_number
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

MlpMap = Literal["gate_proj", "up_proj", "down_proj"]


class MendConfig(EditorConfig):
    """Settings of MEND; the papers edit the last three layers (29 to 31 of Llama-2-7B)."""

    type: Literal["mend"] = "mend"
    maps: tuple[MlpMap, ...] = Field(("gate_proj", "up_proj", "down_proj"), min_length=1)
    """Maps of each layer that are edited."""
    trained: Path | None = None
    """File of ``errata train-editor mend``; null for the untrained network, which is the identity."""
    digest: str | None = None
    """Of the trained network. Found by itself where it is null, and part of the run's identity; a file of another
    digest is refused."""
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Rate of the untrained network; a trained one has learned its own."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the edited maps (see ``map_number``), ascending."""
        return tuple(sorted(map_number(layer, name) for layer in self.layers for name in set(self.maps)))


class Mend(Editor):
    """The hypernetwork's editor."""

    config: MendConfig
    needs_covariance = False
    commutes = False
    _network: MendNetwork | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the edited maps."""
        return self.config.numbers

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        state = super().new_state(model, covariance)
        self._network = self.network(model)
        return state

    def network(self, model: EditableModel) -> MendNetwork:
        """The trained network, or the identity.

        Raises:
            UserError: the file is of other maps, or of another digest than the configuration says.
        """
        shapes = shapes_of(model, self.layers)
        if self.config.trained is None:
            return (
                MendNetwork(shapes, rank=1, lr=self.config.lr, normalize=False).to(model.device).requires_grad_(False)
            )
        network, _, _ = load_network(self.config.trained)
        if network.shapes != shapes:
            raise UserError(
                f"editor.trained {str(self.config.trained)!r} was trained for the maps {sorted(network.shapes)}, the "
                f"editor has {sorted(shapes)} of {model.name!r}; train one for these layers"
            )
        found = network_digest(network)
        if self.config.digest is not None and found != self.config.digest:
            raise UserError(
                f"editor.trained {str(self.config.trained)!r} has digest {found[:12]}, the run was begun with "
                f"{self.config.digest[:12]}"
            )
        return network.to(model.device).requires_grad_(False)

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        network = self._network or self.network(model)
        rows = TargetRows(model, requests, min(map(layer_of, self.layers)))
        factors, _ = factors_of(model, rows, self.layers)
        with torch.no_grad():
            changes = {number: network.change(number, factors[number]) for number in self.layers}
            with changed_by(model, changes):
                losses = rows.losses()
        if not bool(torch.isfinite(losses).all()):
            raise NumericalError("a loss of the batch did not stay finite")
        if progress is not None:
            progress(len(requests))
        layers = {
            number: LayerDelta("low_rank", left.float().cpu().contiguous(), right.float().cpu().contiguous())
            for number, (left, right) in changes.items()
        }
        values = [scalar_outcome(loss, steps=1, converged=True) for loss in losses.tolist()]
        return Computation(WeightDelta(layers, self.config.type), {}, values)


def shapes_of(model: EditableModel, numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """(O, I) of each map."""
    return {number: (int(model.weight(number).shape[0]), int(model.weight(number).shape[1])) for number in numbers}
