"""A module as bytes: one safetensors file in a uint8 tensor, equal for equal contents.

A slot's content is such a tensor, or an empty one. A change of a slot is one as well: ``whole`` takes the place of what
was there; ``rows`` goes on from it (`after`), so that the thousandth edit stores itself and not a thousand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from errata.editing.errors import DamagedFileError

_FORMAT = "errata-module-1"
EMPTY = torch.zeros(0, dtype=torch.uint8)
"""The content of a slot without a module."""
_NONE = "none"
Form = Literal["whole", "rows"]


@dataclass(frozen=True)
class Content:
    """What a module's file holds.

    In the form ``rows`` the tensors are ``drop`` (numbers of rows that leave every table), ``append.NAME`` (rows behind
    those of table NAME) and ``set.NAME`` (a tensor that is replaced). Tables are the tensors that a change appends to.
    """

    kind: str
    """Which module: a name in `errata.editing.modules.kinds.KINDS`."""
    layer: int
    rule: Mapping[str, Any]
    """When it speaks: thresholds and the like, as plain data."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    form: Form = "whole"

    @property
    def norm(self) -> float:
        """Frobenius norm of all floating-point numbers in it."""
        squares = [float(t.double().square().sum()) for t in self.tensors.values() if t.is_floating_point()]
        return sum(squares) ** 0.5

    def pack(self) -> Tensor:
        """The file's bytes, uint8."""
        about = {"kind": self.kind, "layer": self.layer, "rule": dict(self.rule), "form": self.form}
        # one entry only: the library writes several in an order of its own every time
        metadata = {_FORMAT: json.dumps(about, sort_keys=True)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return torch.frombuffer(bytearray(save(tensors, metadata)), dtype=torch.uint8)


def _about(data: bytes) -> dict[str, Any]:
    """Kind, layer, rule and form, from a file of which at least the header is there."""
    size = int.from_bytes(data[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_FORMAT])
    return about


def unpack(packed: Tensor, what: str = "module file") -> Content:
    """The inverse of `Content.pack`; tensors are on the CPU.

    Raises:
        DamagedFileError: the bytes are no such file.
    """
    data = packed.cpu().numpy().tobytes()
    try:
        about = _about(data)
        return Content(about["kind"], int(about["layer"]), about["rule"], load(data), about["form"])
    except (ValueError, LookupError, TypeError, SafetensorError) as error:
        raise DamagedFileError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def kind_of(packed: Tensor) -> str | None:
    """Which module the bytes are of, read from their header alone; None of empty ones.

    Raises:
        DamagedFileError: the bytes are no such file.
    """
    if not packed.numel():
        return None
    try:
        size = int.from_bytes(packed[:8].cpu().numpy().tobytes(), "little")
        return str(_about(packed[: 8 + size].cpu().numpy().tobytes())["kind"])
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedFileError(f"module file cannot be read: {type(error).__name__}: {error}") from error


def after(before: Tensor, change: Tensor) -> Tensor:
    """The content of a slot after one more change; both and the result are packed.

    Raises:
        DamagedFileError: a change that goes on from a module finds none, or another one.
    """
    content = unpack(change)
    if content.kind == _NONE:
        return EMPTY
    if content.form == "whole":
        return change
    old: dict[str, Tensor] = {}
    if before.numel():
        found = unpack(before)
        if (found.kind, found.layer) != (content.kind, content.layer):
            raise DamagedFileError(
                f"a change of a {content.kind} at layer {content.layer} goes on from a {found.kind} at layer "
                f"{found.layer}"
            )
        old = dict(found.tensors)
    drop = content.tensors.get("drop", torch.zeros(0, dtype=torch.long))
    for name, tensor in content.tensors.items():
        action, _, table = name.partition(".")
        if action == "set":
            old[table] = tensor
        elif action == "append":
            rows = old.get(table, tensor[:0])
            keep = torch.ones(rows.shape[0], dtype=torch.bool)
            keep[drop] = False
            old[table] = torch.cat([rows[keep], tensor])
    return Content(content.kind, content.layer, content.rule, old).pack()


def replacing(packed: Tensor, layer: int) -> Tensor:
    """The change that leaves ``packed`` in a layer's slot, whatever was there; empty bytes take the module out."""
    if not packed.numel():
        return Content(_NONE, layer, {}).pack()
    return replace(unpack(packed), form="whole").pack()


def norm_of(packed: Tensor) -> float:
    """Frobenius norm of what a slot holds; 0 of an empty one."""
    return unpack(packed).norm if packed.numel() else 0.0
