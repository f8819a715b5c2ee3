"""Products of few rows with the same weights, many times over: the weights are packed once.

A CPU library copies the weights into an order of its own in every product; with few rows that takes as long as the
product. Optimizing a target value runs the same layers over the same few dozen rows step after step, so that order is
made once for each way and kept: the layers above those that are edited do not change from edit to edit.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

MOST_ROWS = 64
"""With more rows, packing is a small part of a product, and the library does it itself."""
MOST_BYTES = 2**30
"""Packed weights of a model at most, both ways; they take so much memory beside it."""
_AGREEMENT = 1e-4
"""Relative distance that two roundings of one product stay below; another order of the weights is off by 1."""


class Product(Protocol):
    """Linear maps of one input, frozen, both ways."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., O): what the maps make of it, side by side, biases included."""

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient (..., O) of what came out to that of what went in, (..., I)."""


class Plain:
    """Weights (O_i, I) as they lie."""

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        self.weights = [module.weight.detach() for module in maps]
        self.biases = [None if module.bias is None else module.bias.detach() for module in maps]
        self.widths = [weight.shape[0] for weight in self.weights]

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weights) == 1:
            return nn.functional.linear(x, self.weights[0], self.biases[0])
        rows = x.reshape(-1, x.shape[-1])
        out = x.new_empty(rows.shape[0], sum(self.widths))
        for part, weight, bias in zip(out.split(self.widths, dim=1), self.weights, self.biases, strict=True):
            torch.mm(rows, weight.mT, out=part)
            if bias is not None:
                part += bias
        return out.view(*x.shape[:-1], -1)

    def backward(self, gradient: Tensor) -> Tensor:
        rows = gradient.reshape(-1, gradient.shape[-1])
        first, *others = zip(rows.split(self.widths, dim=1), self.weights, strict=True)
        out = first[0] @ first[1]
        for part, weight in others:
            out.addmm_(part, weight)
        return out.view(*gradient.shape[:-1], -1)


class Packed(Plain):
    """Weights packed as one for products of up to ``MOST_ROWS`` rows, each way.

    ``agreed`` remembers for which shapes and numbers of rows the packed product was found to be the plain one: the
    library's order is the same for all these numbers of rows, but it does not promise so.
    """

    def __init__(self, maps: Sequence[nn.Linear], agreed: dict[tuple[int, int, int], bool]) -> None:
        super().__init__(maps)
        self._versions = [weight._version for weight in self.weights]
        self._agreed = agreed
        weight = torch.cat(self.weights) if len(maps) > 1 else self.weights[0]
        self._forward, self._backward = (_in_library_order(w) for w in (weight, weight.mT.contiguous()))
        # the library asks the plain weight for its shape alone
        self._shape = weight.new_empty(1, 1).expand(weight.shape)
        self._bias: Tensor | None = None
        if any(bias is not None for bias in self.biases):
            parts = zip(self.biases, self.widths, strict=True)
            self._bias = torch.cat([weight.new_zeros(o) if bias is None else bias for bias, o in parts])

    @property
    def current(self) -> bool:
        """Whether nobody has written into the weights since they were packed."""
        return [weight._version for weight in self.weights] == self._versions

    def forward(self, x: Tensor) -> Tensor:
        if not self._agrees(x.numel() // x.shape[-1]):
            return super().forward(x)
        return _multiplied(x, self._forward, self._shape, self._bias)

    def backward(self, gradient: Tensor) -> Tensor:
        if not self._agrees(gradient.numel() // gradient.shape[-1]):
            return super().backward(gradient)
        return _multiplied(gradient, self._backward, self._shape.mT, None)

    def _agrees(self, rows: int) -> bool:
        shape = (rows, *self._shape.shape)
        if rows > MOST_ROWS or rows == 0:
            return False
        if shape not in self._agreed:
            random = torch.Generator().manual_seed(rows)
            x, gradient = (torch.randn(rows, size, generator=random) for size in (shape[2], shape[1]))
            self._agreed[shape] = _same(
                _multiplied(x, self._forward, self._shape, self._bias), super().forward(x)
            ) and _same(_multiplied(gradient, self._backward, self._shape.mT, None), super().backward(gradient))
        return self._agreed[shape]


def _in_library_order(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, MOST_ROWS)
    return packed


def _multiplied(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of x (..., I) with a packed weight, (..., O); the library reads the shape of ``weight`` alone."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out: Tensor = torch.ops.mkl._mkl_linear(rows, packed, weight, bias, rows.shape[0])
    return out.view(*x.shape[:-1], -1)


def _same(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).norm() <= _AGREEMENT * want.norm())


class _Product(torch.autograd.Function):
    """x (..., I) to (..., O); a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return packed.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.packed.backward(gradients[0]), None


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
    """A model's packed weights.

    What is packed stays until its weight is written to (torch counts the writes), and where there is no more room
    nothing is packed: giving blocks back and taking new ones, edit after edit, leaves holes that the heap grows by.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        """What is kept now."""
        self._kept: dict[tuple[int, ...], Packed] = {}
        self._agreed: dict[tuple[int, int, int], bool] = {}

    def of(self, rows_of: Mapping[nn.Module, int], *, make: bool = True) -> dict[nn.Module, Packed]:
        """Packed weights of the modules that can have them, and that see few enough rows for it to pay.

        Maps that are not plain float32 ones on a CPU are left out, and all of them where the library cannot pack.
        Without ``make`` only what is there already is given.
        """
        joined = {module: self.joined([module], rows, make=make) for module, rows in rows_of.items()}
        return {module: packed for module, packed in joined.items() if packed is not None}

    def joined(self, modules: Sequence[nn.Module], rows: int, *, make: bool = True) -> Packed | None:
        """Weights of linear maps of one input packed as one, or None where one of them is left out (see ``of``)."""
        if not (_library_packs() and 0 < rows <= MOST_ROWS and all(map(_can_be_packed, modules))):
            return None
        maps = [cast(nn.Linear, module) for module in modules]
        key = tuple(module.weight.data_ptr() for module in maps)  # what is kept holds the memory: no other comes there
        kept = self._kept.get(key)
        if kept is not None and kept.current:
            return kept
        size = 2 * sum(module.weight.nbytes for module in maps)
        if kept is not None:
            del self._kept[key], kept
            self.bytes -= size
        if not make or self.bytes + size > self.most_bytes:
            return None
        self._kept[key] = Packed(maps, self._agreed)
        self.bytes += size
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
