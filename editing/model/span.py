"""A run of gated pre-norm layers (Llama, Mistral, Qwen) over a fixed past, with a backward pass written out.

Optimising a target value runs the same layers over a few dozen rows, forward and back, some twenty times. At that size
the general pass spends two fifths of its time on what is not a product: small kernels, their bookkeeping, gradients of
keys and values that cannot change, copies of key heads for their groups. Here each layer is a dozen kernels each way,
keys and values live in one buffer behind their past, and only the gradient of the input is made.

What it computes is what ``Decoder.layer`` computes, to rounding; a layer that is not exactly of the known form goes the
general way (``span_of`` gives None).

Letters: B rows, S tokens that run, P past tokens, T = P + S, N = B S, d hidden size, H query heads, K key heads,
G = H / K, D head width, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editing.model.decoder import Decoder, Positional
from editing.model.packed import is_plain

Product = Callable[[Tensor], Tensor]
ProductOf = Callable[[nn.Linear], Product]
"""How a linear map multiplies: by itself, or with weights that are packed."""

_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
_ATTENTION_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_MAPS = ("gate_proj", "up_proj", "down_proj")
MOST_SCORES = 2**28
"""Attention scores that are kept for the way back, over all layers (1 GiB); with more the general way is taken."""


def span_of(
    decoder: Decoder,
    start: int,
    positional: Positional,
    past: Mapping[int, tuple[Tensor, Tensor]],
    product_of: ProductOf,
) -> GatedSpan | None:
    """The layers from ``start`` to the last, or None where one of them is not of the known form.

    Args:
        positional: tables and masks of the S tokens over the P + S.
        past: keys and values (B, K, P, D) by layer.
        product_of: asked once for every linear map.
    """
    layers = list(decoder.layers)[start:]
    if not layers or not written_out(decoder, layers):
        return None
    attention: Any = layers[0].self_attn
    queries = attention.q_proj.out_features // attention.head_dim
    mask = next(iter(positional.masks.values()))
    if queries * mask.numel() * len(layers) > MOST_SCORES:
        return None
    return GatedSpan(decoder, start, positional, past, product_of)


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

    def __init__(self, layer: nn.Module, past: tuple[Tensor, Tensor], new: int, product_of: ProductOf) -> None:
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
        self.weight = {name: module.weight.detach() for name, module in maps.items()}
        self.past = past[0].shape[2]
        self.keys, self.values = (
            torch.cat([part, part.new_zeros(*part.shape[:2], new, part.shape[3])], dim=2) for part in past
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (N, d) to (N, d), and what the way back needs."""
        tape: dict[str, Tensor] = {}
        rows, heads, total, width = self.keys.shape
        new = total - self.past
        normed, tape["unit_1"], tape["scale_1"] = self.before_attention(x)
        query = self.product["q_proj"](normed).view(rows, new, -1, width)
        key = self.product["k_proj"](normed).view(rows, new, heads, width)
        if self.query_norm is not None and self.key_norm is not None:
            query, tape["unit_q"], tape["scale_q"] = self.query_norm(query)
            key, tape["unit_k"], tape["scale_k"] = self.key_norm(key)
        self.keys[:, :, self.past :] = rotated(key, *rotary).transpose(1, 2)
        self.values[:, :, self.past :] = self.product["v_proj"](normed).view(rows, new, heads, width).transpose(1, 2)
        tape["query"] = self._by_key_head(rotated(query, *rotary))
        keys, values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        tape["share"] = torch.baddbmm(mask, tape["query"], keys.mT, alpha=self.scaling).softmax(dim=-1)
        tape["mixed"] = torch.bmm(tape["share"], values)
        x = x + self.product["o_proj"](self._by_token(tape["mixed"]))
        normed, tape["unit_2"], tape["scale_2"] = self.before_mlp(x)
        tape["gate"], tape["up"] = self.product["gate_proj"](normed), self.product["up_proj"](normed)
        return x + self.product["down_proj"](nn.functional.silu(tape["gate"]).mul_(tape["up"])), tape

    def backward(self, gradient: Tensor, tape: dict[str, Tensor], rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Gradient (N, d) of the output to that of the input."""
        gate, weight = tape["gate"], self.weight
        rows, heads, total, width = self.keys.shape
        inner = gradient @ weight["down_proj"]
        at_up = inner * nn.functional.silu(gate)
        at_gate = torch.ops.aten.silu_backward(inner.mul_(tape["up"]), gate)
        at_norm = torch.addmm(at_gate @ weight["gate_proj"], at_up, weight["up_proj"])
        gradient = gradient + self.before_mlp.back(at_norm, tape["unit_2"], tape["scale_2"])

        share = tape["share"]
        mixed = self._by_key_head((gradient @ weight["o_proj"]).view(rows, total - self.past, -1, width))
        keys, values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        along = (mixed * tape["mixed"]).sum(dim=-1, keepdim=True)
        scores = torch.bmm(mixed, values.mT).sub_(along).mul_(share).mul_(self.scaling)
        back = (rotary[0], -rotary[1])  # a rotation's gradient turns the other way
        query = rotated(self._tokens(torch.bmm(scores, keys)), *back)
        key = torch.bmm(scores[:, :, self.past :].mT, tape["query"]).unflatten(0, (rows, heads)).transpose(1, 2)
        value = torch.bmm(share[:, :, self.past :].mT, mixed).unflatten(0, (rows, heads)).transpose(1, 2)
        key = rotated(key, *back)
        if self.query_norm is not None and self.key_norm is not None:
            query = self.query_norm.back(query, tape["unit_q"], tape["scale_q"])
            key = self.key_norm.back(key, tape["unit_k"], tape["scale_k"])
        tokens = gradient.shape[0]
        at_norm = query.reshape(tokens, -1) @ weight["q_proj"]
        at_norm = at_norm.addmm_(key.reshape(tokens, -1), weight["k_proj"])
        at_norm = at_norm.addmm_(value.reshape(tokens, -1), weight["v_proj"])
        return gradient + self.before_attention.back(at_norm, tape["unit_1"], tape["scale_1"])

    def _by_key_head(self, x: Tensor) -> Tensor:
        """(B, S, H, D) to (B K, G S, D): all queries that meet the same keys in one product."""
        rows, heads = self.keys.shape[:2]
        return x.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).reshape(rows * heads, -1, x.shape[3])

    def _tokens(self, x: Tensor) -> Tensor:
        """(B K, G S, D) to (B, S, H, D); a view, or a copy where the strides ask for one."""
        rows, heads, total, width = self.keys.shape
        new = total - self.past
        return x.view(rows, heads, -1, new, width).permute(0, 3, 1, 2, 4).reshape(rows, new, -1, width)

    def _by_token(self, x: Tensor) -> Tensor:
        """(B K, G S, D) to (N, H D)."""
        tokens = self._tokens(x)
        return tokens.reshape(tokens.shape[0] * tokens.shape[1], -1)


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


class GatedSpan:
    """The layers from one to the last over S tokens behind a fixed past; made by ``span_of``."""

    def __init__(
        self,
        decoder: Decoder,
        start: int,
        positional: Positional,
        past: Mapping[int, tuple[Tensor, Tensor]],
        product_of: ProductOf,
    ) -> None:
        new = positional.positions.shape[1]
        layers = list(decoder.layers)
        self.layers = [_Layer(layers[i], past[i], new, product_of) for i in range(start, len(layers))]
        self.kinds = [decoder.layer_kind(i) for i in range(start, len(layers))]
        rows = positional.positions.shape[0]
        self.rotary = {kind: half_tables(tables, rows) for kind, tables in positional.rotary.items()}
        heads = self.layers[0].keys.shape[1]
        groups = self.layers[0].weight["q_proj"].shape[0] // self.layers[0].weight["k_proj"].shape[0]
        self.masks = {
            kind: mask[:, :, None].expand(-1, heads, groups, -1, -1).reshape(-1, groups * new, mask.shape[-1])
            for kind, mask in positional.masks.items()
        }

    @property
    def past(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the past by layer, (B, K, P, D); views of the buffers."""
        return [(layer.keys[:, :, : layer.past], layer.values[:, :, : layer.past]) for layer in self.layers]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(B, S, d) to (B, S, d). One pass at a time: the next overwrites the keys the way back reads."""
        out: Tensor = _Pass.apply(hidden, self)
        return out

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        x = hidden.flatten(0, 1)
        tapes = []
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x, tape = layer.forward(x, self.rotary[kind], self.masks[kind])
            tapes.append(tape)
        return x.view_as(hidden), tapes

    def backward(self, gradient: Tensor, tapes: list[dict[str, Tensor]]) -> Tensor:
        x = gradient.flatten(0, 1)
        for layer, kind in zip(reversed(self.layers), reversed(self.kinds), strict=True):
            x = layer.backward(x, tapes.pop(), self.rotary[kind])
        return x.view_as(gradient)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, span: GatedSpan) -> Tensor:
        out, ctx.tapes = span.forward(hidden)
        ctx.span = span
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.span.backward(gradients[0].contiguous(), ctx.tapes), None
