"""What a process with a model needs at its start: threads, the model, the weights of a version."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from errata.actors.settings import ModelSpec, RoleConfig
from errata.editing.checkpoint.load import load_model
from errata.editing.model.adapter import EditableModel


def load_for(role: RoleConfig, spec: ModelSpec) -> EditableModel:
    """Load the model in this process for a role, or this process's part of it."""
    torch.set_num_threads(role.threads)
    if spec.parallel is not None:
        from errata.actors.sharded.loading import load_spec

        return load_spec(spec)
    return load_model(spec.name, dtype=spec.dtype, device=role.device, digest=spec.digest)


def yield_to_others(role: RoleConfig) -> None:
    """Lower this process's priority by what the role says; for a process that is an actor and nothing else."""
    if role.nice:
        os.nice(role.nice)


class VersionedModel:
    """A model whose edited maps are set to one version or another; the base is kept to go back to."""

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self._base: dict[int, Tensor] = {}
        self._version: str | None = None

    def base(self, layers: tuple[int, ...]) -> dict[int, Tensor]:
        """Unedited float32 maps of the layers."""
        for layer in layers:
            if layer not in self._base:
                self._base[layer] = self.model.weight(layer).clone()
        return {layer: self._base[layer] for layer in layers}

    def show_base(self) -> None:
        """Make the live weights the base's, whoever used the model before."""
        if self._version is not None:
            self.show("", {})
            self._version = None

    def show(self, version: str, weights: Mapping[int, Tensor]) -> None:
        """Make the live weights those of ``version``; layers not given are the base's."""
        if version == self._version:
            return
        self.base(tuple(weights))
        for layer, unedited in self._base.items():
            self.model.set_weight(layer, weights.get(layer, unedited))
        self._version = version
