"""Keys of gated pre-norm layers over pieces of text laid end to end: no rows, no padding, no mask.

Products see all tokens of a batch at once; attention goes piece by piece, causal, so that no piece meets another and
nothing above the diagonal is computed. The pass ends where the last key is read. Sums go where their addends lie.

What it computes is what ``Decoder.layer`` computes, to rounding; ``flat_pass`` gives None for layers that are not
exactly of the known form.

Letters: N tokens of a batch, L of a piece, d hidden size, H query heads, K key heads, D head width, I = d_in of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from errata.editing.model.decoder import Decoder, layer_of, map_number
from errata.editing.model.span import Norm, Rotary, apply_rotary_, head_norms, rotary_of, written_out

Take = Callable[[int, Tensor], None]
"""What is done with the inputs (N, I) of a map, given by its number."""


def flat_pass(decoder: Decoder, maps: Sequence[int], longest: int) -> FlatPass | None:
    """A pass for the keys of ``maps`` over pieces of at most ``longest`` tokens, or None where there is none."""
    if not maps:
        return None
    layers = list(decoder.layers)[: max(map(layer_of, maps)) + 1]
    windows = [decoder.window(decoder.layer_kind(i)) for i in range(len(layers))]
    too_long = any(window is not None and window < longest for window in windows)
    return None if too_long or not written_out(decoder, layers) else FlatPass(decoder, maps)


class FlatPass:
    """The layers up to the last of some edited maps, for the inputs of those maps; made by ``flat_pass``."""

    def __init__(self, decoder: Decoder, maps: Sequence[int]) -> None:
        self.decoder, self.maps = decoder, frozenset(maps)
        self.stop = max(map(layer_of, maps)) + 1

    @torch.no_grad()
    def run(self, pieces: Sequence[Sequence[int]], take: Take, onward: Sequence[int] = ()) -> Tensor:
        """Hand the inputs (N, I) of every map over the pieces, end to end, to ``take``, layer by layer.

        A tensor belongs to ``take`` for the call only: the pass goes on in its memory.

        Returns:
            The last layer's output (M, d) over the pieces whose numbers are ``onward``, end to end in that order; they
            alone run through the layers that are left.
        """
        decoder, device = self.decoder, next(self.decoder.model.parameters()).device
        tokens = _Tokens(decoder, list(map(len, pieces)), device)
        ids = torch.tensor([[token for piece in pieces for token in piece]], device=device)
        x = decoder.embed(ids, tokens.positions)[0].clone()
        for index in range(self.stop - 1):
            self._layer(index, x, tokens, take)
        last = self.stop - 1
        inner = self._before_map(last, x, tokens, take, whole=bool(onward) or last in self.maps)
        if not onward:
            return x[:0]
        mine = torch.cat([torch.arange(*tokens.edges[i : i + 2], device=device) for i in onward])
        x = x[mine]
        assert inner is not None
        _add_product(x, inner[mine], decoder.layers[last].mlp.down_proj)  # type: ignore[union-attr, arg-type]
        tokens = _Tokens(decoder, [len(pieces[i]) for i in onward], device)
        for index in range(self.stop, len(decoder.layers)):
            self._layer(index, x, tokens, _nothing)
        return x

    def _layer(self, index: int, x: Tensor, tokens: _Tokens, take: Take) -> None:
        """One layer, in the memory of ``x`` (N, d)."""
        layer: Any = self.decoder.layers[index]
        inner = self._before_map(index, x, tokens, take, whole=True)
        assert inner is not None
        _add_product(x, inner, layer.mlp.down_proj)

    def _before_map(self, index: int, x: Tensor, tokens: _Tokens, take: Take, *, whole: bool) -> Tensor | None:
        """A layer up to the input (N, I) of its output projection, attention added to ``x``; without ``whole``, to the
        input of the MLP, and None."""
        layer: Any = self.decoder.layers[index]
        normed = Norm.of(layer.input_layernorm).apply(x)
        attn_out = _attended(layer.self_attn, normed, tokens.edges, tokens.rotary(self.decoder.layer_kind(index)))
        _add_product(x, attn_out, layer.self_attn.o_proj)
        normed = Norm.of(layer.post_attention_layernorm).apply(x)
        for number in (map_number(index, "gate_proj"), map_number(index, "up_proj")):
            if number in self.maps:
                take(number, normed)
        if not whole:
            return None
        inner = nn.functional.silu(layer.mlp.gate_proj(normed), inplace=True).mul_(layer.mlp.up_proj(normed))
        if index in self.maps:
            take(index, inner)
        return inner


class _Tokens:
    """Where the pieces lie, and what their positions mean for the layers."""

    def __init__(self, decoder: Decoder, lengths: Sequence[int], device: torch.device) -> None:
        self.decoder = decoder
        self.edges = [0, *accumulate(lengths)]
        self.positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        self._rotaries: dict[str, Rotary] = {}

    def rotary(self, kind: str) -> Rotary:
        """Cosine and signed sine at the tokens' positions (N, 1, D), for layers of a kind."""
        if kind not in self._rotaries:
            probe = next(self.decoder.model.parameters())
            self._rotaries[kind] = rotary_of(self.decoder.rotary(probe, self.positions, kind))
        return self._rotaries[kind]


def _nothing(number: int, keys: Tensor) -> None:
    """Nobody wants the keys of the layers behind the last map."""


def _attended(attention: Any, x: Tensor, edges: Sequence[int], rotary: Rotary) -> Tensor:
    """Attention output (N, H D) of every token, each piece by itself."""
    tokens, width = x.shape[0], attention.head_dim
    query, key = (product(x).view(1, tokens, -1, width) for product in (attention.q_proj, attention.k_proj))
    value = attention.v_proj(x).view(1, tokens, -1, width)
    query_norm, key_norm = head_norms(attention)
    if query_norm is not None and key_norm is not None:
        query, key = query_norm.apply(query), key_norm.apply(key)
    query, key = apply_rotary_(query, rotary), apply_rotary_(key, rotary)
    groups = query.shape[2] // key.shape[2]
    if groups > 1:  # a query head and its keys must bear the same number
        key, value = (t.repeat_interleave(groups, dim=2) for t in (key, value))
    attn_out = torch.empty_like(query)
    for start, stop in pairwise(edges):
        q, k, v = (t[:, start:stop].transpose(1, 2) for t in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
        attn_out[:, start:stop] = attended.transpose(1, 2)
    return attn_out.view(tokens, -1)


def _add_product(x: Tensor, rows: Tensor, product: nn.Linear) -> None:
    """``x += product(rows)`` in place."""
    x.addmm_(rows, product.weight.mT)
    if product.bias is not None:
        x += product.bias
