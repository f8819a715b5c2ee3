"""Weight changes as data: low-rank factors or dense matrices per layer, with norms, digest and a file form.

A version of the model is the base and an ordered list of these. ``apply_delta`` is the only function that turns
one into weights, in the editor and in every replay, so that both yield the same bytes.

Letters: O = d_out, I = d_in, m rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from errata.editing.digest import digest_tensors
from errata.editing.errors import DamagedFileError
from errata.editing.modules.packed import after, norm_of
from errata.editing.tensors import read_tensors, write_tensors

_FORMAT = "errata-delta-1"
DeltaKind = Literal["low_rank", "dense", "orthogonal", "module"]


@dataclass(frozen=True)
class LayerDelta:
    """Change of one weight W (O, I), float32 on the CPU.

    ``low_rank``: W + left @ right, with left (O, m) and right (m, I). ``dense``: W + left, with left (O, I).
    ``orthogonal``: left @ W, with left (O, O). ``module``: a change of a slot, with the bytes of
    `errata.editing.modules.packed` for left, uint8. Only the first has a ``right``.
    """

    kind: DeltaKind
    left: Tensor
    right: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.right is not None) != (self.kind == "low_rank"):
            raise ValueError(f"a {self.kind} change {'needs' if self.kind == 'low_rank' else 'has no'} right factor")
        wanted = torch.uint8 if self.kind == "module" else torch.float32
        for tensor in (self.left, self.right):
            if tensor is not None and (tensor.dtype != wanted or tensor.device.type != "cpu"):
                raise ValueError(f"factors are {wanted} on the CPU, got {tensor.dtype} on {tensor.device}")

    @property
    def rows(self) -> Tensor:
        """The right factor (m, I) of a low-rank change."""
        assert self.right is not None, f"a {self.kind} change has no right factor"
        return self.right

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of what is added to W; of Q - I for an orthogonal change; of what a module's change holds."""
        if self.kind == "module":
            return norm_of(self.left)
        if self.kind == "low_rank":
            left, right = self.left.double(), self.rows.double()
            # |L R|_F^2 = tr(L^T L R R^T), without the full matrix
            return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())
        matrix = self.left.double()
        if self.kind == "orthogonal":
            matrix = matrix - torch.eye(matrix.shape[0], dtype=torch.float64)
        return float(matrix.norm())


def side_by_side(changes: Sequence[LayerDelta]) -> LayerDelta:
    """Low-rank changes of one map as one: the columns and rows of each behind those of the one before."""
    return LayerDelta(
        "low_rank",
        torch.cat([change.left for change in changes], dim=1),
        torch.cat([change.rows for change in changes]),
    )


@dataclass(frozen=True)
class WeightDelta:
    """One commit's changes, by layer, and the name of the editor that made them."""

    layers: Mapping[int, LayerDelta]
    editor: str
    notes: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth keeping with it, such as how many singular values were damped."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over kinds, shapes and bytes of all factors."""
        return digest_tensors(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for layer, change in self.layers.items():
            tensors[f"{layer}.{change.kind}.left"] = change.left.contiguous()
            if change.right is not None:
                tensors[f"{layer}.{change.kind}.right"] = change.right.contiguous()
        return tensors

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the change of each layer."""
        return {layer: change.norm for layer, change in self.layers.items()}

    def save(self, path: Path) -> None:
        """Write a safetensors file that carries its own digest."""
        metadata = {
            "editor": self.editor,
            "digest": self.digest,
            "notes": json.dumps(dict(self.notes), sort_keys=True),
        }
        write_tensors(path, self._tensors(), _FORMAT, metadata)

    @classmethod
    def load(cls, path: Path) -> WeightDelta:
        """Read a file and check it against its digest.

        Raises:
            DamagedFileError: it is not such a file, is cut short, or its bytes have changed.
        """
        metadata, tensors = read_tensors(path, _FORMAT, "delta file")
        layers: dict[int, LayerDelta] = {}
        try:
            for name, tensor in tensors.items():
                layer, kind, side = name.split(".")
                if side == "left":
                    layers[int(layer)] = LayerDelta(kind, tensor, tensors.get(f"{layer}.{kind}.right"))  # type: ignore[arg-type] # it refuses another kind
        except ValueError as error:
            raise DamagedFileError(f"delta file {path.name!r} cannot be read: {error}") from error
        delta = cls(dict(sorted(layers.items())), metadata.get("editor", ""), json.loads(metadata.get("notes", "{}")))
        if delta.digest != metadata.get("digest"):
            raise DamagedFileError(
                f"delta file {path.name!r}: digest {delta.digest[:12]}, want {metadata.get('digest')!r}"
            )
        return delta


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU kernels on one thread: how many there are may change the order of a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def apply_delta(weight: Tensor, change: LayerDelta) -> Tensor:
    """The changed weight, float32 on ``weight``'s device; ``weight`` (O, I) is left alone.

    The product is taken in float64 and rounded once, on one thread, so that the result does not depend on how the
    process was set up.
    """
    if change.kind == "module":
        return after(weight, change.left)
    left = change.left.to(weight.device, torch.float64)
    with one_thread():
        if change.kind == "orthogonal":
            return (left @ weight.double()).float()
        if change.right is None:
            return (weight.double() + left).float()
        return (weight.double() + left @ change.right.to(weight.device, torch.float64)).float()


def weight_norm(weight: Tensor) -> float:
    """Frobenius norm of a map's weight, or of what a module's slot holds."""
    return norm_of(weight) if weight.dtype == torch.uint8 else float(weight.double().norm())
