"""What a value optimization is told and what it finds: settings, a method's variants, target values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from errata.editing.closed import Closed

FAST: dict[str, Any] = {"contexts": 4, "steps": 20, "lr": 0.7}
"""What ``profile: fast`` sets where the settings leave it open."""


class ValueConfig(Closed):
    """Settings of the value optimization; the defaults are MEMIT's for GPT-J with ``lr`` .5."""

    profile: Literal["exact", "fast"] = "exact"
    """``fast``: 4 contexts, 20 steps and lr .7 where they are not given; an approximation, see docs/performance.md."""
    contexts: int | None = Field(None, ge=1)
    """Only so many contexts are optimized on, the empty one first; null for all. Keys are read in all of them."""

    lr: float = Field(0.5, gt=0)
    """Adam's learning rate."""
    steps: int = Field(25, ge=1)
    """Forward passes; there is one update fewer."""
    clamp: float | None = Field(0.75, gt=0)
    """Bound on |delta| / |h|; null for none."""
    weight_decay: float = Field(0.5, ge=0)
    """Weight of |delta| / |h|^2 in the loss."""
    kl_factor: float = Field(0.0625, ge=0)
    """Weight of the divergence from the unedited model after "{subject} is a"."""
    kp_factor: float = Field(0.0, ge=0)
    """beta: weight of the preservation loss L_kp, the squared projections of protected states on the change's direction
    ("uncertainty", eqs. 1 and 2); 0 for none."""
    kp_subjects: tuple[str, ...] = ()
    """Entities whose states at their last token in "{subject} is a" are protected; the paper takes five."""
    stop_loss: float = Field(5e-2, ge=0)
    """An edit stops when its total loss is below this, tested before the update."""
    units: Literal["absolute", "relative"] = "absolute"
    """``absolute``: ``lr`` and ``weight_decay`` have the scale of the model's states, as in the papers. ``relative``:
    they count lengths in the root mean square of what is changed, and ``clamp`` is a share of its mean length over
    the edit's contexts, so that they mean the same on every model."""
    post_norm: Literal["exact", "published"] = "exact"
    """Where a norm follows the MLP: one change for the output of every edited map, found together before the norms
    (exact), or a change of the last layer's state that ignores them, as in published code."""
    batch_tokens: int = Field(2048, ge=1)
    """Positions run at once in one optimization step; bounds the memory."""

    @model_validator(mode="after")
    def _protects_somebody(self) -> ValueConfig:
        if self.kp_factor and not self.kp_subjects:
            raise ValueError("kp_factor needs kp_subjects, the entities that are protected")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, data: Any) -> Any:
        return {**FAST, **data} if isinstance(data, dict) and data.get("profile") == "fast" else data


@dataclass(frozen=True)
class TargetValue:
    """Result for one edit.

    ``h`` and ``delta`` are float32 (d,) in the space that is optimized: the layer's output, or the MLP's output
    where a norm follows it and ``post_norm`` is exact (or where the editor asks for it). ``state`` is the hidden
    state (d,) that the layer's output has then, whatever the space; where several maps have a delta of their own it
    is what they put out then, (n, d).
    """

    h: Tensor
    delta: Tensor
    state: Tensor
    loss: float
    steps: int
    converged: bool
    clamped: bool
    kp_loss: float | None = None
    """L_kp of the change that was found, unweighted; None where nothing is protected."""

    @property
    def z(self) -> Tensor:
        """The target, h + delta."""
        return self.h + self.delta

    @property
    def finite(self) -> bool:
        """Whether the optimization ended at numbers."""
        return math.isfinite(self.loss) and bool(torch.isfinite(self.state).all())


@dataclass(frozen=True)
class Variant:
    """How a method departs from MEMIT's optimization; the defaults are no departure.

    ``groups``: requests (by index) that share one delta, optimized on the mean of their losses; every index once.
    ``prompts``: for each request the templates it is optimized on; else its own prompt.
    ``unit_gradients``: requests of a group count by the direction of their gradient alone.
    ``sphere``: the target keeps the length of the output of the edited map, ``|h - b + delta| = |h - b|``.
    ``hit_weight``: weight of the target's loss while every token of it is the likeliest one.
    ``joint``: a delta of the attention's output and one of the MLP's, (2d,), both at the value layer.
    ``layers``: a delta of the output of the edited map of each of these layers, (n d,), found together; the last is
    the value layer. With ``joint`` the attention's comes before them.
    """

    groups: Sequence[Sequence[int]] | None = None
    prompts: Sequence[Sequence[str]] | None = None
    unit_gradients: bool = False
    sphere: bool = False
    hit_weight: float = 1.0
    joint: bool = False
    layers: tuple[int, ...] = ()


def length_of(vector: Tensor) -> float | None:
    """Euclidean norm in float64; None of an empty vector, which a method without target values has."""
    return float(vector.double().norm()) if vector.numel() else None


PLAIN = Variant()
