"""Keys and values of attention, kept between partial forward passes.

Every supported attention module calls ``cache.update(keys, values, layer_index)`` and attends over what comes
back. These three classes are what the passes of this package need of it.

Letters: B rows, H key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RecordingKV:
    """Hands keys and values back unchanged and remembers them for the layers from ``first`` on."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) of one layer; returned as they are."""
        if layer >= self.first:
            self.layers[layer] = (keys, values)
        return keys, values


class PrefixKV:
    """Puts a fixed past before the new keys and values; gradients flow through the new ones only."""

    def __init__(self, past: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.past = past

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, T, D); returns past and new, (B, H, P + T, D)."""
        past_keys, past_values = self.past[layer]
        return torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)


class SlotKV:
    """A fixed buffer of slots for decoding: row b writes its new tokens at ``write_at[b]`` onwards."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.write_at: Tensor = torch.zeros(rows, dtype=torch.long)
        self.length = 0
        """Attention looks at the first ``length`` places of the buffer; set before each pass."""
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._held: dict[int, Tensor] = {}

    def hold(self, layer: int, value: Tensor) -> None:
        """Keep numbers of each row, (B,) or (B, k), for a layer: what its module has decided about the prompt."""
        self._held[layer] = value

    def held(self, layer: int) -> Tensor | None:
        """What ``hold`` kept for a layer, if anything."""
        return self._held.get(layer)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, T, D); returns the buffer's first ``length`` places, (B, H, length, D)."""
        buffer_k, buffer_v = self._buffer(layer, keys, values)
        rows = torch.arange(self.rows, device=keys.device)[:, None]
        places = self.write_at.to(keys.device)[:, None] + torch.arange(keys.shape[2], device=keys.device)[None, :]
        buffer_k[rows, :, places] = keys.transpose(1, 2)
        buffer_v[rows, :, places] = values.transpose(1, 2)
        return buffer_k[:, :, : self.length], buffer_v[:, :, : self.length]

    def _buffer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._buffers:
            shape = (self.rows, keys.shape[1], self.capacity, keys.shape[3])
            self._buffers[layer] = (keys.new_zeros(shape), values.new_zeros(shape))
        return self._buffers[layer]

    def part(self, start: int, stop: int) -> SlotKV:
        """The rows from ``start`` to ``stop - 1`` as a cache of their own that writes into this one's buffers."""
        return _PartKV(self, slice(start, stop))

    def copy_of_rows(self, rows: Tensor, capacity: int | None = None) -> SlotKV:
        """A cache of its own with the given rows (long tensor, repeats allowed); this one stays as it is.

        With ``capacity`` it has so many places, which hold what the rows have written.
        """
        room = self.capacity if capacity is None else min(capacity, self.capacity)
        copy = SlotKV(int(rows.numel()), room)
        copy.write_at, copy.length = self.write_at[rows], min(self.length, room)
        copy._buffers = {i: (k[:, :, :room][rows], v[:, :, :room][rows]) for i, (k, v) in self._buffers.items()}
        copy._held = {layer: value[rows] for layer, value in self._held.items()}
        return copy

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but the given ones (long tensor), in that order."""
        self.rows = int(rows.numel())
        self.write_at = self.write_at[rows]
        self._buffers = {i: (k[rows], v[rows]) for i, (k, v) in self._buffers.items()}
        self._held = {layer: value[rows] for layer, value in self._held.items()}


class _PartKV(SlotKV):
    """Some rows of a cache."""

    def __init__(self, whole: SlotKV, rows: slice) -> None:
        super().__init__(rows.stop - rows.start, whole.capacity)
        self._whole, self._rows = whole, rows
        self.write_at, self.length = whole.write_at[rows], whole.length

    def hold(self, layer: int, value: Tensor) -> None:
        if layer not in self._whole._held:
            self._whole._held[layer] = value.new_full((self._whole.rows,), -1)
        self._whole._held[layer][self._rows] = value

    def held(self, layer: int) -> Tensor | None:
        value = self._whole.held(layer)
        return None if value is None else value[self._rows]

    def _buffer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        whole_k, whole_v = self._whole._buffer(layer, keys, values)
        return whole_k[self._rows], whole_v[self._rows]
