"""A run of gated pre-norm layers (Llama, Mistral, Qwen) over a fixed past, with a backward pass written out.

Optimising a target value runs the same layers over a few dozen tokens, forward and back, some twenty times. At that
size the general pass spends two fifths of its time on what is not a product: small kernels, their bookkeeping,
gradients of keys and values that cannot change, copies of key heads for their groups, scores of tokens that do not see
each other. Here each layer is a few dozen kernels each way: products see the tokens alone, without padding; attention
goes segment by segment, with keys and values in one buffer behind their past; and only the gradient of the input is
made.

What it computes is what ``Decoder.layer`` computes, to rounding; a layer that is not exactly of the known form goes the
general way (``span_of`` gives None).

Letters: as in ``segments``; d hidden size, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editing.model.decoder import Decoder, Layout
from editing.model.packed import Product, is_plain
from editing.model.segments import HeadPlaces, Segments

ProductOf = Callable[[nn.Linear], Product]
"""How a linear map multiplies: with its weight as it lies, or packed."""

_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
_ATTENTION_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
_QUERY_AND_KEY = _ATTENTION_MAPS[:2]
_MLP_MAPS = ("gate_proj", "up_proj", "down_proj")
MOST_SCORES = 2**28
"""Attention scores that are kept for the way back, over all layers (1 GiB); with more the general way is taken."""


def span_of(
    decoder: Decoder,
    start: int,
    new: Layout,
    before: Layout,
    past: Mapping[int, tuple[Tensor, Tensor]],
    product_of: ProductOf,
    wanted: Tensor | None = None,
) -> GatedSpan | None:
    """The layers from ``start`` to the last, or None where one of them is not of the known form.

    Args:
        new: where the tokens (B, S) that run stand.
        before: where the past tokens (B, P) stand.
        past: keys and values (B, K, P, D) by layer.
        product_of: asked once for every linear map.
        wanted: bool (B, S), the tokens whose output is read; null for all.
    """
    layers = list(decoder.layers)[start:]
    if not layers or not written_out(decoder, layers):
        return None
    attention: Any = layers[0].self_attn
    heads = attention.q_proj.out_features // attention.head_dim
    segments = Segments(new, before, wanted)
    if heads * segments.count * segments.new * segments.total * len(layers) > MOST_SCORES:
        return None
    return GatedSpan(decoder, start, segments, past, product_of)


def written_out(decoder: Decoder, layers: Sequence[nn.Module]) -> bool:
    """Whether these layers are exactly of the form that is written out, and nobody changed or watches them."""
    probe = next(decoder.model.parameters())
    if not decoder.written_out or probe.dtype not in (torch.float32, torch.float64) or not all(map(_known, layers)):
        return False
    attention: Any = layers[0].self_attn
    start = torch.zeros(1, 1, dtype=torch.long, device=probe.device)
    kinds = {decoder.layer_kind(i) for i in range(len(decoder.layers))}
    return all(decoder.rotary(probe, start, kind)[0].shape[-1] == attention.head_dim for kind in kinds)


def _known(layer: nn.Module) -> bool:
    if type(layer).__name__ not in _LAYERS or any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules()):
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    maps = [getattr(attention, name) for name in _ATTENTION_MAPS] + [getattr(mlp, name) for name in _MLP_MAPS]
    return all(is_plain(m) for m in maps) and str(attention.config.hidden_act) in ("silu", "swish")


@dataclass
class Norm:
    """Root-mean-square norm with its gain."""

    gain: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        """The norm that a module of the library computes."""
        return cls(module.weight.detach(), float(module.variance_epsilon))

    def apply(self, x: Tensor) -> Tensor:
        """The normed rows, with nothing kept for a way back."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * size.square_().div_(x.shape[-1]).add_(self.epsilon).rsqrt_()).mul_(self.gain)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normed rows, and for the way back those before the gain, and 1 / rms."""
        scale = x.square().mean(dim=-1, keepdim=True).add_(self.epsilon).rsqrt_()
        unit = x * scale
        return unit * self.gain, unit, scale

    def back(self, gradient: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
        inner = gradient * self.gain
        along = (inner * unit).mean(dim=-1, keepdim=True)
        return inner.addcmul_(unit, along, value=-1).mul_(scale)


def head_norms(attention: Any) -> tuple[Norm | None, Norm | None]:
    """The norms of an attention's queries and keys, where it has them."""
    if not hasattr(attention, "q_norm"):
        return None, None
    return Norm.of(attention.q_norm), Norm.of(attention.k_norm)


class _Layer:
    """One layer's weights, its buffer of keys and values, and its two ways."""

    def __init__(
        self,
        layer: nn.Module,
        past: tuple[Tensor, Tensor],
        segments: Segments,
        places: HeadPlaces,
        product_of: ProductOf,
        last: bool,
    ) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.before_attention, self.before_mlp = (
            Norm.of(layer.input_layernorm),
            Norm.of(layer.post_attention_layernorm),
        )
        self.query_norm, self.key_norm = head_norms(attention)
        self.scaling = float(attention.scaling)
        maps = {name: getattr(attention, name) for name in _ATTENTION_MAPS}
        maps |= {name: getattr(mlp, name) for name in _MLP_MAPS}
        self.product = {name: product_of(module) for name, module in maps.items()}
        self.past, self.places = segments.past, places
        self.wanted = segments.wanted if last else None
        """Behind the last attention only the tokens go on that are read."""
        self.keys, self.values = (segments.buffer(part).flatten(0, 1) for part in past)  # (C K, T, D)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (N, d) to the output of the tokens that go on, and what the way back needs."""
        tape: dict[str, Tensor] = {}
        product, at, width = self.product, self.places, self.keys.shape[-1]
        normed, tape["unit_1"], tape["scale_1"] = self.before_attention(x)
        query = product["q_proj"].forward(normed).view(1, x.shape[0], -1, width)
        key = product["k_proj"].forward(normed).view(1, x.shape[0], -1, width)
        if self.query_norm is not None and self.key_norm is not None:
            query, tape["unit_q"], tape["scale_q"] = self.query_norm(query)
            key, tape["unit_k"], tape["scale_k"] = self.key_norm(key)
        self.keys.view(-1, width).index_copy_(0, at.keys, rotated(key, *rotary).view(-1, width))
        self.values.view(-1, width).index_copy_(0, at.keys, product["v_proj"].forward(normed).view(-1, width))
        tape["query"] = self._by_key_head(rotated(query, *rotary))
        tape["share"] = torch.baddbmm(mask, tape["query"], self.keys.mT, alpha=self.scaling).softmax(dim=-1)
        tape["mixed"] = torch.bmm(tape["share"], self.values)
        if self.wanted is not None:
            x = x[self.wanted]
        read = at.queries if self.wanted is None else at.read
        x = x + product["o_proj"].forward(_rows(tape["mixed"], read).view(x.shape[0], -1))
        normed, tape["unit_2"], tape["scale_2"] = self.before_mlp(x)
        tape["gate"], tape["up"] = product["gate_proj"].forward(normed), product["up_proj"].forward(normed)
        return x + product["down_proj"].forward(nn.functional.silu(tape["gate"]).mul_(tape["up"])), tape

    def backward(self, gradient: Tensor, tape: dict[str, Tensor], rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Gradient of the output to that of the input, (N, d)."""
        gate, product, at = tape["gate"], self.product, self.places
        tokens, width = tape["unit_1"].shape[0], self.keys.shape[-1]
        inner = product["down_proj"].back(gradient)
        at_up = inner * nn.functional.silu(gate)
        at_gate = torch.ops.aten.silu_backward(inner.mul_(tape["up"]), gate)
        at_norm = product["gate_proj"].back(at_gate).add_(product["up_proj"].back(at_up))
        gradient = gradient + self.before_mlp.back(at_norm, tape["unit_2"], tape["scale_2"])

        share, at_mixed = tape["share"], product["o_proj"].back(gradient)
        if self.wanted is not None:
            at_mixed, gradient = (_spread(part, self.wanted, tokens) for part in (at_mixed, gradient))
        mixed = self._by_key_head(at_mixed)
        along = (mixed * tape["mixed"]).sum(dim=-1, keepdim=True)
        scores = torch.bmm(mixed, self.values.mT).sub_(along).mul_(share).mul_(self.scaling)
        back = (rotary[0], -rotary[1])  # a rotation's gradient turns the other way
        query = rotated(_rows(torch.bmm(scores, self.keys), at.queries).view(1, tokens, -1, width), *back)
        key = _rows(torch.bmm(scores[:, :, self.past :].mT, tape["query"]), at.new_keys)
        value = _rows(torch.bmm(share[:, :, self.past :].mT, mixed), at.new_keys)
        key = rotated(key.view(1, tokens, -1, width), *back)
        if self.query_norm is not None and self.key_norm is not None:
            query = self.query_norm.back(query, tape["unit_q"], tape["scale_q"])
            key = self.key_norm.back(key, tape["unit_k"], tape["scale_k"])
        at_norm = product["q_proj"].back(query.reshape(tokens, -1))
        at_norm.add_(product["k_proj"].back(key.reshape(tokens, -1)))
        at_norm.add_(product["v_proj"].back(value.view(tokens, -1)))
        return gradient + self.before_attention.back(at_norm, tape["unit_1"], tape["scale_1"])

    def _by_key_head(self, x: Tensor) -> Tensor:
        """Heads of the tokens, N H D numbers, to (C K, Q E, D)."""
        at, width = self.places, self.keys.shape[-1]
        return x.view(-1, width).index_select(0, at.tokens).view(at.rows, at.per_row, width)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of the last dimension, in the order of the index."""
    return x.view(-1, x.shape[-1]).index_select(0, index)


def half_tables(tables: tuple[Tensor, Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """The library's cosine and sine (1 or B, S, D) as ``rotated`` takes them; both halves of a head turn alike."""
    half = tables[0].shape[-1] // 2
    cos, sin = (table[..., None, :half].expand(rows, -1, -1, -1).contiguous() for table in tables)
    return cos, sin


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, S, heads, D) turned by the angles whose cosine and sine are (B, S, 1, D / 2)."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    a, b = x.chunk(2, dim=-1)
    out_a, out_b = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
    return out


def _spread(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Rows in their places among ``rows``, zeros in the others."""
    return x.new_zeros(rows, x.shape[-1]).index_copy_(0, index, x)


class GatedSpan:
    """The layers from one to the last over new tokens behind a fixed past; made by ``span_of``."""

    def __init__(
        self,
        decoder: Decoder,
        start: int,
        segments: Segments,
        past: Mapping[int, tuple[Tensor, Tensor]],
        product_of: ProductOf,
    ) -> None:
        layers: Any = list(decoder.layers)
        width = layers[start].self_attn.head_dim
        heads, key_heads = (getattr(layers[start].self_attn, name).out_features // width for name in _QUERY_AND_KEY)
        places = HeadPlaces(segments, heads, key_heads)
        self.tokens = segments.tokens
        self.read = self.tokens if segments.wanted is None else self.tokens[segments.wanted]
        numbers = range(start, len(layers))
        last = numbers[-1]
        self.layers = [_Layer(layers[i], past[i], segments, places, product_of, last=i == last) for i in numbers]
        self.kinds = [decoder.layer_kind(i) for i in numbers]
        probe = next(decoder.model.parameters())
        self.rotary, self.masks = {}, {}
        for kind in dict.fromkeys(self.kinds):
            self.rotary[kind] = half_tables(decoder.rotary(probe, segments.positions, kind), rows=1)
            mask = segments.mask(probe.dtype, decoder.window(kind))
            each = mask[:, None, None].expand(-1, key_heads, heads // key_heads, -1, -1)
            self.masks[kind] = each.reshape(places.rows, places.per_row, -1)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(B, S, d) to (B, S, d), zeros where nothing is read.

        One pass at a time: the next overwrites what the way back reads.
        """
        out: Tensor = _Pass.apply(hidden, self)
        return out

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        x = hidden.flatten(0, 1)[self.tokens]
        tapes = []
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x, tape = layer.forward(x, self.rotary[kind], self.masks[kind])
            tapes.append(tape)
        return _spread(x, self.read, hidden.shape[0] * hidden.shape[1]).view_as(hidden), tapes

    def backward(self, gradient: Tensor, tapes: list[dict[str, Tensor]]) -> Tensor:
        x = gradient.flatten(0, 1)[self.read]
        for layer, kind in zip(reversed(self.layers), reversed(self.kinds), strict=True):
            x = layer.backward(x, tapes.pop(), self.rotary[kind])
        return _spread(x, self.tokens, gradient.shape[0] * gradient.shape[1]).view_as(gradient)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, span: GatedSpan) -> Tensor:
        out, ctx.tapes = span.forward(hidden)
        ctx.span = span
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.span.backward(gradients[0].contiguous(), ctx.tapes), None
