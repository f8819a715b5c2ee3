"""Products of few rows with the same weights, many times over: the weights are packed once.

A CPU library copies the weights into an order of its own in every product; with few rows that takes as long as the
product. Optimising a target value runs the same layers over the same few dozen rows step after step, so that order is
made once and kept: the layers above those that are edited do not change from edit to edit. The way back needs another
order, which costs more to make than it saves.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

MOST_ROWS = 256
"""With more rows packing is a small part of a product."""
MOST_BYTES = 2**30
"""Packed weights that are kept at most; they take so much memory beside the model."""
_STEP = 8
"""Rows are packed for in steps of the kernel's own."""
_SPARE = 4
"""Weights packed for a quarter more rows than there are serve as well as their own would."""


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

    @property
    def bytes(self) -> int:
        """Size of the packed form."""
        return self.weight.numel() * self.weight.element_size()

    def serves(self, rows: int) -> bool:
        """Whether products of so many rows, filled up with empty ones, gain by it."""
        return rows <= self.rows <= most_rows(rows)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., O); the usual product where it does not serve."""
        rows = x.numel() // x.shape[-1]
        if not self.serves(rows):
            return nn.functional.linear(x, self.weight, self.bias)
        flat = x.reshape(rows, x.shape[-1])
        if rows < self.rows:
            flat = nn.functional.pad(flat, (0, 0, 0, self.rows - rows))
        out: Tensor = torch.ops.mkl._mkl_linear(flat.contiguous(), self._packed, self.weight, self.bias, self.rows)
        return out[:rows].view(*x.shape[:-1], -1)


def _up(rows: int) -> int:
    return -(-rows // _STEP) * _STEP


def most_rows(rows: int) -> int:
    """For how many rows weights may be packed to serve so many."""
    return _up(rows) + max(_STEP, rows // _SPARE)


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
    """A model's packed weights, by weight and number of rows; those used longest ago go first.

    A weight that was written to is packed anew: torch counts the writes.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        """What is kept now."""
        self._kept: OrderedDict[tuple[int, int], Packed] = OrderedDict()

    def of(self, rows_of: Mapping[nn.Module, int], *, make: bool = True) -> dict[nn.Module, Packed]:
        """Packed weights for products of so many rows each, of the modules that can have them.

        Maps that are not plain float32 ones on a CPU are left out, and so is everything where rows or bytes pass the
        limits, or the library cannot pack. Without ``make`` only what is there already is given.
        """
        chosen = {m: rows for m, rows in rows_of.items() if _can_be_packed(m) and 0 < rows <= MOST_ROWS}
        size = sum(p.numel() * p.element_size() for m in chosen for p in m.parameters())
        if size > self.most_bytes or not _library_packs():
            return {}
        found: dict[nn.Module, Packed] = {}
        for module, rows in chosen.items():
            packed = self._serving(cast(nn.Linear, module), rows, make)
            if packed is not None:
                found[module] = packed
        return found

    def _serving(self, module: nn.Linear, rows: int, make: bool) -> Packed | None:
        place = module.weight.data_ptr()  # what is kept holds the memory, so that no other weight comes to lie there
        for packed_for in range(_up(rows), most_rows(rows) + 1, _STEP):
            packed = self._kept.get((place, packed_for))
            if packed is not None and packed.current:
                self._kept.move_to_end((place, packed_for))
                return packed
        if not make:
            return None
        bias = None if module.bias is None else module.bias.detach()
        self._drop((place, _up(rows)))
        packed = self._kept[place, _up(rows)] = Packed(module.weight.detach(), bias, _up(rows))
        self.bytes += packed.bytes
        while self.bytes > self.most_bytes:
            self._drop(next(iter(self._kept)))
        return packed

    def _drop(self, key: tuple[int, int]) -> None:
        dropped = self._kept.pop(key, None)
        self.bytes -= 0 if dropped is None else dropped.bytes


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
