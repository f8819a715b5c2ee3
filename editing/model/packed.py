"""Products of few rows with the same weights, many times over: the weights are packed once.

A CPU library copies the weights into an order of its own in every product; with few rows that takes as long as the
product. Optimising a target value runs the same layers over the same few dozen rows step after step, so that order is
made once and kept while it lasts. The way back needs another order, which costs more to make than it saves.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

MOST_ROWS = 256
"""With more rows packing is a small part of a product."""
MOST_BYTES = 2**30
"""Weights that are packed at most; their packed form takes as much memory again while it is kept."""


class _Packed:
    """One weight (O, I) for products of exactly ``rows`` rows; other numbers of rows go the usual way."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.weight, self.bias, self.rows = weight, bias, rows
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() != self.rows * x.shape[-1]:
            return nn.functional.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkl._mkl_linear(x.contiguous(), self._packed, self.weight, self.bias, self.rows)
        return out


class _Product(torch.autograd.Function):
    """x (..., I) to (..., O); a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: _Packed) -> Tensor:
        ctx.weight = packed.weight
        return packed.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.weight, None


def _product(packed: _Packed, x: Tensor) -> Tensor:
    out: Tensor = _Product.apply(x, packed)
    return out


def _can_be_packed(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    frozen = not weight.requires_grad and (module.bias is None or not module.bias.requires_grad)
    return frozen and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _library_packs() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


@contextmanager
def packed_products(rows_of: Mapping[nn.Module, int]) -> Iterator[int]:
    """Within the context, linear maps among the modules multiply with weights packed for so many rows each.

    Nothing changes but rounding. Maps that are not plain float32 ones on a CPU stay as they are, and so does everything
    where rows or bytes pass ``MOST_ROWS`` or ``MOST_BYTES``, or the library cannot pack. The weights must not change
    meanwhile. Yields the number of maps that are packed.
    """
    chosen = {m: rows for m, rows in rows_of.items() if _can_be_packed(m) and 0 < rows <= MOST_ROWS}
    size = sum(p.numel() * p.element_size() for m in chosen for p in m.parameters())
    if size > MOST_BYTES or not _library_packs():
        chosen = {}
    for module, rows in chosen.items():
        weight, bias = cast(nn.Linear, module).weight, cast(nn.Linear, module).bias
        packed = _Packed(weight.detach(), None if bias is None else bias.detach(), rows)
        # an attribute of the instance goes before the class's method; hooks run as ever
        vars(module)["forward"] = partial(_product, packed)
    try:
        yield len(chosen)
    finally:
        for module in chosen:
            vars(module).pop("forward", None)
