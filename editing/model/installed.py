"""The modules that a loaded model has in its layers: hooks that ask them as passes go by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.editing.model.decoder import Decoder, Positional, layer_of
from errata.editing.modules.base import LayerModule
from errata.editing.modules.kinds import make_module
from errata.editing.modules.packed import EMPTY, unpack
from errata.editing.modules.reading import Reading


class InstalledModules:
    """Slots by number, each with its content as bytes and, where that is not empty, a hook at the layer's map."""

    def __init__(self, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> None:
        self._decoder, self._device, self._dtype = decoder, device, dtype
        self._slots: dict[int, tuple[Tensor, LayerModule, Any]] = {}
        self._reading: Reading | None = None

    @property
    def whole_prompts(self) -> bool:
        """Whether one of them decides by a whole prompt."""
        return any(module.whole_prompts for _, module, _ in self._slots.values())

    def get(self, number: int) -> Tensor:
        """The content of a slot; empty where there is none."""
        return self._slots[number][0] if number in self._slots else EMPTY

    def put(self, number: int, packed: Tensor) -> None:
        """Install what a slot is to hold in place of what it holds; empty bytes only take out.

        Raises:
            DamagedFileError: the bytes are no module.
        """
        packed = packed.cpu()
        made = make_module(unpack(packed), self._device, self._dtype) if packed.numel() else None
        if number in self._slots:
            self._slots.pop(number)[2].remove()
        if made is not None:
            handle = self._decoder.edited_map(layer_of(number)).register_forward_hook(self._hook(made))
            self._slots[number] = packed, made, handle

    @contextmanager
    def read(self, positional: Positional, cache: Any) -> Iterator[None]:
        """Within the context, modules are told of this pass."""
        if not self._slots or positional.layout is None:
            yield
            return
        before, self._reading = self._reading, Reading.of(positional.layout.segments, positional.ends, cache)
        try:
            yield
        finally:
            self._reading = before

    def _hook(self, made: LayerModule) -> Any:
        def ask(linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            reading = self._reading
            if reading is None:  # somebody calls the library's model: every row is a prompt to its end
                reading = Reading.of(torch.zeros(output.shape[:2], dtype=torch.long, device=output.device), None, None)
            return made.output(args[0], output, linear, reading)

        return ask
