"""A divided model as a checkpoint: one tensor whole at a time, on rank 0."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from errata.actors.sharded.model import ShardedEditableModel
from errata.editing.checkpoint.slices import INDEX

FILE_BYTES = 4 * 2**30
"""A file is closed once it holds this much, so that rank 0 needs memory for no more."""


def write_checkpoint(model: ShardedEditableModel, directory: Path, *, file_bytes: int = FILE_BYTES) -> None:
    """Write every parameter, in the model's own type, in files of about ``file_bytes`` with an index; collective.

    The index is written last and by a rename: a directory without it is an export that was interrupted.
    """
    writer = _Writer(directory, file_bytes) if model.group.rank == 0 else None
    for name, tensor in model.layer_parts():
        if writer is not None:
            writer.add(name, tensor.cpu().contiguous())
    if writer is not None:
        writer.finish()


class _Writer:
    """Collects tensors and writes a file when there are enough."""

    def __init__(self, directory: Path, file_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.file_bytes = directory, file_bytes
        self.waiting: dict[str, Tensor] = {}
        self.placed: dict[str, str] = {}
        self.size = self.total = self.files = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self.waiting[name] = tensor
        self.size += tensor.numel() * tensor.element_size()
        if self.size >= self.file_bytes:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        self.files += 1
        file = f"model-{self.files:05d}.safetensors"
        save_file(self.waiting, self.directory / file, metadata={"format": "pt"})
        self.placed.update(dict.fromkeys(self.waiting, file))
        self.total += self.size
        self.waiting, self.size = {}, 0

    def finish(self) -> None:
        self.flush()
        temporary = self.directory / f"{INDEX}.part"
        content = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(self.placed.items()))}
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(temporary, self.directory / INDEX)
