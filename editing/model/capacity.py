"""What a model can take in: so many positions, and tokens that its embeddings have a row for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from errata.editing.model.text import TextCodec
from errata.editing.wording import counted


@dataclass(frozen=True)
class Capacity:
    """Positions of a model (None: no bound is known) and rows of its embeddings."""

    positions: int | None
    rows: int | None

    @classmethod
    def of(cls, config: Any, *, rows: int | None = None) -> Capacity:
        """Of a checkpoint's configuration; ``rows`` where the embeddings are at hand."""
        positions = getattr(config, "max_position_embeddings", None)
        return cls(None if positions is None else int(positions), rows or int(config.vocab_size))

    def problem(self, text: TextCodec, ids: Sequence[int], *, reserved: int = 0) -> str | None:
        """Why the model cannot take these tokens in with ``reserved`` more beside them, or None."""
        size = len(ids) + reserved
        if self.positions is not None and size > self.positions:
            beside = f" and {reserved} beside them" if reserved else ""
            return (
                f"{counted(len(ids), 'token')}{beside} are more than the model's {counted(self.positions, 'position')}"
            )
        unknown = None if self.rows is None else next((i for i in ids if not 0 <= i < self.rows), None)
        if unknown is not None:
            return (
                f"token {text.name_of(unknown)!r} has number {unknown}, for which the model has no embedding "
                f"(it has {self.rows})"
            )
        return None
