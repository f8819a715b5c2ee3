"""PMET: target values of attention and MLP together; only the MLP's part is written.

The update is MEMIT's. Values are optimized with one delta on the attention's output and one on the MLP's, so that
what attention has to carry does not end up in the MLP's weights; the residual ``z_mlp - W k`` is divided by the
square root of the remaining layers. Li et al. 2024, arXiv:2308.08742.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from errata.editing.editors.closed_form.locate import LeastSquaresConfig
from errata.editing.editors.closed_form.memit import Memit
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig, Variant


class PmetValues(ValueConfig):
    """PMET's settings of the value optimization, for GPT-J; Llama: lr .5, 20 steps, clamp 1."""

    lr: float = Field(0.2, gt=0)
    steps: int = Field(30, ge=1)
    kl_factor: float = Field(1.0, ge=0)
    hit_weight: float = Field(0.1, gt=0)
    """Weight of the target's loss while every token of the target is the likeliest one."""


class PmetConfig(LeastSquaresConfig):
    """Settings of PMET."""

    retrievable: ClassVar[bool] = True
    type: Literal["pmet"] = "pmet"
    values: PmetValues = PmetValues()
    """How target values are optimized."""


class Pmet(Memit):
    """MEMIT on values that leave attention its share."""

    config: PmetConfig
    measures = "outputs"

    def variant(self, requests: Sequence[EditRequest]) -> Variant:
        return Variant(joint=True, hit_weight=self.config.values.hit_weight)

    def spread(self, remaining: int) -> float:
        return float(remaining) ** 0.5

    def residual(
        self, model: EditableModel, walk: SubjectPass, wanted: Tensor, layer: int, last: int, divisor: float
    ) -> Tensor:
        """``wanted`` (d, m) are outputs of the last layer's MLP, and what is missing there is added at every layer."""
        _, mapped = walk.states(last)
        return (wanted - mapped) / divisor
