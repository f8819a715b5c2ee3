"""Lifelong editor state: past keys by layer, the growing systems built on them, and what else an editor remembers.

A state is a pure function of the ordered commits and the covariance it names. It is a value: changes give a new
state and the old one stays usable, so a failed batch leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_json, digest_tensors
from errata.editing.errors import DamagedFileError, ErrataError
from errata.editing.linalg import Base, GrowingSystem
from errata.editing.tensors import read_tensors, write_tensors

MakeBase = Callable[[KeyCovariance, int], Base]
NO_COVARIANCE = KeyCovariance({}, 0, {"kind": "none"})
"""What ``MakeBase`` is given where an editor preserves nothing in particular."""
_FORMAT = "errata-state-1"


@dataclass(frozen=True)
class LifelongState:
    """Past keys (raw, as they were read) with the requests they belong to, and one system per layer."""

    covariance_digest: str | None
    request_ids: tuple[str, ...]
    fact_keys: tuple[str, ...]
    keys: Mapping[int, Tensor]
    """K_p by layer, float32 (d_in, p) on the CPU, columns in the order of ``request_ids``; none for some editors."""
    systems: Mapping[int, GrowingSystem]
    make_base: MakeBase | None = None
    covariance: KeyCovariance | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """Whatever else the editor carries from batch to batch, by a name of its own; on the CPU."""
    grows: bool = True
    """Whether past keys join the systems; they are kept in ``keys`` either way."""

    @classmethod
    def start(
        cls,
        sizes: Mapping[int, int],
        covariance: KeyCovariance | None,
        make_base: MakeBase | None,
        *,
        memory: Mapping[str, Tensor] | None = None,
        grows: bool = True,
    ) -> LifelongState:
        """No past keys; ``sizes`` gives d_in by layer."""
        keys = {layer: torch.zeros(size, 0) for layer, size in sizes.items()}
        state = cls(None, (), (), keys, {}, make_base, None, memory or {}, grows)
        if covariance is not None:
            return state.with_covariance(covariance)
        return replace(state, systems=state._systems(NO_COVARIANCE))

    def with_covariance(self, covariance: KeyCovariance) -> LifelongState:
        """The state on another covariance; every past key is kept."""
        systems = self._systems(covariance)
        return replace(self, covariance_digest=covariance.digest, covariance=covariance, systems=systems)

    def _systems(self, covariance: KeyCovariance) -> dict[int, GrowingSystem]:
        systems: dict[int, GrowingSystem] = {}
        if self.make_base is not None:
            for layer, past in self.keys.items():
                base = self.make_base(covariance, layer)
                held = past if self.grows else past[:, :0]
                systems[layer] = GrowingSystem.start(base, base.restrict(held.double()), past.shape[0])
        return systems

    def appended(
        self, keys: Mapping[int, Tensor], request_ids: Sequence[str], fact_keys: Sequence[str]
    ) -> LifelongState:
        """The state after a batch whose keys (d_in, m) by layer are given."""
        return replace(
            self,
            request_ids=self.request_ids + tuple(request_ids),
            fact_keys=self.fact_keys + tuple(fact_keys),
            keys={layer: torch.cat([past, keys[layer]], dim=1) for layer, past in self.keys.items()},
            systems={
                layer: system.append(keys[layer]) if self.grows else system for layer, system in self.systems.items()
            },
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
        return replace(
            self,
            request_ids=tuple(self.request_ids[i] for i in keep),
            fact_keys=tuple(self.fact_keys[i] for i in keep),
            keys={layer: past[:, keep] for layer, past in self.keys.items()},
            systems={
                layer: system.without(columns) if self.grows else system for layer, system in self.systems.items()
            },
        )

    def holding(self, fact_keys: Sequence[str]) -> list[str]:
        """Requests whose keys are held for any of these facts."""
        wanted = set(fact_keys)
        return [r for r, fact in zip(self.request_ids, self.fact_keys, strict=True) if fact in wanted]

    def remembering(self, memory: Mapping[str, Tensor]) -> LifelongState:
        """The state with some of its memory replaced."""
        return replace(self, memory={**self.memory, **memory})

    # --- as a file ---

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name."""
        tensors = {f"keys.{layer}": past for layer, past in self.keys.items()}
        for layer, system in self.systems.items():
            parts = {"past": system.past, "solved": system.solved, "factor": system.factor, "inverse": system.inverse}
            tensors |= {f"system.{layer}.{name}": part for name, part in parts.items() if part is not None}
        tensors |= {f"memory.{name}": value for name, value in self.memory.items()}
        # a copy each: safetensors refuses tensors that share storage, and slices of one are not contiguous
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}

    def about(self) -> dict[str, Any]:
        """What belongs to the state besides its tensors, as plain data; the covariance is named, not held."""
        return {
            "covariance": self.covariance_digest,
            "request_ids": self.request_ids,
            "fact_keys": self.fact_keys,
            "grows": self.grows,
        }

    def save(self, path: Path) -> None:
        """Write a safetensors file; the covariance is named in it, not held."""
        about, tensors = self.about(), self.tensors()
        metadata = {"about": json.dumps(about), "digest": _digest(about, tensors)}
        write_tensors(path, tensors, _FORMAT, metadata)

    def load(self, path: Path) -> LifelongState:
        """The state that ``save`` wrote, continued on the covariance and the systems' bases of this one.

        This one is what the editor's ``new_state`` gives on the same covariance. Continuing gives the same bits as
        if the state had never been written.

        Raises:
            DamagedFileError: it is not such a file, is cut short, or its bytes have changed.
            ErrataError: it belongs to another covariance, or to other layers.
        """
        metadata, tensors = read_tensors(path, _FORMAT, "state file")
        try:
            about = json.loads(metadata["about"])
        except (KeyError, ValueError) as error:
            raise DamagedFileError(f"state file {path.name!r} cannot be read: {error}") from error
        if _digest(about, tensors) != metadata.get("digest"):
            raise DamagedFileError(f"state file {path.name!r} does not carry its digest")
        return self.restored(about, tensors, f"state file {path.name!r}")

    def restored(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str = "state") -> LifelongState:
        """The state that ``about`` and ``tensors`` describe; see ``load``.

        Raises:
            ErrataError: it belongs to another covariance, or to other layers; ``what`` is named.
        """
        if about["covariance"] != self.covariance_digest or about["grows"] != self.grows:
            raise ErrataError(
                f"{what} was made on covariance {str(about['covariance'])[:12]}, "
                f"the editor holds {str(self.covariance_digest)[:12]}"
            )
        keys = {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith("keys.")}
        if sorted(keys) != sorted(self.keys):
            raise ErrataError(f"{what} holds layers {sorted(keys)}, want {sorted(self.keys)}")
        systems = {
            layer: GrowingSystem(
                system.base,
                tensors[f"system.{layer}.past"],
                tensors[f"system.{layer}.solved"],
                tensors.get(f"system.{layer}.factor"),
                tensors.get(f"system.{layer}.inverse"),
            )
            for layer, system in self.systems.items()
        }
        memory = {n.removeprefix("memory."): value for n, value in tensors.items() if n.startswith("memory.")}
        return replace(
            self,
            request_ids=tuple(about["request_ids"]),
            fact_keys=tuple(about["fact_keys"]),
            keys={layer: keys[layer] for layer in self.keys},
            systems=systems,
            memory=memory,
        )

    def rebuilt(
        self,
        request_ids: Sequence[str],
        fact_keys: Sequence[str],
        keys: Mapping[int, Tensor],
        memory: Mapping[str, Tensor],
    ) -> LifelongState:
        """Another past on the same covariance: all past keys (d_in, p) by layer, and all that is remembered."""
        other = replace(
            self,
            request_ids=tuple(request_ids),
            fact_keys=tuple(fact_keys),
            keys={layer: keys[layer] for layer in self.keys},
            memory=dict(memory),
        )
        return replace(other, systems=other._systems(self.covariance or NO_COVARIANCE))


def _digest(about: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    content = digest_tensors(dict(tensors))
    return digest_json({"about": json.loads(json.dumps(about)), "tensors": content})
