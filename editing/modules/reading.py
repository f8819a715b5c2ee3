"""What a module is told about the pass that goes by: where prompts end, and what was decided about rows before.

A key is asked where a prompt ends, once. Tokens that come after it, given or generated, are not asked: so a scored and
a generated answer are the same, however it is cut into passes. A pass over plain text, which no prompt is known of,
takes the last token of every segment for an end.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Holds(Protocol):
    """A cache of keys and values that also keeps one number a row for a layer."""

    def hold(self, layer: int, value: Tensor) -> None: ...

    def held(self, layer: int) -> Tensor | None: ...


@dataclass(frozen=True)
class Reading:
    """One pass, as a module sees it."""

    ends: Tensor
    """Bool (B, T): the last token of a prompt."""
    inside: Tensor
    """Bool (B, T): tokens that are not padding."""
    cache: Holds | None = None
    """What goes on behind this pass, if anything does."""

    @classmethod
    def of(cls, segments: Tensor, ends: Tensor | None, cache: object) -> Reading:
        """A pass over segments (B, T), -1 for padding; ``ends`` where they are known.

        A pass behind a cache that names no ends goes on after them.
        """
        holds = cache if hasattr(cache, "held") else None
        inside = segments >= 0
        if ends is None:
            ends = torch.zeros_like(inside) if holds is not None else last_tokens(segments)
        return cls(ends.to(segments.device), inside, holds)  # type: ignore[arg-type] # it has what it must have


def last_tokens(segments: Tensor) -> Tensor:
    """Bool (B, T): the last token of every segment of (B, T)."""
    after = torch.cat([segments[:, 1:], torch.full_like(segments[:, :1], -2)], dim=1)
    return (segments >= 0) & (segments != after)
