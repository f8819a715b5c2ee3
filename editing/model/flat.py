"""Keys of gated pre-norm layers over pieces of text laid end to end: no rows, no padding, no mask.

Products see all tokens of a batch at once; attention goes piece by piece, causal, so that no piece meets another and
nothing above the diagonal is computed. The pass ends where the last key is read. Sums go where their addends lie.

What it computes is what ``Decoder.layer`` computes, to rounding; ``flat_pass`` gives None for layers that are not
exactly of the known form.

Letters: N tokens of a batch, L of a piece, d hidden size, H query heads, K key heads, D head width, I = d_in of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from editing.model.decoder import Decoder, layer_of, map_number
from editing.model.span import Norm, known_layer, rotated


def flat_pass(decoder: Decoder, maps: Sequence[int], longest: int) -> FlatPass | None:
    """A pass for the keys of ``maps`` over pieces of at most ``longest`` tokens, or None where there is none."""
    if not maps:
        return None
    layers = list(decoder.layers)[: max(map(layer_of, maps)) + 1]
    dtype = next(decoder.model.parameters()).dtype
    windows = [decoder.window(decoder.layer_kind(i)) for i in range(len(layers))]
    if dtype not in (torch.float32, torch.float64) or not all(map(known_layer, layers)):
        return None
    return None if any(w is not None and w < longest for w in windows) else FlatPass(decoder, maps)


class FlatPass:
    """The layers up to the last of some edited maps, for the inputs of those maps; made by ``flat_pass``."""

    def __init__(self, decoder: Decoder, maps: Sequence[int]) -> None:
        self.decoder, self.maps = decoder, frozenset(maps)
        self.stop = max(map(layer_of, maps)) + 1

    @torch.no_grad()
    def keys(self, pieces: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """By map number, in the order of the layers, its inputs (N, I) over the pieces end to end.

        A tensor is valid until the next one is asked for.
        """
        decoder, device = self.decoder, next(self.decoder.model.parameters()).device
        edges = [0]
        for piece in pieces:
            edges.append(edges[-1] + len(piece))
        ids = torch.tensor([[token for piece in pieces for token in piece]], device=device)
        positions = torch.cat([torch.arange(len(piece), device=device) for piece in pieces])[None]
        x = decoder.embed(ids, positions)[0].clone()
        rotary: dict[str, tuple[Tensor, Tensor]] = {}
        for index in range(self.stop):
            kind = decoder.layer_kind(index)
            if kind not in rotary:
                cos, sin = decoder.rotary(x, positions, kind)
                half = cos.shape[-1] // 2  # the two halves of a head turn by the same angles
                rotary[kind] = (cos[..., None, :half].contiguous(), sin[..., None, :half].contiguous())
            layer: Any = decoder.layers[index]
            normed = Norm.of(layer.input_layernorm).apply(x)
            _add_product(x, _attended(layer.self_attn, normed, edges, rotary[kind]), layer.self_attn.o_proj)
            normed = Norm.of(layer.post_attention_layernorm).apply(x)
            yield from (
                (n, normed) for n in (map_number(index, "gate_proj"), map_number(index, "up_proj")) if n in self.maps
            )
            if index + 1 == self.stop and index not in self.maps:
                return
            inner = nn.functional.silu(layer.mlp.gate_proj(normed), inplace=True).mul_(layer.mlp.up_proj(normed))
            if index in self.maps:
                yield index, inner
            if index + 1 < self.stop:
                _add_product(x, inner, layer.mlp.down_proj)


def _attended(attention: Any, x: Tensor, edges: Sequence[int], rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Mixed values (N, H D) of every token, each piece by itself."""
    tokens, width = x.shape[0], attention.head_dim
    query, key = (product(x).view(1, tokens, -1, width) for product in (attention.q_proj, attention.k_proj))
    value = attention.v_proj(x).view(1, tokens, -1, width)
    query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    if query_norm is not None and key_norm is not None:
        query, key = Norm.of(query_norm).apply(query), Norm.of(key_norm).apply(key)
    query, key = rotated(query, *rotary), rotated(key, *rotary)
    groups = query.shape[2] // key.shape[2]
    if groups > 1:  # a query head and its keys must bear the same number
        key, value = (t.repeat_interleave(groups, dim=2) for t in (key, value))
    mixed = torch.empty_like(query)
    for start, stop in pairwise(edges):
        q, k, v = (t[:, start:stop].transpose(1, 2) for t in (query, key, value))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
        mixed[:, start:stop] = found.transpose(1, 2)
    return mixed.view(tokens, -1)


def _add_product(x: Tensor, rows: Tensor, product: nn.Linear) -> None:
    """``x += product(rows)`` in place."""
    x.addmm_(rows, product.weight.mT)
    if product.bias is not None:
        x += product.bias
