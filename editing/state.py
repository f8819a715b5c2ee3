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

from errata.editing.columns import Columns
from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_json, digest_tensors
from errata.editing.errors import DamagedFileError, ErrataError
from errata.editing.forms import CapacitanceForm, GramForm, gram_of
from errata.editing.linalg import Base, GrowingSystem
from errata.editing.tensors import read_tensors, write_tensors

MakeBase = Callable[[KeyCovariance, int], Base]
OldKeys = Mapping[str, Mapping[int, Tensor]]
"""Raw keys (d_in,) float32 by request and layer."""
NO_COVARIANCE = KeyCovariance({}, 0, {"kind": "none"})
"""What ``MakeBase`` is given where an editor preserves nothing in particular."""
_FORMAT = "errata-state-1"


@dataclass(frozen=True)
class LifelongState:
    """Past keys (raw, as they were read) with the requests they belong to, and one system per layer."""

    covariance_digest: str | None
    request_ids: tuple[str, ...]
    fact_keys: tuple[str, ...]
    held: Mapping[int, Columns]
    """K_p by layer, float32 (d_in, p) on the CPU, columns in the order of ``request_ids``; none for some editors. Of a
    bounded state that has seen d_in keys at a layer nothing is held there any more."""
    systems: Mapping[int, GrowingSystem]
    make_base: MakeBase | None = None
    covariance: KeyCovariance | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """Whatever else the editor carries from batch to batch, by a name of its own; on the CPU."""
    grows: bool = True
    """Whether past keys join the systems; they are kept in ``held`` either way."""
    bounded: bool = False
    """Whether raw keys are given up once a layer's Gram matrix says all that its system needs."""

    @classmethod
    def start(
        cls,
        sizes: Mapping[int, int],
        covariance: KeyCovariance | None,
        make_base: MakeBase | None,
        *,
        memory: Mapping[str, Tensor] | None = None,
        grows: bool = True,
        bounded: bool = False,
    ) -> LifelongState:
        """No past keys; ``sizes`` gives d_in by layer."""
        held = {layer: Columns.of(torch.zeros(size, 0)) for layer, size in sizes.items()}
        bounded = bounded and grows and make_base is not None
        state = cls(None, (), (), held, {}, make_base, None, memory or {}, grows, bounded)
        if covariance is not None:
            return state.with_covariance(covariance)
        return replace(state, systems=state._systems(NO_COVARIANCE))

    @property
    def keys(self) -> dict[int, Tensor]:
        """Copies of the raw past keys by layer, float32 (d_in, p); (d_in, 0) where they are not held any more."""
        return {layer: held.dense() for layer, held in self.held.items()}

    @property
    def wants_keys(self) -> bool:
        """Whether ``without`` must be told the keys that leave: they are not held any more at some layer."""
        return any(self._given_up(layer) for layer in self.systems)

    def _given_up(self, layer: int) -> bool:
        return self.bounded and self.systems[layer].dense

    def with_covariance(self, covariance: KeyCovariance) -> LifelongState:
        """The state on another covariance; every past key is kept."""
        systems = self._systems(covariance)
        return replace(self, covariance_digest=covariance.digest, covariance=covariance, systems=systems)

    def _systems(self, covariance: KeyCovariance) -> dict[int, GrowingSystem]:
        systems: dict[int, GrowingSystem] = {}
        if self.make_base is not None:
            for layer, held in self.held.items():
                base = self.make_base(covariance, layer)
                before = self.systems.get(layer)
                if before is not None and self._given_up(layer) and isinstance(before.form, GramForm):
                    systems[layer] = GrowingSystem(GramForm.start(base, before.form.current_gram()), None)
                else:
                    past = held if self.grows else Columns.of(held.at([]))
                    systems[layer] = GrowingSystem.over(base, past, keep=False)
        return systems

    def appended(
        self, keys: Mapping[int, Tensor], request_ids: Sequence[str], fact_keys: Sequence[str]
    ) -> LifelongState:
        """The state after a batch whose keys (d_in, m) by layer are given."""
        systems = dict(self.systems)
        if self.grows:
            systems = {layer: s.append(keys[layer], held=self.held[layer]) for layer, s in self.systems.items()}
        grown = replace(
            self,
            request_ids=self.request_ids + tuple(request_ids),
            fact_keys=self.fact_keys + tuple(fact_keys),
            systems=systems,
        )
        held = {
            layer: Columns.of(past.at([])) if layer in systems and grown._given_up(layer) else past.append(keys[layer])
            for layer, past in self.held.items()
        }
        return replace(grown, held=held)

    def without(self, request_ids: Sequence[str], keys: OldKeys | None = None) -> LifelongState:
        """The state without the keys of some requests: before they are superseded, or after a revert.

        With its old key still among the past ones a second edit of the same fact would store half its residual.

        Args:
            keys: by request and layer, what each of them added; needed where ``wants_keys``.

        Raises:
            ErrataError: a key is needed and was not given.
        """
        gone = set(request_ids)
        columns = [i for i, request in enumerate(self.request_ids) if request in gone]
        if not columns:
            return self
        names = [self.request_ids[i] for i in columns]
        drop = set(columns)
        keep = [i for i in range(len(self.request_ids)) if i not in drop]
        systems, held = dict(self.systems), dict(self.held)
        for layer, past in self.held.items():
            if layer not in systems or not self._given_up(layer):
                leaving = past.at(past.places(columns))
                held[layer] = past.without(columns)
                if layer in systems and self.grows:
                    system = systems[layer]
                    systems[layer] = system.without(leaving if system.dense else columns)
            else:
                systems[layer] = systems[layer].without(_given(keys or {}, names, layer))
        return replace(
            self,
            request_ids=tuple(self.request_ids[i] for i in keep),
            fact_keys=tuple(self.fact_keys[i] for i in keep),
            held=held,
            systems=systems,
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
        tensors = {f"keys.{layer}": held.dense() for layer, held in self.held.items()}
        for layer, system in self.systems.items():
            tensors |= {f"system.{layer}.{name}": part for name, part in system.form.tensors().items()}
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
        if sorted(keys) != sorted(self.held):
            raise ErrataError(f"{what} holds layers {sorted(keys)}, want {sorted(self.held)}")
        held = {layer: Columns.of(keys[layer]) for layer in self.held}
        systems = {}
        for layer, system in self.systems.items():
            head = f"system.{layer}."
            parts = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
            if "inverse" in parts:  # releases before 0.2 kept an inverse and all keys
                gram = gram_of(Columns.of(keys[layer]))
                systems[layer] = GrowingSystem(GramForm.start(system.base, gram), None)
            elif "gram" in parts:
                systems[layer] = GrowingSystem(GramForm.restored(system.base, parts), None)
            else:
                systems[layer] = GrowingSystem(CapacitanceForm.restored(system.base, parts), None)
            if self.bounded and systems[layer].dense:
                held[layer] = Columns.of(held[layer].at([]))
        memory = {n.removeprefix("memory."): value for n, value in tensors.items() if n.startswith("memory.")}
        return replace(
            self,
            request_ids=tuple(about["request_ids"]),
            fact_keys=tuple(about["fact_keys"]),
            held=held,
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
            held={layer: Columns.of(keys[layer]) for layer in self.held},
            memory=dict(memory),
            systems={},
        )
        return replace(other, systems=other._systems(self.covariance or NO_COVARIANCE))


def _given(keys: OldKeys, names: Sequence[str], layer: int) -> Tensor:
    """The keys (d_in, m) of these requests at a layer."""
    missing = [name for name in names if layer not in keys.get(name, {})]
    if missing:
        raise ErrataError(
            f"the keys of {missing[:5]} at layer {layer} are to leave and are not held any more; "
            "they are in the receipts of the commits that wrote them"
        )
    return torch.stack([keys[name][layer] for name in names], dim=1)


def _digest(about: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    content = digest_tensors(dict(tensors))
    return digest_json({"about": json.loads(json.dumps(about)), "tensors": content})
