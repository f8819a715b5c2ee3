"""Lifelong editor state: past keys by layer, and the growing systems built on them.

A state is a pure function of the ordered commits and the covariance it names. It is a value: changes give a new
state and the old one stays usable, so a failed batch leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.covariance import KeyCovariance
from editing.linalg import Base, GrowingSystem

MakeBase = Callable[[KeyCovariance, int], Base]


@dataclass(frozen=True)
class LifelongState:
    """Past keys (raw, as they were read) with the requests they belong to, and one system per layer."""

    covariance_digest: str | None
    request_ids: tuple[str, ...]
    fact_keys: tuple[str, ...]
    keys: Mapping[int, Tensor]
    """K_p by layer, float32 (d_in, p) on the CPU, columns in the order of ``request_ids``."""
    systems: Mapping[int, GrowingSystem]
    make_base: MakeBase | None = None

    @classmethod
    def start(
        cls, sizes: Mapping[int, int], covariance: KeyCovariance | None, make_base: MakeBase | None
    ) -> LifelongState:
        """No past keys; ``sizes`` gives d_in by layer."""
        keys = {layer: torch.zeros(size, 0) for layer, size in sizes.items()}
        state = cls(None, (), (), keys, {}, make_base)
        return state.with_covariance(covariance) if covariance is not None else state

    def with_covariance(self, covariance: KeyCovariance) -> LifelongState:
        """The state on another covariance; every past key is kept."""
        systems: dict[int, GrowingSystem] = {}
        if self.make_base is not None:
            for layer, past in self.keys.items():
                base = self.make_base(covariance, layer)
                systems[layer] = GrowingSystem.start(base, base.restrict(past.double()), past.shape[0])
        return LifelongState(covariance.digest, self.request_ids, self.fact_keys, self.keys, systems, self.make_base)

    def appended(
        self, keys: Mapping[int, Tensor], request_ids: Sequence[str], fact_keys: Sequence[str]
    ) -> LifelongState:
        """The state after a batch whose keys (d_in, m) by layer are given."""
        return LifelongState(
            self.covariance_digest,
            self.request_ids + tuple(request_ids),
            self.fact_keys + tuple(fact_keys),
            {layer: torch.cat([past, keys[layer]], dim=1) for layer, past in self.keys.items()},
            {layer: system.append(keys[layer]) for layer, system in self.systems.items()},
            self.make_base,
        )

    def without(self, request_ids: Sequence[str]) -> LifelongState:
        """The state without the keys of some requests: before they are superseded, or after a revert.

        With its old key still among the past ones a second edit of the same fact would store half its residual.
        """
        gone = set(request_ids)
        columns = [i for i, request in enumerate(self.request_ids) if request in gone]
        if not columns:
            return self
        keep = [i for i in range(len(self.request_ids)) if i not in set(columns)]
        return LifelongState(
            self.covariance_digest,
            tuple(self.request_ids[i] for i in keep),
            tuple(self.fact_keys[i] for i in keep),
            {layer: past[:, keep] for layer, past in self.keys.items()},
            {layer: system.without(columns) for layer, system in self.systems.items()},
            self.make_base,
        )

    def holding(self, fact_keys: Sequence[str]) -> list[str]:
        """Requests whose keys are held for any of these facts."""
        wanted = set(fact_keys)
        return [r for r, fact in zip(self.request_ids, self.fact_keys, strict=True) if fact in wanted]
