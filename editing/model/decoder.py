"""One view of every supported decoder family: embed, run a span of layers, finish, and the edited map.

Family differences live here and nowhere else. A family is a small class in ``FAMILIES``, chosen by the
checkpoint's ``config.model_type``; what is not listed is refused with the list of what is.

Letters: B rows, T tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errata.editing.errors import UserError

_KIND = 1000
"""More than any model has layers."""
_KINDS = ("down_proj", "gate_proj", "up_proj", "q_proj", "k_proj", "v_proj", "o_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MODULE = 9 * _KIND


def map_number(layer: int, name: str = "down_proj") -> int:
    """The number by which an edited map goes everywhere: its layer for the MLP's output projection (``down_proj``).

    The other maps, which few editors write, are counted from 1000 (``gate_proj``) and 2000 (``up_proj``), those of
    attention from 3000 (``q_proj``), 4000 (``k_proj``), 5000 (``v_proj``) and 6000 (``o_proj``).
    """
    return _KIND * _KINDS.index(name) + layer


def module_number(layer: int) -> int:
    """The number of the slot for a module at a layer's ``down_proj``; its content is a tensor of bytes."""
    return _MODULE + layer


def is_module(number: int) -> bool:
    """Whether a number is that of a slot for a module, and not of a map."""
    return number >= _MODULE


def number_name(number: int) -> str:
    """What people read of a number: the layer for its ``down_proj``, else with the map's name, or ``module``."""
    if is_module(number):
        return f"{layer_of(number)} module"
    kind = map_kind(number)
    return str(number) if kind == _KINDS[0] else f"{layer_of(number)} {kind}"


def layer_of(number: int) -> int:
    """The layer that a map stands in."""
    return number % _KIND if number >= 0 else number


def map_kind(number: int) -> str:
    """What the map is, by the name it has in Llama."""
    return _KINDS[number // _KIND] if 0 <= number // _KIND < len(_KINDS) else "unknown"


@dataclass(frozen=True)
class Layout:
    """Where tokens stand: positions and segments, long (B, T). A token sees only its own segment; -1 is padding."""

    positions: Tensor
    segments: Tensor

    def followed_by(self, other: Layout) -> Layout:
        """This layout with another's tokens after it, row by row."""
        return Layout(
            torch.cat([self.positions, other.positions], dim=1),
            torch.cat([self.segments, other.segments], dim=1),
        )


def plain_layout(lengths: Tensor, width: int) -> Layout:
    """Right-padded rows of one segment each: lengths (B,), T = width."""
    positions = torch.arange(width, device=lengths.device).expand(lengths.numel(), width)
    segments = torch.where(positions < lengths[:, None], 0, -1)
    return Layout(positions, segments)


def attention_mask(queries: Layout, keys: Layout, dtype: torch.dtype, window: int | None) -> Tensor:
    """Additive mask (B, 1, Q, K): causal inside each segment, within ``window`` positions if one is given.

    The blocked value is the lowest finite number, so that a padding query, which sees nothing, yields numbers
    and not NaN.
    """
    q_pos, k_pos = queries.positions[:, :, None], keys.positions[:, None, :]
    q_seg, k_seg = queries.segments[:, :, None], keys.segments[:, None, :]
    seen = (q_seg == k_seg) & (k_seg >= 0) & (k_pos <= q_pos)
    if window is not None:
        seen &= q_pos - k_pos < window
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class Positional:
    """What the layers need to know of positions for one pass: rotary tables and masks by kind of layer."""

    positions: Tensor
    rotary: dict[str, Any]
    masks: dict[str, Tensor]
    layout: Layout | None = None
    """Where the tokens of the pass stand; for modules."""
    ends: Tensor | None = None
    """Bool (B, T): the last tokens of prompts, where they are known; for modules."""


@remembered
def _cache_argument(layer: Any) -> str:
    given = inspect.signature(layer.forward).parameters
    return next((name for name in ("cache", "layer_past") if name in given), "past_key_values")


class Decoder:
    """Rotary pre-norm decoders that name their parts as Llama does; the base of the other families."""

    post_norm_name: str | None = None
    """Attribute of a layer that normalizes the MLP's output before it joins the residual, if any."""
    layers_path = "model.layers"
    """Where the list of layers stands in the model."""
    map_name = "mlp.down_proj"
    input_maps: ClassVar[Mapping[str, str]] = {"gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj"}
    """Where the maps into the MLP are, by the names of ``map_kind``; a family need not have both."""
    attention_name = "self_attn"
    attention_maps: ClassVar[Mapping[str, str]] = {name: f"self_attn.{name}" for name in _ATTENTION}
    """Where the maps of attention are, by the names they have in Llama."""
    fused_attention: ClassVar[str | None] = None
    """The one matrix that stands for queries, keys and values in some families."""
    transposed = False
    """True where the map stores (d_in, d_out)."""

    def __init__(self, model: nn.Module) -> None:
        self.written_out = True
        """Whether layers of the common form may run as written out in ``span`` and ``flat``."""
        self.model: Any = model
        self.config: Any = model.config
        self.body: Any = self._body()
        self.layers: nn.ModuleList = self._layers()

    # --- the parts, overridden by families that name them differently ---

    def _body(self) -> Any:
        return self.model.model

    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.body.layers
        return layers

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids (B, T) to the input of layer 0, (B, T, d)."""
        hidden: Tensor = self.body.embed_tokens(ids)
        return hidden

    def rotary(self, hidden: Tensor, positions: Tensor, kind: str) -> Any:
        return self.body.rotary_emb(hidden, positions)

    def _final_norm(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.body.norm(hidden)
        return normed

    def layer_kind(self, layer: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        if kinds:
            return str(kinds[layer])
        return "sliding_attention" if getattr(self.config, "sliding_window", None) else "full_attention"

    def window(self, kind: str) -> int | None:
        return int(self.config.sliding_window) if kind == "sliding_attention" else None

    # --- passes ---

    def positional(self, hidden: Tensor, queries: Layout, keys: Layout | None = None) -> Positional:
        """Rotary tables and masks for a pass of ``queries`` over ``keys`` (default: over themselves)."""
        keys = queries if keys is None else keys
        kinds = {self.layer_kind(i) for i in range(len(self.layers))}
        return Positional(
            positions=queries.positions,
            rotary={kind: self.rotary(hidden, queries.positions, kind) for kind in kinds},
            masks={kind: attention_mask(queries, keys, hidden.dtype, self.window(kind)) for kind in kinds},
            layout=queries,
        )

    def cache_argument(self, index: int) -> str:
        """What a layer calls its key/value store; transformers has had three names for it, and warns of the old."""
        kind: Any = type(self.layers[index])
        return _cache_argument(kind)

    def layer(self, index: int, hidden: Tensor, positional: Positional, cache: Any = None) -> Tensor:
        """Run one layer: (B, T, d) to (B, T, d)."""
        kind = self.layer_kind(index)
        out = self.layers[index](
            hidden,
            attention_mask=positional.masks[kind],
            position_ids=positional.positions,
            position_embeddings=positional.rotary[kind],
            **{self.cache_argument(index): cache},
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Output of the last layer (..., d) to logits (..., V), final norm included."""
        out: Tensor = self.model.lm_head(self._final_norm(hidden))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return out if cap is None else torch.tanh(out / cap) * cap

    # --- the edited map ---

    @classmethod
    def map_path(cls, number: int) -> str:
        """Where a map is within its layer.

        Raises:
            UserError: the family has no such map.
        """
        if is_module(number):
            return cls.map_name  # where it stands
        kind = map_kind(number)
        known = {"down_proj": cls.map_name, **cls.input_maps, **cls.attention_maps}
        if kind in _ATTENTION and kind not in known:
            raise UserError(
                f"the model's attention has no map {kind!r} of its own: {cls.fused_attention!r} holds queries, keys "
                f"and values in one matrix; choose among: {', '.join(known)}"
            )
        if kind not in known:
            raise UserError(f"the model's MLP has no map {kind!r} of its own; it has: {', '.join(known)}")
        return known[kind]

    def edited_map(self, number: int) -> nn.Module:
        """A linear map that editors write: a layer's number means the MLP's output projection (see ``map_number``)."""
        return self.layers[layer_of(number)].get_submodule(self.map_path(number))

    def attention(self, layer: int) -> nn.Module:
        """The attention of a layer, output projection included."""
        return self.layers[layer].get_submodule(self.attention_name)

    @classmethod
    def parameter_name(cls, number: int) -> str:
        """Name of the edited weight in the checkpoint; needs no loaded model."""
        return f"{cls.layers_path}.{layer_of(number)}.{cls.map_path(number)}.weight"

    def post_norm(self, layer: int) -> nn.Module | None:
        """The norm between the edited map and the residual stream, or None."""
        return None if self.post_norm_name is None else self.layers[layer].get_submodule(self.post_norm_name)

    def post_norm_gain(self, layer: int) -> Tensor:
        """Gain g (d,) of that norm, with ``norm(x) = g * x / rms(x)``."""
        weight = self.layers[layer].get_parameter(f"{self.post_norm_name}.weight")
        return weight.detach().float()


class _PostNorm(Decoder):
    post_norm_name = "post_feedforward_layernorm"


class _Gemma(_PostNorm):
    def post_norm_gain(self, layer: int) -> Tensor:
        return 1.0 + super().post_norm_gain(layer)


class _Gemma3(_Gemma):
    def rotary(self, hidden: Tensor, positions: Tensor, kind: str) -> Any:
        return self.body.rotary_emb(hidden, positions, kind)


class _Phi3(Decoder):
    input_maps: ClassVar[Mapping[str, str]] = {}  # one fused matrix, which is neither of the two
    attention_maps: ClassVar[Mapping[str, str]] = {"o_proj": "self_attn.o_proj"}
    fused_attention: ClassVar[str | None] = "qkv_proj"


class _GPT2(Decoder):
    layers_path, map_name, transposed = "transformer.h", "mlp.c_proj", True
    input_maps: ClassVar[Mapping[str, str]] = {"up_proj": "mlp.c_fc"}
    attention_name = "attn"
    attention_maps: ClassVar[Mapping[str, str]] = {"o_proj": "attn.c_proj"}
    fused_attention: ClassVar[str | None] = "c_attn"

    def _body(self) -> Any:
        return self.model.transformer

    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.body.h
        return layers

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        # beyond the table stands padding only: rows that are longer are refused before they come here
        table = self.body.wpe
        hidden: Tensor = self.body.wte(ids) + table(positions.clamp(max=table.num_embeddings - 1))
        return hidden

    def rotary(self, hidden: Tensor, positions: Tensor, kind: str) -> Any:
        return None

    def _final_norm(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.body.ln_f(hidden)
        return normed

    def layer(self, index: int, hidden: Tensor, positional: Positional, cache: Any = None) -> Tensor:
        out = self.layers[index](
            hidden, attention_mask=positional.masks[self.layer_kind(index)], **{self.cache_argument(index): cache}
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class _GPTJ(_GPT2):
    map_name, transposed = "mlp.fc_out", False
    input_maps: ClassVar[Mapping[str, str]] = {"up_proj": "mlp.fc_in"}
    attention_maps: ClassVar[Mapping[str, str]] = {
        **{name: f"attn.{name}" for name in _ATTENTION[:3]},
        "o_proj": "attn.out_proj",
    }
    fused_attention: ClassVar[str | None] = None

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.body.wte(ids)
        return hidden

    def rotary(self, hidden: Tensor, positions: Tensor, kind: str) -> Any:
        # in transformers 5.24 the model makes the tables, before that each layer does
        made = getattr(self.body, "rotary_emb", None)
        return None if made is None else made(hidden, position_ids=positions)

    def layer(self, index: int, hidden: Tensor, positional: Positional, cache: Any = None) -> Tensor:
        tables = positional.rotary[self.layer_kind(index)]
        out = self.layers[index](
            hidden,
            attention_mask=positional.masks[self.layer_kind(index)],
            # a table, like GPT-2's: beyond it stands padding only
            position_ids=positional.positions.clamp(max=int(self.config.n_positions) - 1),
            **({} if tables is None else {"position_embeddings": tables}),
            **{self.cache_argument(index): cache},
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


class _GPTNeoX(Decoder):
    layers_path, map_name = "gpt_neox.layers", "mlp.dense_4h_to_h"
    input_maps: ClassVar[Mapping[str, str]] = {"up_proj": "mlp.dense_h_to_4h"}
    attention_name = "attention"
    attention_maps: ClassVar[Mapping[str, str]] = {"o_proj": "attention.dense"}
    fused_attention: ClassVar[str | None] = "query_key_value"

    def _body(self) -> Any:
        return self.model.gpt_neox

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.body.embed_in(ids)
        return hidden

    def _final_norm(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.body.final_layer_norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.model.get_output_embeddings()(self._final_norm(hidden))
        return out


FAMILIES: dict[str, type[Decoder]] = {
    "llama": Decoder,
    "mistral": Decoder,
    "qwen2": Decoder,
    "qwen3": Decoder,
    "olmo2": _PostNorm,
    "gemma2": _Gemma,
    "gemma3_text": _Gemma3,
    "phi3": _Phi3,
    "gpt2": _GPT2,
    "gptj": _GPTJ,
    "gpt_neox": _GPTNeoX,
}


def decoder_for(model: nn.Module) -> Decoder:
    """The family's view of a loaded model.

    Raises:
        UserError: the model's type is not one of ``FAMILIES``.
    """
    model_type = str(model.config.model_type)  # type: ignore[union-attr]
    if model_type not in FAMILIES:
        raise UserError(f"model type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type](model)
