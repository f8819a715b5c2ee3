"""A version as files that other programs read: a whole checkpoint, one accumulated change, a LoRA adapter.

Nothing half-written is ever seen under the name that was asked for: everything is made beside it and renamed.
Letters: O = d_out, I = d_in, r rank, m accumulated rank (columns of all commits together).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from errata.editing.delta import LayerDelta, WeightDelta, apply_delta, one_thread
from errata.editing.errors import UserError
from errata.orchestrator.history.gaps import Gaps, start_for
from errata.orchestrator.history.modules import require_no_modules
from errata.orchestrator.history.rebuild import (
    INDEX,
    BaseCheckpoint,
    advance,
    changes,
    edited_layers,
    editor_name,
    model_name,
    weights_digest,
)
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

VERSION_FILE: Final = "errata-version.json"

# Of a checkpoint's other files these are copied. Weights in other forms (.bin, .gguf, a second safetensors file)
# would still hold the unedited model, so they are left behind.
_COPIED_SUFFIXES: Final = frozenset({".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".py"})
_COPIED_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
_COPIED_FOLDERS: Final = ("additional_chat_templates",)
_TEMPORARY: Final = ".tmp-"

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and its total."""


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Edition:
    """A version's weights with what they came from; see :func:`edition`."""

    version: Version
    layers: tuple[int, ...]
    deltas: tuple[WeightDelta, ...]
    base: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]
    card: Mapping[str, Any]
    """What ``errata-version.json`` says, whatever the form."""


def edition(
    journal: JournalReader,
    store: ArtifactStore,
    checkpoint: BaseCheckpoint,
    version: Version,
    progress: Progress = _silent,
) -> Edition:
    """Rebuild a version in memory: its edited matrices, not its model.

    Raises:
        DamagedFileError: a delta on the way there is damaged or gone.
        UserError: the checkpoint lacks an edited layer, or the version has modules, which no exported form can hold.
    """
    require_no_modules(journal, version, "a checkpoint, a delta file, a PEFT adapter or a server of vLLM")
    layers = edited_layers(journal)
    base = {layer: checkpoint.map(layer) for layer in layers}
    start, weights = start_for(journal, store, base, version)
    deltas = [] if start == 0 else [_from_base(journal, base, weights)]
    for commit, delta in changes(journal, store, start, version.sequence):
        weights = advance(weights, delta)
        if delta is not None:
            deltas.append(delta)
        progress("replay", commit.sequence, version.sequence)
    card = {
        "format": "errata-version-1",
        "version": version.digest,
        "sequence": version.sequence,
        "edits": version.edits,
        "parents": [version.parent] if version.parent else [],
        "deltas": [v.delta for v in journal.versions()[: version.sequence + 1] if v.delta],
        "base": {"name": model_name(journal), "digest": journal.meta.base_digest},
        "journal": journal.meta.run_id,
        "editor": editor_name(journal),
        "errata_version": journal.meta.errata_version,
        "layers": list(layers),
        "weights": weights_digest(weights),
    }
    return Edition(version, layers, tuple(deltas), base, weights, card)


def _from_base(journal: JournalReader, base: Mapping[int, Tensor], weights: Mapping[int, Tensor]) -> WeightDelta:
    """All that lies before a snapshot, as one change."""
    layers = {n: LayerDelta("dense", (weights[n].double() - base[n].double()).float()) for n in weights}
    return WeightDelta(layers, editor_name(journal))


# ---------------------------------------------------------------- a whole checkpoint


def write_checkpoint(
    edition: Edition, checkpoint: BaseCheckpoint, output: Path, progress: Progress = _silent
) -> dict[str, Any]:
    """Copy the base checkpoint to ``output`` with the edited matrices in place; returns the card it carries.

    The files are copied and the bytes of the edited tensors overwritten, so memory holds the edited matrices and
    no more. A tensor keeps the type it was stored in: of a float32 checkpoint the result holds the masters byte for
    byte, of a half-precision one their casts, and the card says how much that rounds.

    Raises:
        UserError: ``output`` is not empty, or cannot be written.
    """
    rounding = {}
    with _new_directory(output) as directory:
        _copy_companions(checkpoint.directory, directory)
        for number, file in enumerate(checkpoint.weight_files, 1):
            shutil.copyfile(file, directory / file.name)
            progress("copy", number, len(checkpoint.weight_files))
        for layer in edition.layers:
            place = checkpoint.place(layer)
            data = checkpoint.encode(layer, edition.weights[layer])
            with (directory / place.file.name).open("r+b") as stream:
                stream.seek(place.start)
                stream.write(data)
        copy = BaseCheckpoint(directory)
        for layer in edition.layers:
            rounding[layer] = _relative(copy.map(layer), edition.weights[layer], edition.weights[layer])
        card = {**edition.card, "form": "full", "rounding": _by_layer(rounding)}
        _write_json(directory / VERSION_FILE, card)
    return card


def _copy_companions(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in _COPIED_FOLDERS:
            shutil.copytree(path, target / path.name)
        elif path.is_file() and (path.suffix in _COPIED_SUFFIXES or path.name in _COPIED_NAMES):
            other_weights = path.name.endswith(".index.json") and path.name != INDEX
            if not other_weights and not path.name.startswith("errata-"):  # those tell of the base, not of the copy
                shutil.copyfile(path, target / path.name)


# ---------------------------------------------------------------- one accumulated change


def accumulate(edition: Edition) -> WeightDelta:
    """All commits as one change per layer, in the smallest form that loses nothing but a rounding.

    Low-rank changes are stacked: ``[L1 L2 ...] @ [R1; R2; ...]``. Orthogonal ones are multiplied. Where they mix,
    or where the stack would be larger than the matrix, it is the difference of the matrices.
    """
    layers: dict[int, LayerDelta] = {}
    for layer in edition.layers:
        parts = [delta.layers[layer] for delta in edition.deltas if layer in delta.layers]
        if parts:
            layers[layer] = _combined(parts, edition.base[layer], edition.weights[layer])
    return WeightDelta(layers, edition.card["editor"])


def _combined(parts: Sequence[LayerDelta], base: Tensor, weight: Tensor) -> LayerDelta:
    stacked = _stacked(parts)
    if stacked is not None and stacked[0].numel() + stacked[1].numel() <= base.numel():
        return LayerDelta("low_rank", *stacked)
    if all(part.kind == "orthogonal" for part in parts):
        with one_thread():
            product = reduce(lambda done, part: part.left.double() @ done, parts[1:], parts[0].left.double())
        return LayerDelta("orthogonal", product.float())
    return LayerDelta("dense", (weight.double() - base.double()).float())


def _stacked(parts: Sequence[LayerDelta]) -> tuple[Tensor, Tensor] | None:
    """Factors (O, m) and (m, I) of the sum, if every part has factors."""
    rights = [part.right for part in parts if part.right is not None]
    if not parts or len(rights) < len(parts):
        return None
    return torch.cat([part.left for part in parts], dim=1), torch.cat(rights, dim=0)


def change_norms(journal: JournalReader, store: ArtifactStore, first: Version, second: Version) -> dict[int, float]:
    """Frobenius norm of the difference between two versions' matrices, by layer, without the base model.

    Only from changes that add; after a multiplication the difference depends on the base, and the result is empty. So
    it is where changes in between were dropped.

    Raises:
        DamagedFileError: a delta between them is damaged or gone.
    """
    low, high = sorted((first.sequence, second.sequence))
    gaps = Gaps.of(journal)
    if any(low < gap.floor and gap.first <= high for gap in gaps.all):
        return {}  # what lies between was dropped
    parts: dict[int, list[LayerDelta]] = {}
    for _, delta in changes(journal, store, low, high):
        for layer, change in {} if delta is None else delta.layers.items():
            if change.kind != "module":
                parts.setdefault(layer, []).append(change)
    if any(change.kind == "orthogonal" for several in parts.values() for change in several):
        return {}
    return {layer: _sum_norm(several) for layer, several in sorted(parts.items())}


def _sum_norm(parts: Sequence[LayerDelta]) -> float:
    stacked = _stacked(parts)
    if stacked is not None:
        return LayerDelta("low_rank", *stacked).norm
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        left = part.left.double()
        total = total + (left if part.right is None else left @ part.right.double())
    return float(total.norm())


def write_delta(edition: Edition, output: Path) -> dict[str, Any]:
    """Write the accumulated change as one safetensors file that ``WeightDelta.load`` reads; returns its card.

    The card is also in the file's metadata. ``relative_error`` is how far base + change is from the version's
    matrices, in units of the change: commits are rounded to float32 one by one, the sum once.

    Raises:
        UserError: the version changes nothing, ``output`` exists, or cannot be written.
    """
    delta = accumulate(edition)
    if not delta.layers:
        raise UserError(f"v{edition.version.sequence} changes nothing against the base: there is no delta to export")
    errors = {
        layer: _relative(
            apply_delta(edition.base[layer], change),
            edition.weights[layer],
            edition.weights[layer].double() - edition.base[layer].double(),
        )
        for layer, change in delta.layers.items()
    }
    card = {
        **edition.card,
        "form": "delta",
        "delta": delta.digest,
        "kinds": {str(layer): change.kind for layer, change in delta.layers.items()},
        "relative_error": _by_layer(errors),
    }
    with _new_file(output) as path:
        delta.save(path)
        # once more, with the card beside the delta's own metadata, which the delta's reader then passes over
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        path.unlink()  # the library makes files that only their owner may read
        path.write_bytes(save(tensors, {**metadata, "card": json.dumps(card, sort_keys=True)}))
    return card


# ---------------------------------------------------------------- a LoRA adapter


@dataclass(frozen=True)
class LowRank:
    """A change as ``left @ right``: float32 (O, r) and (r, I), and how far that is from it, in units of it."""

    left: Tensor
    right: Tensor
    exact: bool
    """Nothing was cut off; what is left of an error is float32 rounding."""
    relative_error: float


def low_rank(parts: Sequence[LayerDelta], base: Tensor, weight: Tensor, rank: int | None) -> LowRank:
    """The change of one layer from its base to its weight, both (O, I), with at most ``rank`` directions.

    The stored factors themselves where they are few enough, else the truncated singular value decomposition,
    the best approximation of that rank in the Frobenius norm (Eckart and Young 1936). It is computed in float64
    on one thread.

    Args:
        rank: None for as many as it takes.
    """
    change = weight.double() - base.double()
    limit = min(change.shape) if rank is None else min(rank, *change.shape)
    stacked = _stacked(parts)
    if stacked is not None and stacked[0].shape[1] <= limit:
        left, right = stacked
        return LowRank(left, right, True, _relative(left.double() @ right.double(), change, change))
    with one_thread():
        u, s, vh = _svd(change) if stacked is None else _svd_of_product(*stacked)
    # directions of the size of rounding errors are no part of the change
    tolerance = float(s[0]) * max(change.shape) * torch.finfo(torch.float32).eps if s.numel() else 0.0
    needed = int((s > tolerance).sum())
    kept = min(needed, limit)
    root = s[:kept].sqrt()
    left, right = (u[:, :kept] * root).float().contiguous(), (root[:, None] * vh[:kept]).float().contiguous()
    return LowRank(left, right, needed <= limit, _relative(left.double() @ right.double(), change, change))


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def _svd_of_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of left (O, m) @ right (m, I) without forming it: by two thin QR decompositions."""
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, s, vh = _svd(r_left @ r_right.T)
    return q_left @ u, s, vh @ q_right.T


def write_adapter(
    edition: Edition, checkpoint: BaseCheckpoint, output: Path, *, rank: int | None = None
) -> dict[str, Any]:
    """Write the accumulated change as a PEFT LoRA directory; returns the card it carries.

    ``lora_B`` is the left factor and ``lora_A`` the right one, with ``lora_alpha = r``: base + B A, unscaled. All
    layers share one r; a layer with fewer directions is filled up with zeros.

    Args:
        rank: at most this many directions per layer; None for as many as it takes.

    Raises:
        UserError: the version changes nothing, ``output`` is not empty, or cannot be written.
    """
    factors = {}
    for layer in edition.layers:
        parts = [delta.layers[layer] for delta in edition.deltas if layer in delta.layers]
        if parts:
            factors[layer] = low_rank(parts, edition.base[layer], edition.weights[layer], rank)
    r = max((factor.left.shape[1] for factor in factors.values()), default=0)
    if r == 0:
        raise UserError(f"v{edition.version.sequence} changes nothing against the base: there is no adapter to export")
    tensors = {}
    for layer, factor in factors.items():
        module = checkpoint.family.parameter_name(layer).removesuffix(".weight")
        missing = r - factor.left.shape[1]
        left = torch.nn.functional.pad(factor.left, (0, missing))
        right = torch.nn.functional.pad(factor.right, (0, 0, 0, missing))
        tensors[f"base_model.model.{module}.lora_A.weight"] = right.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = left.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": edition.card["base"]["name"],
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": checkpoint.family.transposed,
        "target_modules": [_target_module(checkpoint)],
        "layers_to_transform": sorted(factors),
        "layers_pattern": None,
        "modules_to_save": None,
    }
    card = {
        **edition.card,
        "form": "lora",
        "rank": r,
        "exact": all(factor.exact for factor in factors.values()),
        "relative_error": _by_layer({layer: factor.relative_error for layer, factor in factors.items()}),
    }
    with _new_directory(output) as directory:
        (directory / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        _write_json(directory / "adapter_config.json", config)
        _write_json(directory / VERSION_FILE, card)
    return card


def _target_module(checkpoint: BaseCheckpoint) -> str:
    """The edited map's last name, which servers expect, or more of it where another module ends alike."""
    name = checkpoint.family.map_name
    last = name.rpartition(".")[2]
    alike = {n for n in checkpoint.names if n.endswith(f".{last}.weight") and not n.endswith(f".{name}.weight")}
    return name if alike else last


# ---------------------------------------------------------------- helpers


def _relative(actual: Tensor, wanted: Tensor, unit: Tensor) -> float:
    """||found - wanted|| / ||unit||, Frobenius; 0 where they are equal."""
    distance = float((actual.double() - wanted.double()).norm())
    size = float(unit.double().norm())
    return 0.0 if distance == 0.0 else distance / size if size > 0 else math.inf


def _by_layer(values: Mapping[int, float]) -> dict[str, float]:
    return {str(layer): value for layer, value in values.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_output(output: Path, *, directory: bool) -> None:
    """Refuse a place that is taken, before any work is done.

    Raises:
        UserError: a directory is wanted and there is a file or a directory with something in it, or a file is
            wanted and the name is taken.
    """
    output = Path(output)
    if directory and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output {str(output)!r} is not an empty directory; give another one")
    if not directory and output.exists():
        raise UserError(f"output {str(output)!r} exists; give another name")


@contextmanager
def _new_directory(output: Path) -> Iterator[Path]:
    """A directory to fill, which becomes ``output`` when the block ends well and vanishes when it does not."""
    check_output(output, directory=True)
    temporary = output.absolute().with_name(f".{output.absolute().name}{_TEMPORARY}{secrets.token_hex(4)}")
    with _one_line(output):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _sync(path)
            os.replace(temporary, output)
            _sync(output.absolute().parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _new_file(output: Path) -> Iterator[Path]:
    """As ``_new_directory``, for one file."""
    check_output(output, directory=False)
    temporary = output.absolute().with_name(f".{output.absolute().name}{_TEMPORARY}{secrets.token_hex(4)}")
    with _one_line(output):
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, output)
            _sync(output.absolute().parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _one_line(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk, a directory that may not be written
        raise UserError(f"output {str(output)!r} cannot be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
