"""Which part of which layer a rank holds, for the families whose layers DeepSpeed can split."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from errata.actors.settings import ParallelConfig
from errata.editing.checkpoint.slices import Cut
from errata.editing.errors import UserError

Split = Literal["column", "row", "head"]
"""``column``: outputs are divided; ``row``: inputs are, and outputs summed; ``head``: as column, outputs gathered."""

SPLIT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Others fuse what would have to be divided, or normalize over all heads at once."""

_PLACES: Mapping[str, Split] = {
    "self_attn.q_proj": "column",
    "self_attn.k_proj": "column",
    "self_attn.v_proj": "column",
    "self_attn.o_proj": "row",
    "mlp.gate_proj": "column",
    "mlp.up_proj": "column",
    "mlp.down_proj": "row",
}


@dataclass(frozen=True)
class Plan:
    """How the linear layers of one model are divided, by module name; what is not named is whole on every rank."""

    splits: Mapping[str, Split]
    kv_heads: int
    size: int

    def sizes(self, name: str, width: int) -> tuple[int, ...]:
        """Parts of ``width`` by rank: whole groups of heads in attention, as even as can be elsewhere."""
        if ".self_attn." in name:
            return tuple(width // self.kv_heads * heads for heads in even(self.kv_heads, self.size))
        return even(width, self.size)

    def cut(self, name: str, shape: tuple[int, ...], rank: int) -> Cut | None:
        """What ``rank`` holds of a parameter (its full name) of the given whole shape; None for all of it."""
        module, _, kind = name.rpartition(".")
        split = self.splits.get(module)
        if split is None or (split == "row" and kind == "bias"):
            return None
        axis = 1 if split == "row" else 0
        return Cut(axis, self.sizes(module, shape[axis]), rank)


def check_parallel(config: Any, parallel: ParallelConfig, name: str) -> None:
    """Raise UserError unless deepspeed is installed and a model with this configuration can be divided so."""
    require_deepspeed()
    plan_for(config, parallel.size, name)


def require_deepspeed() -> None:
    """Raise UserError unless deepspeed is installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "model.parallel needs deepspeed, which is not installed; `pip install 'errata-llm[deepspeed]'`, "
            "or leave model.parallel out"
        )


def even(width: int, parts: int) -> tuple[int, ...]:
    """``width`` in parts that differ by at most one, the larger ones first."""
    return tuple(width // parts + (part < width % parts) for part in range(parts))


def plan_for(config: Any, size: int, name: str) -> Plan:
    """The plan of a model by its configuration.

    Raises:
        UserError: the family cannot be divided, or its MLP has fewer columns than there are ranks.
    """
    if config.model_type not in SPLIT_FAMILIES:
        raise UserError(
            f"model.parallel: a {config.model_type!r} model ({name!r}) cannot be divided; "
            f"those that can: {', '.join(SPLIT_FAMILIES)}"
        )
    if config.intermediate_size < size:
        raise UserError(f"model.parallel.size {size}: {name!r} has only {config.intermediate_size} MLP columns")
    splits: dict[str, Split] = {
        f"model.layers.{layer}.{place}": split
        for layer in range(config.num_hidden_layers)
        for place, split in _PLACES.items()
    }
    if not config.tie_word_embeddings:
        # a tied head is the embedding, which every rank needs whole
        splits["lm_head"] = "head"
    return Plan(splits, int(config.num_key_value_heads), size)
