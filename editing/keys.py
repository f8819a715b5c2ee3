"""Keys of edits and the hidden states they produce, read in one progressive pass over the edited layers.

MEMIT (arXiv:2210.07229, Alg. 1) reads the keys of layer l and the state at the last layer again after every layer
it has changed. Layers below never change, tokens after the subject do not matter, and only the empty context's
state is needed at the last layer: so hidden states are kept at the input of the next edited layer and each step
runs the layers in between once.

Letters: m edits, J contexts, I = d_in, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from errata.editing.model.adapter import EditableModel, Rows
from errata.editing.model.decoder import Positional
from errata.editing.request import EditRequest

KeyAverage = Literal["half", "mean"]
"""``half``: 1/2 empty context + 1/2 mean of the prefixes (MEMIT); ``mean``: plain mean over all contexts (ROME)."""

_CHUNK_TOKENS = 8192


@dataclass
class _Part:
    """A slice of the rows small enough to run at once."""

    rows: Rows
    positional: Positional
    hidden: Tensor
    plain: Tensor
    """Indices of the rows in the empty context."""
    plain_positional: Positional


class SubjectPass:
    """Rows of all edits in all contexts, cut at the subject's last token, moving up through the layers."""

    def __init__(self, model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> None:
        if contexts[0] != "":
            raise ValueError(f"the first context must be the empty one, got {contexts[0]!r}")
        self.model, self.count, self.contexts = model, len(requests), len(contexts)
        sequences = []
        for request in requests:
            for context in contexts:
                tokens, subject = model.text.encode_for_edit(context, request.prompt, request.subject)
                sequences.append(tokens[: subject + 1])
        self._at = 0
        self._parts = list(self._split(sequences))

    @torch.no_grad()
    def _split(self, sequences: list[list[int]]) -> Iterator[_Part]:
        longest = max(len(s) for s in sequences)
        # whole edits stay together, so that each part knows its empty-context rows by stride
        edits = max(1, _CHUNK_TOKENS // (longest * self.contexts))
        for first in range(0, self.count, edits):
            rows = self.model.rows(sequences[first * self.contexts : (first + edits) * self.contexts])
            plain = torch.arange(0, rows.ids.shape[0], self.contexts, device=rows.ids.device)
            layout = rows.layout
            plain_layout = type(layout)(layout.positions[plain], layout.segments[plain])
            yield _Part(
                rows,
                self.model.positional(layout),
                self.model.embed(rows),
                plain,
                self.model.positional(plain_layout),
            )

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Move every row to the input of ``layer``, with the weights the model has now."""
        for part in self._parts:
            part.hidden = self.model.run(part.hidden, self._at, layer, part.positional)
        self._at = layer

    @torch.no_grad()
    def keys(self, layer: int, average: KeyAverage = "half") -> Tensor:
        """Keys (I, m) of the edited map at ``layer``, float32, averaged over the contexts."""
        self.advance(layer)
        columns = []
        for part in self._parts:
            with self.model.map_inputs([layer]) as inputs:
                self.model.run(part.hidden, layer, layer + 1, part.positional)
            rows = torch.arange(part.rows.ids.shape[0], device=part.hidden.device)
            keys = inputs[layer][rows, part.rows.lengths - 1].float()
            columns.append(keys.reshape(-1, self.contexts, keys.shape[1]))
        keys = torch.cat(columns)
        if average == "mean" or self.contexts == 1:
            return keys.mean(dim=1).T.contiguous()
        return (0.5 * keys[:, 0] + 0.5 * keys[:, 1:].mean(dim=1)).T.contiguous()

    @torch.no_grad()
    def states(self, layer: int) -> tuple[Tensor, Tensor]:
        """Empty-context states at the subject, float32: output of ``layer`` (d, m), and of its edited map (d, m).

        The rows themselves stay where they are.
        """
        outputs, mapped = [], []
        for part in self._parts:
            rows = torch.arange(part.plain.numel(), device=part.hidden.device)
            last = part.rows.lengths[part.plain] - 1
            with self.model.map_outputs([layer]) as caught:
                hidden = self.model.run(part.hidden[part.plain], self._at, layer + 1, part.plain_positional)
            outputs.append(hidden[rows, last].float())
            mapped.append(caught[layer][rows, last].float())
        return torch.cat(outputs).T.contiguous(), torch.cat(mapped).T.contiguous()


def pull_back(model: EditableModel, layer: int, mapped: Tensor, residual: Tensor) -> Tensor:
    """Residual of the map's output that moves the residual stream by ``residual``, through a norm behind the map.

    The norm is scale-free, ``norm(x) = g * x / rms(x)``: it reaches only vectors u with rms(u / g) = 1. The
    direction of ``(norm(mapped) + residual) / g`` is taken, with the length that moves ``mapped`` the least but keeps
    half of its size.
    A target found by ``post_norm: exact`` is reached exactly. Without such a norm ``residual`` comes back as it is.

    Args:
        mapped: outputs of the edited map (d, m), bias included.
        residual: wanted change of the layer's output (d, m).
    """
    norm = model.decoder.post_norm(layer)
    if norm is None:
        return residual
    gain = model.decoder.post_norm_gain(layer).to(mapped.device)[:, None]
    with torch.no_grad():
        now = norm(mapped.T.to(model.dtype)).float().T
    usable = gain.abs() > 1e-6
    direction = torch.where(usable, (now + residual) / torch.where(usable, gain, torch.ones_like(gain)), 0.0)
    square = direction.square().sum(dim=0).clamp_min(1e-30)
    length = (direction * mapped).sum(dim=0) / square
    # the least movement to a far direction ends close to zero, where the norm blows every error up: at least half
    # of the output's own size is kept
    length = length.maximum(0.5 * mapped.norm(dim=0) / square.sqrt())
    return length * direction - mapped
