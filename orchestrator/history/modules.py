"""Modules in a journal: files beside the deltas, which a commit names as parts, and which of them are in force.

In memory a commit's change is one `WeightDelta`, slots of modules among its layers. On disk the slots stand apart:
a file under ``modules/`` each, named by the digest of its bytes (docs/decisions/0009-commit-format.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.model.decoder import is_module, module_number
from errata.editing.modules.packed import unpack
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version, VersionParts

INSTEAD = (
    "serve it with `errata serve`, or ask it through the Python API; a method that changes weights "
    "(see docs/methods.md) can be exported"
)
"""What to do where a module cannot go."""
_UNKNOWN = -1


def split(delta: WeightDelta) -> tuple[WeightDelta | None, dict[int, LayerDelta]]:
    """What a change does to weights, None if nothing, and what it does to slots."""
    slots = {number: change for number, change in delta.layers.items() if is_module(number)}
    weights = {number: change for number, change in delta.layers.items() if number not in slots}
    return replace(delta, layers=weights) if weights or not slots else None, slots


def store_modules(store: ArtifactStore, delta: WeightDelta | None) -> tuple[str, ...]:
    """Write what a change does to slots; digests, in the order of the layers."""
    if delta is None:
        return ()
    slots = split(delta)[1]
    return tuple(
        store.put_bytes("modules", slots[number].left.numpy().tobytes(), suffix=".safetensors")
        for number in sorted(slots)
    )


def load_module(store: ArtifactStore, digest: str) -> Tensor:
    """A stored module, or change of one, as bytes, verified.

    Raises:
        DamagedFileError, FileNotFoundError: its file is damaged or gone.
    """
    return torch.frombuffer(bytearray(store.get("modules", digest).read_bytes()), dtype=torch.uint8)


def joined(store: ArtifactStore, delta: WeightDelta | None, parts: VersionParts) -> WeightDelta | None:
    """A commit's change of weights with what its parts do to slots.

    Raises:
        DamagedFileError: a module's file is damaged or gone.
    """
    if not parts.modules:
        return delta
    layers = {} if delta is None else dict(delta.layers)
    kind = "" if delta is None else delta.editor
    for digest in parts.modules:
        try:
            packed = load_module(store, digest)
        except FileNotFoundError as error:
            raise DamagedFileError(f"module {digest[:12]} is missing") from error
        content = unpack(packed, f"module {digest[:12]}")
        layers[module_number(content.layer)] = LayerDelta("module", packed)
        kind = kind or content.kind
    return WeightDelta(dict(sorted(layers.items())), kind, {} if delta is None else delta.notes)


class ModulesInForce:
    """Digests that make up the modules of the newest version, by layer; reads each commit once."""

    def __init__(self, journal: JournalReader, store: ArtifactStore) -> None:
        self._journal, self._store = journal, store
        self._seen = 0
        self._digests: dict[str, int] = {}

    def parts(self, delta: WeightDelta | None, stored: tuple[str, ...]) -> VersionParts:
        """The parts of a commit that is to follow the newest one: what it installs, and what that takes out.

        Args:
            delta: its change.
            stored: what `store_modules` gave for it.
        """
        if not stored or delta is None:
            return VersionParts()
        self._catch_up()
        slots = split(delta)[1]
        contents = [unpack(slots[number].left) for number in sorted(slots)]
        fresh = {content.layer for content in contents if content.form == "whole"}
        taken = {*fresh, _UNKNOWN} if fresh else fresh
        removed = tuple(d for d, layer in self._digests.items() if layer in taken and d not in stored)
        return VersionParts(modules=stored, removed=removed)

    def _layer(self, digest: str) -> int:
        try:
            return unpack(load_module(self._store, digest)).layer
        except FileNotFoundError:  # a compaction has dropped it: its digest stays as a name
            return _UNKNOWN

    def _catch_up(self) -> None:
        head = self._journal.head().sequence
        if self._seen < head:
            for version in self._journal.versions_between(self._seen, head):
                for digest in version.parts.removed:
                    self._digests.pop(digest, None)
                for digest in version.parts.modules:
                    self._digests.pop(digest, None)
                    self._digests[digest] = self._layer(digest)
            self._seen = head


def changed(version: Version) -> bool:
    """Whether a commit changed what the model computes."""
    return version.delta is not None or bool(version.parts.modules)


def require_no_modules(journal: JournalReader, version: Version, what: str) -> None:
    """Raise UserError where a version has modules, which ``what`` cannot hold."""
    since = next((v.sequence for v in journal.versions_between(0, version.sequence) if v.parts.modules), None)
    if since is not None:
        raise UserError(
            f"v{version.sequence} has modules in its layers, the first since v{since}; {what} cannot hold them: "
            f"{INSTEAD}"
        )
