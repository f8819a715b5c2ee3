"""Covariances of a mixture of texts, composed from those of its components without reading anything again.

The second moment is linear in the distribution: ``C = sum_i w_i C_i`` (MOIR, appendix A.2, eq. 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError
from errata.editing.estimation.corpus import CorpusConfig, CorpusReading


class ComponentConfig(CorpusReading):
    """One component: a text to read, or a covariance that has been estimated from one."""

    path: str | None = None
    """Text of the component; exclusive with ``file``."""
    file: str | None = None
    """A covariance file that `errata covariance estimate` wrote."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ComponentConfig:
        if (self.path is None) == (self.file is None):
            raise ValueError(f"give one of path and file, got path={self.path}, file={self.file}")
        return self

    def corpus(self) -> CorpusConfig:
        """The text as a corpus of its own; only where ``path`` is given."""
        return CorpusConfig(**{name: getattr(self, name) for name in CorpusConfig.model_fields})


class MixtureConfig(Closed):
    """Weights over named components."""

    weights: dict[str, float] = Field(min_length=1)
    """Share of each component by name, or the name of shipped weights (``olmo-mix``); divided by their sum."""
    components: dict[str, ComponentConfig] = Field(min_length=1)
    """The components by the same names; each is estimated with the covariance's own budget."""

    @field_validator("weights")
    @classmethod
    def _weights_are_shares(cls, weights: dict[str, float]) -> dict[str, float]:
        check_weights(weights)
        return weights

    @model_validator(mode="after")
    def _same_names(self) -> MixtureConfig:
        if set(self.weights) != set(self.components):
            raise ValueError(
                f"weights name {sorted(self.weights)}, components {sorted(self.components)}; they must be the same"
            )
        return self


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless every weight is a finite number of at least 0 and one is above 0."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight of {name!r} must be a finite number of at least 0, got {weight}")
    if not any(weights.values()):
        raise ValueError("at least one weight must be above 0")


def compose(components: Mapping[str, KeyCovariance], weights: Mapping[str, float]) -> KeyCovariance:
    """``sum_i w_i C_i`` with weights divided by their sum; counted as all components' tokens together.

    Raises:
        UserError: weights and components differ in their names, a weight is no share, or the components cover other
            layers or widths.
    """
    if set(components) != set(weights):
        raise UserError(f"weights name {sorted(weights)}, components {sorted(components)}; they must be the same")
    try:
        check_weights(weights)
    except ValueError as error:
        raise UserError(f"mixture: {error}") from error
    names = sorted(components)
    first = components[names[0]]
    total = sum(weights.values())
    tokens = sum(components[name].tokens for name in names)
    for name in names[1:]:
        part = components[name]
        if {i: v.shape for i, v in part.sums.items()} != {i: v.shape for i, v in first.sums.items()}:
            raise UserError(
                f"mixture: component {name!r} covers layers {_shapes(part)}, {names[0]!r} {_shapes(first)}; "
                "all must be of one model and the same layers"
            )
    sums = {}
    for layer in first.layers:
        mean = torch.zeros_like(first.sums[layer])
        for name in names:
            mean += (weights[name] / total) * components[name].mean(layer)
        sums[layer] = mean * tokens
    source = {
        "kind": "mixture",
        "weights": {name: weights[name] for name in names},
        "parts": {name: components[name].digest for name in names},
    }
    return KeyCovariance(sums, tokens, source)


def _shapes(covariance: KeyCovariance) -> str:
    return ", ".join(f"{layer} ({value.shape[0]})" for layer, value in sorted(covariance.sums.items()))
