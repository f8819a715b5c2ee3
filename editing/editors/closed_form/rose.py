"""RoSE: edits of one subject that hold when the question is put differently.

Isotropic geometric alignment (IGA) solves ``R K^T (I + K K^T)^-1``: the identity with weight 1 in the place of
``lambda C``, so that no direction in which keys of different wordings differ is amplified. Hierarchical knowledge
integration (HKI) optimizes one value per subject: for each relation the gradients of several linguistic forms are
averaged to a centroid, and the centroids are averaged over the subject's relations. RoSE, secs. 4.1 and 4.2; HKI is
reconstructed from its description: the templates stand in the place of the context prefixes, the centroids are plain
means, and with equally many templates per relation the two means are one flat mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from errata.editing.covariance import KeyCovariance
from errata.editing.editors.closed_form.locate import LeastSquaresConfig
from errata.editing.editors.closed_form.memit import Memit
from errata.editing.editors.closed_form.memit_merge import MergeValues, by_subject
from errata.editing.linalg import Base, ScaledIdentity
from errata.editing.request import EditRequest
from errata.editing.values import Variant

PROMPT = "{prompt}"
TEMPLATES = (
    "{prompt}",
    "It is a fact that {prompt}",
    "As is well known, {prompt}",
    "Complete the sentence: {prompt}",
    "Question: how does this go on? {prompt} ...\nAnswer:",
    "Fill in the blank. {prompt} ____.\nThe missing words are:",
    "Answer in a few words. {prompt} what?\nShort answer:",
    "User: Please finish this statement. {prompt}\nAssistant:",
)
"""Declarative, question and instruction forms of a prompt; the first is the prompt itself."""


class RoseConfig(LeastSquaresConfig):
    """Settings of RoSE; the paper edits layers 4 to 8."""

    type: Literal["rose"] = "rose"
    values: MergeValues = MergeValues()
    """How target values are optimized."""
    past_keys: bool = False
    """Keep the keys of earlier edits (a lifelong form; the published method has none)."""
    iga: bool = True
    """Solve with the identity of weight 1; false solves with cov_weight times the covariance."""
    hki: bool = True
    """Optimize over the templates; false optimizes over the context prefixes, as MEMIT-Merge does."""
    templates: tuple[str, ...] = Field(TEMPLATES, min_length=1)
    """Linguistic forms of every relation, with ``{prompt}`` in the place of the request's prompt; 8 in the paper."""
    unit_centroids: bool = False
    """Count the centroids of a subject's relations by their direction alone."""

    @field_validator("templates")
    @classmethod
    def _have_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count(PROMPT) != 1 or "{}" in template:
                raise ValueError(f"each must contain {PROMPT!r} exactly once and no other slot, got {template!r}")
        return templates


class Rose(Memit):
    """MEMIT-Merge with an isotropic constraint and values averaged over linguistic forms."""

    config: RoseConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.needs_covariance = not config.iga

    def base_of(self, covariance: KeyCovariance, layer: int) -> Base:
        return ScaledIdentity(1.0) if self.config.iga else super().base_of(covariance, layer)

    def variant(self, requests: Sequence[EditRequest]) -> Variant:
        forms = [[template.replace(PROMPT, r.prompt) for template in self.config.templates] for r in requests]
        return Variant(
            groups=by_subject(requests),
            prompts=forms if self.config.hki else None,
            unit_gradients=self.config.unit_centroids,
        )
