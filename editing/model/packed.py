"""Products of few rows with the same weights, many times over: the weights are packed once.

A CPU library copies the weights into an order of its own in every product; with few rows that takes as long as the
product. Optimising a target value runs the same layers over the same few dozen rows step after step, so that order is
made once and kept: the layers above those that are edited do not change from edit to edit. The way back needs another
order, which costs more to make than it saves.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

ROWS = (32, 64)
"""For how many rows weights are packed; fewer are filled up with empty ones. With more, packing is a small part."""
MOST_BYTES = 2**30
"""Packed weights of a model at most; they take so much memory beside it."""


class Packed:
    """One weight (O, I), packed for products of ``rows`` rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.weight, self.bias, self.rows = weight, bias, rows
        self.version = weight._version
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    @property
    def current(self) -> bool:
        """Whether nobody has written into the weight since it was packed."""
        return self.weight._version == self.version

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., O); the usual product where this is not packed for so many rows."""
        rows = x.numel() // x.shape[-1]
        if packed_rows(rows) != self.rows:
            return nn.functional.linear(x, self.weight, self.bias)
        flat = x.reshape(rows, x.shape[-1])
        if rows < self.rows:
            flat = nn.functional.pad(flat, (0, 0, 0, self.rows - rows))
        out: Tensor = torch.ops.mkl._mkl_linear(flat.contiguous(), self._packed, self.weight, self.bias, self.rows)
        return out[:rows].view(*x.shape[:-1], -1)


def packed_rows(rows: int) -> int | None:
    """For how many rows weights are packed that serve so many; None where packing does not pay."""
    return next((enough for enough in ROWS if 0 < rows <= enough), None)


class _Product(torch.autograd.Function):
    """x (..., I) to (..., O); a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.weight = packed.weight
        return packed.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.weight, None


def _product(packed: Packed, x: Tensor) -> Tensor:
    out: Tensor = _Product.apply(x, packed)
    return out


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear map, frozen, that multiplies its way or ours."""
    if type(module) is not nn.Linear:
        return False
    own: Any = vars(module).get("forward")
    ours = own is None or (isinstance(own, partial) and own.func is _product)
    return ours and not module.weight.requires_grad and (module.bias is None or not module.bias.requires_grad)


def _can_be_packed(module: nn.Module) -> bool:
    if not is_plain(module):
        return False
    weight = cast(nn.Linear, module).weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _library_packs() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


class PackedWeights:
    """A model's packed weights, by weight and number of rows.

    What is packed stays until its weight is written to (torch counts the writes), and where there is no more room
    nothing is packed: giving blocks back and taking new ones, edit after edit, leaves holes that the heap grows by.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        """What is kept now."""
        self._kept: dict[tuple[int, int], Packed] = {}

    def of(self, rows_of: Mapping[nn.Module, int], *, make: bool = True) -> dict[nn.Module, Packed]:
        """Packed weights for products of so many rows each, of the modules that can have them.

        Maps that are not plain float32 ones on a CPU are left out, and all of them where the library cannot pack.
        Without ``make`` only what is there already is given.
        """
        found: dict[nn.Module, Packed] = {}
        for module, rows in rows_of.items() if _library_packs() else ():
            enough = packed_rows(rows)
            packed = self._packed(cast(nn.Linear, module), enough, make) if enough and _can_be_packed(module) else None
            if packed is not None:
                found[module] = packed
        return found

    def _packed(self, module: nn.Linear, rows: int, make: bool) -> Packed | None:
        key = (module.weight.data_ptr(), rows)  # what is kept holds the memory, so that no other weight comes there
        kept = self._kept.get(key)
        if kept is not None and kept.current:
            return kept
        if kept is not None:
            self.bytes -= self._kept.pop(key).weight.nbytes
        if not make or self.bytes + module.weight.nbytes > self.most_bytes:
            return None
        bias = None if module.bias is None else module.bias.detach()
        self._kept[key] = Packed(module.weight.detach(), bias, rows)
        self.bytes += module.weight.nbytes
        return self._kept[key]


@contextmanager
def multiplying(packed: Mapping[nn.Module, Packed]) -> Iterator[None]:
    """Within the context, the modules multiply with their packed weights. Nothing changes but rounding.

    The weights must not change meanwhile.
    """
    for module, weights in packed.items():
        # an attribute of the instance goes before the class's method; hooks run as ever
        vars(module)["forward"] = partial(_product, weights)
    try:
        yield
    finally:
        for module in packed:
            vars(module).pop("forward", None)
