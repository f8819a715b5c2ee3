"""A run of gated pre-norm layers (Llama, Mistral, Qwen) over a fixed past, with a backward pass written out.

Optimizing a target value runs the same layers over a few dozen tokens, forward and back, some twenty times. At that
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

from errata.editing.model.decoder import Decoder, Layout
from errata.editing.model.packed import Product, is_plain
from errata.editing.model.segments import HeadPlaces, Segments

ProductOf = Callable[[Sequence[nn.Linear]], Product]
"""How linear maps of one input multiply: with their weights as they lie, or packed."""

_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
_HEAD_MAPS = ("q_proj", "k_proj", "v_proj")
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
        product_of: asked once for all linear maps of one input.
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
    maps = [getattr(attention, name) for name in (*_HEAD_MAPS, "o_proj")] + [getattr(mlp, name) for name in _MLP_MAPS]
    return all(is_plain(m) for m in maps) and str(attention.config.hidden_act) in ("silu", "swish")


@dataclass
class Norm:
    """Root-mean-square norm with its gain."""

    gain: Tensor
    epsilon: Tensor

    @classmethod
    def of(cls, module: Any) -> Norm:
        """The norm that a module of the library computes."""
        gain = module.weight.detach()
        return cls(gain, gain.new_full((1,), float(module.variance_epsilon)))

    def apply(self, x: Tensor) -> Tensor:
        """The normed rows, with nothing kept for a way back."""
        return (x * self._scale(x)).mul_(self.gain)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normed rows, and for the way back those before the gain, and 1 / rms."""
        scale = self._scale(x)
        unit = x * scale
        return unit * self.gain, unit, scale

    def backward(self, gradient: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
        """The gradient of the normed rows to that of the rows; ``unit`` and ``scale`` as the call returned them."""
        inner = gradient * self.gain
        along = (inner * unit).sum(dim=-1, keepdim=True)
        return inner.addcmul_(unit, along, value=-1.0 / unit.shape[-1]).mul_(scale)

    def _scale(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # a number as a tensor: for a Python one torch makes a tensor every time
        return torch.addcmul(self.epsilon, size, size, value=1.0 / x.shape[-1]).rsqrt_()


def head_norms(attention: Any) -> tuple[Norm | None, Norm | None]:
    """The norms of an attention's queries and keys, where it has them."""
    if not hasattr(attention, "q_norm"):
        return None, None
    return Norm.of(attention.q_norm), Norm.of(attention.k_norm)


class KVBuffer:
    """Keys and values (2, C K, T, D) of every segment, and the same transposed, (2, C K, D, T).

    The products that read them across take the transposed ones: small products are five times slower otherwise.
    """

    def __init__(self, past: tuple[Tensor, Tensor], segments: Segments) -> None:
        both = torch.stack([segments.buffer(part).flatten(0, 1) for part in past])
        transposed = both.mT.contiguous()
        self.keys, self.values = both
        self.keys_transposed, self.values_transposed = transposed
        self._new, self._new_transposed = both[:, :, segments.past :], transposed[..., segments.past :]

    def take(self, rows: Tensor) -> None:
        """The new tokens' keys and values, (2 C K E, D)."""
        new = rows.view(self._new.shape)
        self._new.copy_(new)
        self._new_transposed.copy_(new.mT)


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
        self.scaling, self.width = float(attention.scaling), int(attention.head_dim)
        self.heads = product_of([getattr(attention, name) for name in _HEAD_MAPS])
        self.out = product_of([attention.o_proj])
        self.gate_and_up = product_of([mlp.gate_proj, mlp.up_proj])
        self.down = product_of([mlp.down_proj])
        self.cache, self.past, self.places = KVBuffer(past, segments), segments.past, places
        self.wanted = segments.wanted if last else None
        """Behind the last attention only the tokens go on that are read."""

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (N, d) to the output of the tokens that go on, and what the way back needs."""
        tape: dict[str, Tensor] = {}
        at, cache, width = self.places, self.cache, self.width
        normed, tape["unit_1"], tape["scale_1"] = self.before_attention(x)
        heads = self.heads.forward(normed).view(x.shape[0], -1, width)
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = heads[:, : at.heads], heads[:, at.heads : -at.key_heads]
            normed_queries, tape["unit_q"], tape["scale_q"] = self.query_norm(queries)
            normed_keys, tape["unit_k"], tape["scale_k"] = self.key_norm(keys)
            queries.copy_(normed_queries)
            keys.copy_(normed_keys)
        apply_rotary_(heads[:, : -at.key_heads], rotary)
        tables = _rows(heads, at.into_tables)
        query = tape["query"] = tables[: at.query_rows].view(at.rows, at.per_row, width)
        cache.take(tables[at.query_rows :])
        scores = torch.baddbmm(mask, query, cache.keys_transposed, alpha=self.scaling)
        attn_probs = tape["attn_probs"] = scores.softmax(dim=-1)
        attn_out = _rows(torch.bmm(attn_probs, cache.values), at.own if self.wanted is None else at.read)
        if self.wanted is not None:
            x = x[self.wanted]
        x = x + self.out.forward(attn_out.view(x.shape[0], -1))
        normed, tape["unit_2"], tape["scale_2"] = self.before_mlp(x)
        gate, tape["up"] = self.gate_and_up.forward(normed).chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        silu = tape["silu"] = gate.mul_(sigmoid)
        # silu's derivative, from what is there: sigmoid + silu (1 - sigmoid)
        tape["silu_grad"] = sigmoid.addcmul_(silu, sigmoid, value=-1).add_(silu)
        return x + self.down.forward(silu * tape["up"]), tape

    def backward(self, gradient: Tensor, tape: dict[str, Tensor], rotary: Rotary) -> Tensor:
        """Gradient of the output to that of the input, (N, d)."""
        at, cache, attn_probs = self.places, self.cache, tape["attn_probs"]
        inner = self.down.backward(gradient)
        both = inner.new_empty(inner.shape[0], 2, inner.shape[1])
        torch.mul(inner, tape["silu"], out=both[:, 1])
        torch.mul(inner.mul_(tape["up"]), tape["silu_grad"], out=both[:, 0])
        grad_norm = self.gate_and_up.backward(both.view(inner.shape[0], -1))
        gradient = self.before_mlp.backward(grad_norm, tape["unit_2"], tape["scale_2"]).add_(gradient)

        grad_attn_out, tokens = self.out.backward(gradient), tape["unit_1"].shape[0]
        if self.wanted is not None:
            grad_attn_out, gradient = (_spread(part, self.wanted, tokens) for part in (grad_attn_out, gradient))
        grad_heads = _rows(grad_attn_out.view(-1, self.width), at.queries).view(at.rows, at.per_row, self.width)
        scores = torch.bmm(grad_heads, cache.values_transposed)
        scores = torch.ops.aten._softmax_backward_data(scores, attn_probs, -1, attn_probs.dtype).mul_(self.scaling)
        counts = [at.query_rows, at.key_rows, at.key_rows]
        tables = grad_heads.new_empty(sum(counts), self.width)
        query, keys, values = tables.split(counts)
        torch.bmm(scores, cache.keys, out=query.view(tape["query"].shape))
        torch.bmm(scores[:, :, self.past :].mT, tape["query"], out=keys.view(at.rows, -1, self.width))
        torch.bmm(attn_probs[:, :, self.past :].mT, grad_heads, out=values.view(at.rows, -1, self.width))
        heads = _rows(tables, at.from_tables).view(tokens, -1, self.width)
        apply_rotary_(heads[:, : -at.key_heads], rotary, inverse=True)
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = heads[:, : at.heads], heads[:, at.heads : -at.key_heads]
            query.copy_(self.query_norm.backward(query, tape["unit_q"], tape["scale_q"]))
            keys.copy_(self.key_norm.backward(keys, tape["unit_k"], tape["scale_k"]))
        grad_norm = self.heads.backward(heads.view(tokens, -1))
        return self.before_attention.backward(grad_norm, tape["unit_1"], tape["scale_1"]).add_(gradient)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of the last dimension, in the order of the index."""
    return x.view(-1, x.shape[-1]).index_select(0, index)


Rotary = tuple[Tensor, Tensor]
"""Cosine and signed sine (S, 1, D): the first half of a head's sine is negative."""


def rotary_of(tables: tuple[Tensor, Tensor]) -> Rotary:
    """The library's cosine and sine (1, S, D), as ``apply_rotary_`` takes them."""
    cos, sin = (table[0, :, None] for table in tables)
    first, second = sin.chunk(2, dim=-1)
    return cos.contiguous(), torch.cat([-first, second], dim=-1)


def apply_rotary_(x: Tensor, rotary: Rotary, *, inverse: bool = False) -> Tensor:
    """The heads x (S, heads, D), rotated in place; with ``inverse`` the other way, as gradients are."""
    other = x.roll(x.shape[-1] // 2, dims=-1)
    return x.mul_(rotary[0]).addcmul_(other, rotary[1], value=-1 if inverse else 1)


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
        heads, key_heads = (getattr(layers[start].self_attn, name).out_features // width for name in _HEAD_MAPS[:2])
        places = HeadPlaces(segments, heads, key_heads)
        self.tokens = segments.tokens
        self.read = self.tokens if segments.wanted is None else self.tokens[segments.wanted]
        numbers = range(start, len(layers))
        last = numbers[-1]
        self.layers = [_Layer(layers[i], past[i], segments, places, product_of, last=i == last) for i in numbers]
        self.kinds = [decoder.layer_kind(i) for i in numbers]
        probe = next(decoder.model.parameters())
        self.rotaries, self.masks = {}, {}
        for kind in dict.fromkeys(self.kinds):
            self.rotaries[kind] = rotary_of(decoder.rotary(probe, segments.positions, kind))
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
            x, tape = layer.forward(x, self.rotaries[kind], self.masks[kind])
            tapes.append(tape)
        return _spread(x, self.read, hidden.shape[0] * hidden.shape[1]).view_as(hidden), tapes

    def backward(self, gradient: Tensor, tapes: list[dict[str, Tensor]]) -> Tensor:
        x = gradient.flatten(0, 1)[self.read]
        for layer, kind in zip(reversed(self.layers), reversed(self.kinds), strict=True):
            x = layer.backward(x, tapes.pop(), self.rotaries[kind])
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
