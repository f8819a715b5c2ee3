"""The weights of any version, from the base checkpoint's files and the stored deltas; no model is loaded.

The deltas are applied by `errata.editing.delta.apply_delta` in their order, as the editor itself does, so on
the same kind of device the bytes are the editor's. Letters: O = d_out, I = d_in of the edited map.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from errata.editing.checkpoint.load import DTYPES, checkpoint_digest, resolve_model
from errata.editing.delta import WeightDelta, apply_delta
from errata.editing.digest import digest_tensors
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.model.decoder import FAMILIES, Decoder, is_module
from errata.editing.modules.packed import EMPTY
from errata.orchestrator.history.gaps import Gaps, load_floor, start_for
from errata.orchestrator.history.modules import joined
from errata.orchestrator.history.receipts import read_change
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"

_COMMITS_AT_ONCE: Final = 1000
"""Commits whose rows are in memory together."""

STORED_DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types a weight may be stored in. Quantized checkpoints have others and cannot be edited in place."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes lie: ``file[start:end]``, row-major, of that type and shape."""

    name: str
    file: Path
    dtype: str
    """As safetensors calls it: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    end: int


class BaseCheckpoint:
    """The edited maps of a checkpoint, read by name from its safetensors files.

    Args:
        directory: with ``config.json`` and ``model.safetensors`` or its shards and their index.
        dtype: in which the run held its model; the float32 masters are casts of that.

    Raises:
        UserError: the family is not supported, or there are no safetensors weights.
    """

    def __init__(self, directory: Path, *, dtype: str = "float32") -> None:
        self.directory = Path(directory)
        self._served = DTYPES[dtype]
        self.family: type[Decoder] = _family(self.directory)
        self.weight_files: tuple[Path, ...] = _weight_files(self.directory)
        self._places: dict[str, StoredTensor] = {}
        for file in self.weight_files:
            self._places.update(_header(file))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all stored tensors, in order."""
        return tuple(sorted(self._places))

    def place(self, layer: int) -> StoredTensor:
        """Where the edited weight of a layer is stored.

        Raises:
            UserError: the checkpoint has no such tensor, or it is stored in a type that is not a plain float.
        """
        name = self.family.parameter_name(layer)
        # some checkpoints were saved from the bare decoder, without the language model's prefix
        bare = name.partition(".")[2]
        place = self._places.get(name) or self._places.get(bare)
        if place is None:
            raise UserError(f"checkpoint {str(self.directory)!r} holds no tensor {name!r}; is it the run's base model?")
        if place.dtype not in STORED_DTYPES:
            raise UserError(f"tensor {name!r} is stored as {place.dtype}; allowed: {', '.join(STORED_DTYPES)}")
        return place

    def map(self, layer: int) -> Tensor:
        """The unedited map of a layer as the editor starts from it: float32 (O, I); no bytes for a module's slot."""
        if is_module(layer):
            return EMPTY
        place = self.place(layer)
        with safe_open(place.file, framework="pt") as file:
            stored = file.get_tensor(place.name).to(self._served).to(torch.float32)
        return stored.T.contiguous() if self.family.transposed else stored

    def encode(self, layer: int, weight: Tensor) -> bytes:
        """A master (O, I) as the checkpoint stores that layer: its orientation, its type, its byte order.

        Raises:
            ValueError: the shape is not that of the stored tensor.
        """
        place = self.place(layer)
        stored = (weight.T if self.family.transposed else weight).to(STORED_DTYPES[place.dtype]).contiguous()
        if tuple(stored.shape) != place.shape:
            raise ValueError(f"layer {layer}: weight of shape {tuple(stored.shape)}, stored is {place.shape}")
        return stored.reshape(-1).view(torch.uint8).numpy().tobytes()


def base_maps(directory: Path, layers: Sequence[int], *, dtype: str = "float32") -> dict[int, Tensor]:
    """Unedited maps of the given layers, float32 (O, I), straight from the files.

    Raises:
        UserError: see :class:`BaseCheckpoint`.
    """
    checkpoint = BaseCheckpoint(directory, dtype=dtype)
    return {layer: checkpoint.map(layer) for layer in layers}


def open_base(journal: JournalReader, model: str | None = None) -> BaseCheckpoint:
    """The checkpoint that a run was begun on, checked against the digest in its journal.

    Args:
        model: directory or name, where it is no longer at the place that the run's configuration names.

    Raises:
        UserError: it is not there, or it is another one.
    """
    directory = base_directory(journal, model)
    actual = checkpoint_digest(directory)
    if actual != journal.meta.base_digest:
        raise UserError(
            f"model {str(directory)!r} has digest {actual[:12]}, the run was begun on {journal.meta.base_digest[:12]}; "
            "give the right one with --model"
        )
    return BaseCheckpoint(directory, dtype=run_dtype(journal))


def base_directory(journal: JournalReader, model: str | None = None) -> Path:
    """Directory of the base checkpoint, unchecked.

    Raises:
        UserError: it is not there.
    """
    try:
        return resolve_model(model if model is not None else model_name(journal))
    except UserError as error:
        raise UserError(f"{error}; --model says where the run's base model is now") from error


def model_name(journal: JournalReader) -> str:
    """What the run's configuration calls its model."""
    return str(_section(journal, "model").get("name", ""))


def run_dtype(journal: JournalReader) -> str:
    """Type of the run's forward pass, by name."""
    return str(_section(journal, "model").get("dtype", "float32"))


def editor_name(journal: JournalReader) -> str:
    """Name of the run's editor."""
    return str(_section(journal, "editor").get("type", ""))


def edited_layers(journal: JournalReader) -> tuple[int, ...]:
    """Numbers of the maps and slots that the run may have changed: those that every commit gives norms for; of a run
    without commits, the layers of its editor."""
    told = {*journal.version(min(1, journal.head().sequence)).norms, *journal.head().norms}
    return tuple(sorted(told or {int(layer) for layer in _section(journal, "editor").get("layers", ())}))


def load_delta(store: ArtifactStore, version: Version) -> WeightDelta | None:
    """The change that a commit made, verified; None if it made none.

    Raises:
        DamagedFileError: its file is damaged or gone; the message names the commit.
    """
    try:
        delta = None if version.delta is None else read_change(store, version.delta)
        return joined(store, delta, version.parts)
    except FileNotFoundError as error:
        raise DamagedFileError(f"v{version.sequence}: its delta {str(version.delta)[:12]} is missing") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"v{version.sequence}: {error}") from error


def changes(
    journal: JournalReader, store: ArtifactStore, after: int, upto: int
) -> Iterator[tuple[Version, WeightDelta | None]]:
    """Commits ``after + 1`` to ``upto`` with what they changed, in order.

    Raises:
        DamagedFileError: while iterating, at the first commit whose file is damaged or gone.
    """
    for start in range(after, upto, _COMMITS_AT_ONCE):
        for version in journal.versions_between(start, min(start + _COMMITS_AT_ONCE, upto)):
            yield version, load_delta(store, version)


def advance(weights: Mapping[int, Tensor], delta: WeightDelta | None) -> dict[int, Tensor]:
    """The weights after one more commit; what is passed in is left alone.

    Raises:
        DamagedFileError: the commit changes a layer of which no weight is given.
    """
    after = dict(weights)
    for layer, change in {} if delta is None else delta.layers.items():
        if layer not in after:
            raise DamagedFileError(f"a delta changes layer {layer}, the run's editor has {sorted(after)}")
        after[layer] = apply_delta(after[layer], change)
    return after


def weights_at(
    journal: JournalReader, store: ArtifactStore, base: Mapping[int, Tensor], version: Version
) -> dict[int, Tensor]:
    """Float32 masters (O, I) of every edited layer at a version.

    Args:
        base: the unedited maps, from :func:`base_maps`.

    Raises:
        DamagedFileError: a delta on the way there is damaged or gone.
        UserError: the version cannot be rebuilt any more.
    """
    start, weights = start_for(journal, store, base, version)
    for _, delta in changes(journal, store, start, version.sequence):
        weights = advance(weights, delta)
    return weights


def states(
    journal: JournalReader, store: ArtifactStore, base: Mapping[int, Tensor], upto: int
) -> Iterator[tuple[Version, dict[int, Tensor]]]:
    """Every version from 1 to ``upto`` that can be rebuilt, with its float32 masters (O, I), in order.

    Raises:
        DamagedFileError: while iterating, at the first commit whose file is damaged or gone.
    """
    gaps = Gaps.of(journal)
    floors = {gap.floor: gap for gap in gaps.all}
    weights = dict(base)
    for start in range(0, upto, _COMMITS_AT_ONCE):
        for version in journal.versions_between(start, min(start + _COMMITS_AT_ONCE, upto)):
            if gaps.at(version.sequence) is not None:
                continue
            floor = floors.get(version.sequence)
            if floor is not None:
                weights = dict(load_floor(store, floor).weights)
            else:
                weights = advance(weights, load_delta(store, version))
            yield version, weights


def weights_digest(weights: Mapping[int, Tensor]) -> str:
    """Digest of the edited matrices of a version: equal for equal bytes."""
    return digest_tensors({str(layer): weight for layer, weight in weights.items()})


# ---------------------------------------------------------------- reading files


def _section(journal: JournalReader, name: str) -> Mapping[str, Any]:
    section = journal.meta.config.get(name)
    return section if isinstance(section, Mapping) else {}


def _family(directory: Path) -> type[Decoder]:
    try:
        model_type = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"model {str(directory)!r}: its config.json cannot be read ({type(error).__name__})") from error
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"model type {model_type!r} of {str(directory)!r} is not supported; supported: {known}")
    return FAMILIES[model_type]


def _weight_files(directory: Path) -> tuple[Path, ...]:
    """The files that loading the model would read: one, or those that the index names."""
    if (directory / SINGLE).is_file():
        return (directory / SINGLE,)
    if (directory / INDEX).is_file():
        names = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return tuple(directory / name for name in sorted(set(names)))
    raise UserError(f"model {str(directory)!r} has no {SINGLE} and no {INDEX}; no other form of weights can be read")


def _header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file by name; positions count from the start of the file."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        places = {}
        for name, entry in header.items():
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            places[name] = StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), start, end)
        return places
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"{str(file)!r} is not a safetensors file ({type(error).__name__})") from error
