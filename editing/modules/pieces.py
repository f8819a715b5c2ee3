"""Retrieved edits: each edit's own low-rank change of a map, added for the rows that it was chosen for.

``y = W x + sum_i left_i (right_i . x)`` over the pieces i of the facts that were chosen for a row of the pass, and
``y = W x``, byte for byte, for every other row. Nothing accumulates: what is stored for one fact never meets another's
unless both are chosen for the same question.

Letters: n pieces, B rows, T tokens, I = d_in, O = d_out, k facts chosen for a row, P pairs of a row and a piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from errata.editing.modules.base import LayerModule
from errata.editing.modules.packed import kind_of
from errata.editing.modules.reading import NOBODY, Reading

KIND: Final = "pieces"
"""The name of such a module's content."""


class Pieces(LayerModule):
    """``left`` (n, O), ``right`` (n, I), ``owners`` (n,): a piece a row, all of one edit side by side."""

    def output(self, inputs: Tensor, output: Tensor, linear: nn.Module, reading: Reading) -> Tensor:
        owners, chosen = self.tensors["owners"], reading.chosen
        if chosen is None or not owners.numel():
            return output
        asked = (chosen[:, :, None] == owners) & (chosen != NOBODY)[:, :, None]
        row, piece = asked.any(dim=1).nonzero(as_tuple=True)
        if not row.numel():
            return output
        weight = torch.einsum("pti,pi->pt", inputs[row].float(), self.tensors["right"][piece])
        added = weight[:, :, None] * self.tensors["left"][piece][:, None, :]
        total = torch.zeros_like(output, dtype=torch.float32).index_add_(0, row, added)
        result, spoken = output.clone(), row.unique()
        result[spoken] = (output[spoken].float() + total[spoken]).to(output.dtype)
        return result


def by_choice(weights: Mapping[int, Tensor]) -> bool:
    """Whether a version has pieces: then what it says depends on what is chosen for a question."""
    return any(kind_of(packed) == KIND for packed in weights.values() if packed.dtype == torch.uint8)
