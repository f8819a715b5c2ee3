"""What a model is recognized by, whatever its folder is called: its shape and a few of its weights.

The same model comes as float32, bfloat16 or a dequantized file, so the weights are compared by correlation: a copy in
another precision has .99 and more, another model about none. A model that was fine-tuned from the same base is of the
same kind, and settings travel to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from errata.editing.errors import UserError

_SHAPE = {
    "hidden_size": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
}
_NORMS = ("model.norm.weight", "ln_f.weight", "final_layer_norm.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_PLACES = 24
"""Values taken of each tensor, evenly spaced."""
_ROWS = 8
_ALIKE = 0.95


class Fingerprint(BaseModel):
    """Shape and sampled weights of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    norm: tuple[float, ...] = Field(min_length=2)
    """Values of the last norm, evenly spaced."""
    embeddings: tuple[float, ...] = Field(min_length=2)
    """Values of eight words' embeddings, evenly spaced."""

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are of one model, in whatever precision."""
        for name in ("model_type", "hidden_size", "layers", "heads"):
            if getattr(self, name) != getattr(other, name):
                return False
        return all(_correlation(getattr(self, n), getattr(other, n)) >= _ALIKE for n in ("norm", "embeddings"))


def fingerprint(directory: Path) -> Fingerprint:
    """The fingerprint of a checkpoint in safetensors; a few kilobytes of it are read.

    Raises:
        UserError: it has no readable config.json or safetensors, or no tensors under the names of a known family.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        shape = {key: int(next(config[n] for n in names if n in config)) for key, names in _SHAPE.items()}
        seen = Fingerprint(
            model_type=str(config["model_type"]),
            **shape,
            norm=_sampled(directory, _NORMS, rows=None),
            embeddings=_sampled(directory, _EMBEDDINGS, rows=_ROWS),
        )
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        raise UserError(
            f"model {str(directory)!r} cannot be recognized ({type(error).__name__}: {error}); it must hold a "
            "config.json and safetensors"
        ) from error
    return seen


def _sampled(directory: Path, suffixes: Sequence[str], *, rows: int | None) -> tuple[float, ...]:
    """Values of the one tensor whose name ends so, to four digits."""
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            name = next((n for n in sorted(file.keys()) if n.endswith(tuple(suffixes)) and "layers." not in n), None)
            if name is None:
                continue
            part: Any = file.get_slice(name)
            size = part.get_shape()
            if rows is None:
                values = part[:].float()[:: max(1, size[0] // _PLACES)][:_PLACES]
            else:
                # from the first half: rows at the end may have been added, or be padding
                picked = [part[i : i + 1].float()[0] for i in range(64, size[0] // 2, max(1, size[0] // 2 // rows))]
                values = [row[j] for row in picked[:rows] for j in range(0, size[1], max(1, size[1] // 6))]
            return tuple(float(f"{float(value):.4g}") for value in values)
    raise LookupError(f"no tensor named like {suffixes[0]}")


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's; 0 where the lengths differ, 1 where both are constant and equal."""
    if len(a) != len(b):
        return 0.0
    if list(a) == list(b):
        return 1.0
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    dot = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return dot / float(size) ** 0.5 if size > 0 else 0.0
