"""What a module is told about the pass that goes by: where prompts end, and what was decided about rows before.

A key is asked where a prompt ends, once. Tokens that come after it, given or generated, are not asked: so a scored and
a generated answer are the same, however it is cut into passes. A pass over plain text, which no prompt is known of,
takes the last token of every segment for an end.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import torch
from torch import Tensor

CHOSEN: Final = -1
"""The place of a cache, beside those of its layers, for the facts that were chosen for each row."""
NOBODY: Final = torch.iinfo(torch.int64).min
"""Fills up the rows for which fewer facts were chosen than for others."""


class Holds(Protocol):
    """A cache of keys and values that also keeps numbers of each row for a layer."""

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
    chosen: Tensor | None = None
    """Long (B, k): owners of the facts chosen for each row, `NOBODY` where there are fewer; None for no row."""

    @classmethod
    def of(cls, segments: Tensor, ends: Tensor | None, cache: object) -> Reading:
        """A pass over segments (B, T), -1 for padding; ``ends`` where they are known.

        A pass behind a cache that names no ends goes on after them, and with the facts that were chosen there.
        """
        holds = cast("Holds", cache) if hasattr(cache, "held") else None
        inside = segments >= 0
        if ends is None:
            ends = torch.zeros_like(inside) if holds is not None else last_tokens(segments)
        chosen = None if holds is None else holds.held(CHOSEN)
        return cls(ends.to(segments.device), inside, holds, chosen)


def owners_table(rows: Sequence[tuple[int, ...]]) -> Tensor | None:
    """Owners by row as a table (B, k), filled up with `NOBODY`; None where nothing was chosen for any row."""
    width = max((len(row) for row in rows), default=0)
    if not width:
        return None
    return torch.tensor([[*row, *[NOBODY] * (width - len(row))] for row in rows], dtype=torch.int64)


def last_tokens(segments: Tensor) -> Tensor:
    """Bool (B, T): the last token of every segment of (B, T)."""
    after = torch.cat([segments[:, 1:], torch.full_like(segments[:, :1], -2)], dim=1)
    return (segments >= 0) & (segments != after)
