"""PRUNE: the accumulated update is held back where its singular values outgrow those of the base weight.

The state is the raw sum S of MEMIT's updates; the served weight is ``W_0 + F(S)``, where F leaves singular values up to
s_max, the largest one of W_0, as they are and maps larger ones to ``log_a(s) - log_a(s_max) + s_max``. Ma et al.
2025, arXiv:2405.16821.

With ``F(S) = S - D(S)`` and D of the rank of what is damped, a commit is MEMIT's change plus D before minus D after:
``[R | D_0.left | -D_1.left] [right; D_0.right; D_1.right]``. So every commit tells how S and D go on.

Letters: O = d_out, I = d_in, p rank of S, r damped values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.closed_form.locate import LeastSquaresConfig
from errata.editing.editors.closed_form.memit import Memit
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.state import LifelongState


class PruneConfig(LeastSquaresConfig):
    """Settings of PRUNE."""

    type: Literal["prune"] = "prune"
    base: float = Field(1.2, gt=1)
    """a: base of the logarithm; below exp(1 / s_max) it would amplify instead of damp, and is refused."""


class Prune(Memit):
    """MEMIT, its accumulated update damped; how many singular values are damped is noted with each delta."""

    config: PruneConfig
    commutes = False

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        state = super().new_state(model, covariance)
        memory: dict[str, Tensor] = {}
        for layer in self.layers:
            weight = model.weight(layer).cpu()
            largest = float(torch.linalg.matrix_norm(weight.double(), 2))
            if self.config.base < math.exp(1 / largest):
                raise UserError(
                    f"editor.base {self.config.base} amplifies at layer {layer}, whose largest singular value is "
                    f"{largest:.3g}; it must be at least {math.exp(1 / largest):.3g}"
                )
            memory[f"s_max.{layer}"] = torch.tensor(largest, dtype=torch.float64)
            for name in ("raw", "damped"):
                memory[f"{name}.{layer}.left"] = torch.zeros(weight.shape[0], 0)
                memory[f"{name}.{layer}.right"] = torch.zeros(0, weight.shape[1])
        return state.remembering(memory)

    def finish(
        self, model: EditableModel, changes: Mapping[int, LayerDelta], state: LifelongState, edits: int
    ) -> WeightDelta:
        """With the damping of before the batch taken back and that of after it put in, behind the update's columns."""
        whole: dict[int, LayerDelta] = {}
        notes: dict[str, float] = {}
        for layer, change in changes.items():
            assert change.right is not None
            left, right = _grown(state.memory, layer, change.left, change.right)
            new_left, new_right = damped_part(left, right, float(state.memory[f"s_max.{layer}"]), self.config.base)
            old_left, old_right = state.memory[f"damped.{layer}.left"], state.memory[f"damped.{layer}.right"]
            whole[layer] = LayerDelta(
                "low_rank",
                torch.cat([change.left, old_left, -new_left], dim=1),
                torch.cat([change.right, old_right, new_right]),
            )
            notes[f"damped.{layer}"] = float(new_left.shape[1])
            if change.left.shape[1] != edits:
                notes[f"columns.{layer}"] = float(change.left.shape[1])
        return WeightDelta(whole, self.config.type, notes)

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
            assert change.right is not None
            # one column an edit, more where the batch was corrected
            edits = int(delta.notes.get(f"columns.{layer}", keys[layer].shape[1]))
            left, right = _grown(state.memory, layer, change.left[:, :edits], change.right[:edits])
            new = edits + state.memory[f"damped.{layer}.left"].shape[1]
            memory |= {f"raw.{layer}.left": left, f"raw.{layer}.right": right}
            memory |= {f"damped.{layer}.left": -change.left[:, new:], f"damped.{layer}.right": change.right[new:]}
        return super().advance(state, delta, keys, request_ids, fact_keys).remembering(memory)


def _grown(memory: Mapping[str, Tensor], layer: int, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of S with an update added; never of higher rank than the matrix."""
    left = torch.cat([memory[f"raw.{layer}.left"], left], dim=1)
    right = torch.cat([memory[f"raw.{layer}.right"], right])
    if left.shape[1] < min(left.shape[0], right.shape[1]):
        return left, right
    return torch.eye(left.shape[0]), (left.double() @ right.double()).float()


def damped_part(left: Tensor, right: Tensor, largest: float, base: float) -> tuple[Tensor, Tensor]:
    """Factors (O, r), (r, I) of ``S - F(S)`` for S given by factors (O, p), (p, I); r = 0 if nothing is too large."""
    # S = Q_l (R_l R_r^T) Q_r^T: the singular values are those of a small core
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    count = int((s > largest).sum())
    too_large = s[:count]
    excess = too_large - (torch.log(too_large / largest) / math.log(base) + largest)
    return ((q_left @ u[:, :count]) * excess).float(), (vh[:count] @ q_right.T).float().contiguous()
