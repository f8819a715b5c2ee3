"""WISE's side memories: a prompt goes through a side copy of the map where that copy's activations differ enough.

Wang et al. 2024, arXiv:2405.14768, eq. 2-3 and sec. 2.3.2 (``retrieve``). The difference is the mean over the prompt's
tokens of ``|act(W x) - act(W' x)|``; the copy with the largest one speaks if that is above its threshold, else W does.
It is measured once, on the whole prompt, and holds for whatever follows the prompt.

Letters: c copies.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from errata.editing.modules.base import LayerModule
from errata.editing.modules.packed import Content
from errata.editing.modules.reading import Reading

_NONE = -1


class SideMemory(LayerModule):
    """``maps`` (c, O, I) and ``thresholds`` (c,), negative where a copy never speaks; the rule names the activation."""

    whole_prompts: ClassVar[bool] = True

    def __init__(self, content: Content, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(content, device, dtype)
        self.maps = self.tensors["maps"].to(dtype)

    def output(self, inputs: Tensor, output: Tensor, linear: nn.Module, reading: Reading) -> Tensor:
        layer, rows = self.content.layer, inputs.shape[0]
        chosen = None if reading.cache is None else reading.cache.held(layer)
        if chosen is None or bool(reading.ends.any()):
            upto = reading.ends.flip(dims=[1]).cumsum(dim=1).flip(dims=[1]) > 0
            chosen = self._route(inputs, output, linear, reading.inside & upto)
            if reading.cache is not None:
                reading.cache.hold(layer, chosen)
        if not bool((chosen != _NONE).any()):
            return output
        result = output.clone()
        for row in range(rows):
            if int(chosen[row]) != _NONE:
                result[row] = nn.functional.linear(inputs[row], self.maps[int(chosen[row])], linear.bias)  # type: ignore[arg-type]
        return result

    def _route(self, inputs: Tensor, output: Tensor, linear: nn.Module, inside: Tensor) -> Tensor:
        """The copy that speaks for each row (B,), -1 for none."""
        differences = torch.stack(
            [
                difference(output, nn.functional.linear(inputs, copy, linear.bias), self.rule["act"], inside)  # type: ignore[arg-type]
                for copy in self.maps
            ]
        )
        best, copy = differences.max(dim=0)
        least = self.tensors["thresholds"][copy]
        above = (best > least) & (least >= 0)
        return torch.where(above & inside.any(dim=1), copy, torch.full_like(copy, _NONE))


def difference(output: Tensor, other: Tensor, act: str, inside: Tensor) -> Tensor:
    """Mean over the tokens ``inside`` (B, T) of ``|act(a) - act(b)|`` for outputs (B, T, O), float32 (B,)."""
    apart = (activation(act, other.float()) - activation(act, output.float())).norm(dim=-1)
    return (apart * inside).sum(dim=1) / inside.sum(dim=1).clamp_min(1)


def activation(name: str, x: Tensor) -> Tensor:
    """The model's own activation, by the name that its configuration has for it."""
    if name in ("silu", "swish"):
        return nn.functional.silu(x)
    if name == "relu":
        return nn.functional.relu(x)
    return nn.functional.gelu(x, approximate="none" if name == "gelu" else "tanh")
