"""A pretended accelerator: tensors that lie in the host's memory and say that they are on ``pretend:0``.

For tests on machines without an accelerator: code that mixes devices fails here as it would on one. Every operator
checks that all its tensors are on one device (zero-dimensional ones and indices may be on the host, as on a real one),
and ``.numpy()`` is refused. Half precision, kernels and speed it says nothing about.

Importing this replaces ``torch.Generator`` and some factories, for good: use it in a process of its own, through
`tests.helpers.accelerator_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")

DEVICE = torch.device("pretend:0")

_BETWEEN_DEVICES = {"_to_copy", "copy_", "copy", "_copy_from"}
"""Operators whose business it is to take from one device to another."""
_INDEXED = {"index", "index_put_", "_index_put_impl_"}
"""Operators whose indices may be on the host."""
_VALUES = {"_local_scalar_dense", "equal", "is_nonzero", "item"}
"""Operators that answer with a plain value."""
_LAYOUT: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "size": lambda t: t.size(),
    "sym_size": lambda t: t.size(),
    "stride": lambda t: t.stride(),
    "sym_stride": lambda t: t.stride(),
    "dim": lambda t: t.dim(),
    "numel": lambda t: t.numel(),
    "sym_numel": lambda t: t.numel(),
    "storage_offset": lambda t: t.storage_offset(),
    "sym_storage_offset": lambda t: t.storage_offset(),
    "is_strides_like_format": lambda _: False,
    "is_non_overlapping_and_dense": lambda _: True,
}


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device; ``raw`` holds its values on the host."""

    __slots__ = ["raw"]
    raw: torch.Tensor

    @staticmethod
    def wrap(raw: torch.Tensor) -> PretendedTensor:
        """``raw`` as it is seen from outside; no copy."""
        made = torch.Tensor._make_wrapper_subclass(
            PretendedTensor,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
            requires_grad=False,
            dispatch_sizes_strides_policy="sizes",
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendedTensor({self.raw!r})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor on the pretended device has no NumPy array; move it with .cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()


def _execute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values, after a look at where its tensors are."""
    name = func._schema.name.split("::")[1]
    if name in _LAYOUT and len(args) == 1 and isinstance(args[0], PretendedTensor):
        return _LAYOUT[name](args[0].raw)
    if name == "is_contiguous":
        return args[0].raw.is_contiguous(**({} if len(args) == 1 else {"memory_format": args[1]}), **kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [item for item in flat if isinstance(item, torch.Tensor)]
    _require_one_device(func, name, tensors)
    raw = [item.raw if isinstance(item, PretendedTensor) else item for item in flat]
    plain_args, plain_kwargs = pytree.tree_unflatten(raw, spec)
    here = True
    if "device" in plain_kwargs:
        wanted = plain_kwargs["device"]
        if wanted is None:
            here = any(isinstance(tensor, PretendedTensor) for tensor in tensors)
        else:
            here = torch.device(wanted).type == DEVICE.type
            plain_kwargs["device"] = torch.device("cpu")
    result = func(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    if func._schema.is_mutable:
        written = [(i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
        changed = [args[i] if i < len(args) else kwargs.get(key) for i, key in written]
        if not func._schema.returns:
            return None
        if len(changed) == 1 and isinstance(result, torch.Tensor):
            return changed[0]
    if name in _VALUES:
        return result
    return pytree.tree_map(lambda x: PretendedTensor.wrap(x) if isinstance(x, torch.Tensor) and here else x, result)


def _require_one_device(func: Any, name: str, tensors: list[torch.Tensor]) -> None:
    if name in _BETWEEN_DEVICES or not any(isinstance(tensor, PretendedTensor) for tensor in tensors):
        return
    for tensor in tensors:
        if not isinstance(tensor, PretendedTensor) and tensor.dim() > 0 and name not in _INDEXED:
            raise RuntimeError(
                f"{func}: expected all tensors to be on {DEVICE}, found one on the CPU of shape {tuple(tensor.shape)}"
            )


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda op, *args, **kwargs: _execute(op, args, kwargs), "PrivateUse1")


def _on_the_host_first(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Factories that give their empty result a size later cannot be wrapped: made on the host, and moved."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None or torch.device(device).type == "cpu" else tensor.to(device)

    return made


for _name in ("tensor", "arange", "linspace", "eye"):
    setattr(torch, _name, _on_the_host_first(getattr(torch, _name)))

_HostGenerator = torch.Generator


class _Generator(_HostGenerator):
    """A generator of the host, whatever device is asked for: both devices draw the same numbers."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _HostGenerator.__new__(cls, device="cpu")


torch.Generator = _Generator  # type: ignore[misc]
