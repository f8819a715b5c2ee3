"""Reading a checkpoint in parts: one run of rows or columns of one tensor, without the rest of it in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.editing.errors import UserError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Cut:
    """Part of a tensor: ``sizes`` along ``axis`` are those of the parts in order, ``part`` is the one that is meant."""

    axis: int
    sizes: tuple[int, ...]
    part: int

    @property
    def span(self) -> slice:
        """Where the part lies along the axis."""
        start = sum(self.sizes[: self.part])
        return slice(start, start + self.sizes[self.part])

    def of(self, whole: Tensor) -> Tensor:
        """The part of a tensor that is in memory; a view."""
        span = self.span
        return whole.narrow(self.axis, span.start, span.stop - span.start)


class CheckpointSlices:
    """The tensors of a safetensors checkpoint, in one file or in several with an index."""

    def __init__(self, directory: Path) -> None:
        """Read the names only.

        Raises:
            UserError: there are no safetensors files, or one cannot be read.
        """
        self._files: dict[str, Path] = {}
        index = directory / INDEX
        try:
            if index.is_file():
                placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                self._files = {name: directory / file for name, file in placed.items()}
            else:
                for path in sorted(directory.glob("*.safetensors")):
                    with safe_open(path, framework="pt") as file:
                        self._files.update(dict.fromkeys(file.keys(), path))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"checkpoint {str(directory)!r} cannot be read: {error}") from error
        if not self._files:
            raise UserError(
                f"checkpoint {str(directory)!r} has no safetensors files; a model in parts is read from those only"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, cut: Cut | None = None, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor, or a part of one, in a type and on a device; only the bytes of that part are read.

        Raises:
            UserError: the checkpoint has no such tensor, or it is not as wide as the cut.
        """
        if name not in self._files:
            raise UserError(f"the checkpoint has no tensor {name!r}")
        with safe_open(self._files[name], framework="pt") as file:
            if cut is None:
                part: Tensor = file.get_tensor(name)
            else:
                lazy: Any = file.get_slice(name)
                shape = lazy.get_shape()
                if shape[cut.axis] != sum(cut.sizes):
                    raise UserError(f"tensor {name!r} has shape {shape}, want {sum(cut.sizes)} along axis {cut.axis}")
                part = lazy[cut.span] if cut.axis == 0 else lazy[:, cut.span]
        # a copy even where the type fits: what the file maps must not stay in memory with it
        return part.to(device, dtype, copy=True).contiguous()
