"""What a module is to the layer that it stands in.

Letters: B rows, T tokens, I = d_in, O = d_out of the map that a module stands at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errata.editing.modules.packed import Content
from errata.editing.modules.reading import Reading


class LayerModule(ABC):
    """A module at work: made from its content once, asked in every pass."""

    whole_prompts: ClassVar[bool] = False
    """Whether it decides by a whole prompt: then prompts that begin alike are not run together."""

    def __init__(self, content: Content, device: torch.device, dtype: torch.dtype) -> None:
        self.content = content
        self.tensors = {name: tensor.to(device) for name, tensor in content.tensors.items()}
        self.rule: Any = content.rule

    @abstractmethod
    def output(self, inputs: Tensor, output: Tensor, linear: nn.Module, reading: Reading) -> Tensor:
        """What the map puts out instead of ``output`` (B, T, O), for inputs (B, T, I).

        Where the module does not speak the result has the bytes of ``output``.
        """
