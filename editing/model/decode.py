"""One step of decoding on a slot cache: shared by greedy answers and by self-generation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import Layout
from errata.editing.model.kv import SlotKV


@torch.no_grad()
def extend(model: EditableModel, cache: SlotKV, ids: Tensor, ends: Tensor | None = None) -> Tensor:
    """Run new tokens (B, T) behind each row's own past and return the last layer's output (B, T, d).

    Each row writes at ``cache.write_at``; the caller moves that on. Places beyond a row's own end are not seen.
    ``ends`` (B, T) marks the last tokens of prompts among the new ones; modules ask there.
    """
    start = cache.write_at.to(ids.device)
    width = ids.shape[1]
    cache.length = min(cache.capacity, int(start.max()) + width)
    steps = torch.arange(width, device=ids.device)
    queries = Layout(start[:, None] + steps, torch.zeros_like(ids))
    places = torch.arange(cache.length, device=ids.device).expand(ids.shape[0], cache.length)
    keys = Layout(places, torch.where(places < start[:, None] + width, 0, -1))
    hidden = model.decoder.embed(ids, queries.positions)
    positional = replace(model.positional(queries, keys), ends=ends)
    return model.run(hidden, 0, model.num_layers, positional, cache)
