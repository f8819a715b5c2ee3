"""Target values: the hidden state at the subject's last token that makes the model say the new fact.

For each edit a change ``delta`` of the hidden state is optimised (ROME, arXiv:2202.05262, eq. 4; MEMIT,
arXiv:2210.07229, sec. 4.2.1)::

    loss = mean_j mean_t -log P(target_t | context_j, prompt, target_<t)
         + kl_factor * KL(P_delta || P_0)  at the subject's last token of "{subject} is a"
         + weight_decay * |delta| / |h|^2

Four observations make it fast and change nothing beyond rounding. Edits are independent and Adam is
elementwise, so many are optimised in one batch, each with its own stop. Layers up to the value layer do not
depend on ``delta``: they run once. Attention is causal: positions before the subject's last token never change,
so their keys and values are kept and only the positions after them run. And only the positions that predict a
target need logits.

All contexts of one edit are packed into one row as separate segments: a step runs about fifty token positions
per edit, without padding between contexts.

Letters: B edits, J contexts, S kept positions of one edit, P past positions, d hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from editing.model.adapter import EditableModel
from editing.model.decoder import Layout
from editing.model.kv import PrefixKV, RecordingKV
from editing.request import EditRequest

logger = logging.getLogger(__name__)

KL_TEMPLATE = "{} is a"
_REPACK_SHARE = 0.8
"""Rows of finished edits are dropped once fewer than this share of a batch is still running."""


class ValueConfig(BaseModel):
    """Settings of the value optimisation; the defaults are MEMIT's for GPT-J with ``lr`` .5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(0.5, gt=0)
    """Adam's learning rate."""
    steps: int = Field(25, ge=1)
    """Forward passes; there is one update fewer."""
    clamp: float | None = Field(0.75, gt=0)
    """Bound on |delta| / |h|; null for none."""
    weight_decay: float = Field(0.5, ge=0)
    """Weight of |delta| / |h|^2 in the loss."""
    kl_factor: float = Field(0.0625, ge=0)
    """Weight of the divergence from the unedited model after "{subject} is a"."""
    stop_loss: float = Field(5e-2, ge=0)
    """An edit stops when its total loss is below this, tested before the update."""
    post_norm: Literal["exact", "published"] = "exact"
    """Where a norm follows the MLP: optimise before it (exact), or ignore it as published code does."""
    batch_tokens: int = Field(2048, ge=1)
    """Positions run at once in one optimisation step; bounds the memory."""


@dataclass(frozen=True)
class TargetValue:
    """Result for one edit.

    ``h`` and ``delta`` are float32 (d,) in the space that is optimised: the layer's output, or the MLP's output
    where a norm follows it and ``post_norm`` is exact (or where the editor asks for it). ``state`` is the hidden
    state (d,) that the layer's output has then, whatever the space.
    """

    h: Tensor
    delta: Tensor
    state: Tensor
    loss: float
    steps: int
    converged: bool
    clamped: bool

    @property
    def z(self) -> Tensor:
        """The target, h + delta."""
        return self.h + self.delta


@dataclass(frozen=True)
class _Segment:
    """One context of one edit: all its tokens, and where the subject ends."""

    tokens: list[int]
    subject: int
    targets: list[int]
    """Target tokens; the positions that predict them are the last ``len(targets)``. Empty for the KL prompt."""


def edit_segments(model: EditableModel, request: EditRequest, contexts: Sequence[str]) -> list[_Segment]:
    """The contexts of one edit with the target appended, then the KL prompt."""
    target = model.text.encode_target(request.target_new)
    segments = []
    for context in contexts:
        tokens, subject = model.text.encode_with_subject(context, request.prompt, request.subject)
        segments.append(_Segment(tokens + target[:-1], subject, target))
    tokens, subject = model.text.encode_with_subject("", KL_TEMPLATE, request.subject)
    # the distribution is read at the subject's last token, so what follows it is never run
    segments.append(_Segment(tokens[: subject + 1], subject, []))
    return segments


def optimise_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    contexts: Sequence[str],
    config: ValueConfig,
    space: Literal["block", "mlp"] = "block",
    progress: Callable[[int], None] | None = None,
) -> list[TargetValue]:
    """Target values of many edits at one layer, in the order of the requests.

    Args:
        model: its current weights are those the edits are made on.
        layer: the value layer L; ``delta`` is added to its output at the subject's last token.
        contexts: prefixes, the empty one first.
        space: where norms (clamp, decay) are taken: the block's output, or the MLP's output (ROME, MOSE).
        progress: called with the number of edits finished so far.
    """
    every = [edit_segments(model, request, contexts) for request in requests]
    kept = [sum(len(s.tokens) - s.subject for s in segments) for segments in every]
    results: list[TargetValue | None] = [None] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: (-kept[i], i))
    batch: list[int] = []
    finished = 0
    for place, index in enumerate(order):
        batch.append(index)
        following = order[place + 1] if place + 1 < len(order) else None
        if following is None or (len(batch) + 1) * kept[batch[0]] > config.batch_tokens:
            problem = _Problem(model, [every[i] for i in batch], layer, config, space)
            for i, value in zip(batch, _minimise(problem, config), strict=True):
                results[i] = value
            finished += len(batch)
            batch = []
            if progress is not None:
                progress(finished)
    return [value for value in results if value is not None]


class _Problem:
    """Everything about a batch of edits that does not change from step to step."""

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[list[_Segment]],
        layer: int,
        config: ValueConfig,
        space: Literal["block", "mlp"],
    ) -> None:
        self.model, self.layer, self.config = model, layer, config
        self.in_mlp = space == "mlp" or (config.post_norm == "exact" and model.decoder.post_norm(layer) is not None)
        self._first_pass(edits)

    @torch.no_grad()
    def _first_pass(self, edits: Sequence[list[_Segment]]) -> None:
        model, device = self.model, self.model.device
        segments = [s for edit in edits for s in edit]
        rows = model.rows([s.tokens for s in segments])
        record = RecordingKV(first=self.layer + 1)
        positional = model.positional(rows.layout)
        with model.map_outputs([self.layer]) as outputs:
            at_layer = model.run(model.embed(rows), 0, self.layer + 1, positional)
        mlp_out = outputs[self.layer]
        top = model.run(at_layer, self.layer + 1, model.num_layers, positional, record)

        # index tables: for each edit its kept positions and its past, as (row of the first pass, token)
        kept_at: list[list[tuple[int, int, int]]] = []
        past_at: list[list[tuple[int, int, int]]] = []
        subject_at: list[tuple[int, int]] = []
        predict: list[tuple[int, int, int, float]] = []
        kl_at: list[int] = []
        row = 0
        for b, edit in enumerate(edits):
            kept: list[tuple[int, int, int]] = []
            past: list[tuple[int, int, int]] = []
            contexts = sum(1 for s in edit if s.targets)
            for j, segment in enumerate(edit):
                subject_at.append((b, len(kept)))
                if not segment.targets:
                    kl_at.append(len(kept))
                past += [(row, t, j) for t in range(segment.subject)]
                begin = len(kept) - segment.subject
                kept += [(row, t, j) for t in range(segment.subject, len(segment.tokens))]
                weight = 1.0 / (contexts * max(1, len(segment.targets)))
                first = len(segment.tokens) - len(segment.targets)
                predict += [(b, begin + first + i, token, weight) for i, token in enumerate(segment.targets)]
                row += 1
            kept_at.append(kept)
            past_at.append(past)

        kept_rows, kept_tokens, kept_layout = self._table(kept_at, rows.layout.positions)
        past_rows, past_tokens, past_layout = self._table(past_at, rows.layout.positions)
        self.kept_layout, self.past_layout = kept_layout, past_layout
        self.hidden = at_layer[kept_rows, kept_tokens]
        self.past = {
            i: (
                k[past_rows, :, past_tokens].transpose(1, 2).contiguous(),
                v[past_rows, :, past_tokens].transpose(1, 2).contiguous(),
            )
            for i, (k, v) in record.layers.items()
        }
        count, width = self.hidden.shape[:2]
        self.subject = torch.zeros(count, width, 1, dtype=self.hidden.dtype, device=device)
        for b, s in subject_at:
            self.subject[b, s] = 1.0
        self.mlp_out = mlp_out[kept_rows, kept_tokens] if self.in_mlp else None
        # the empty context is the first segment of each edit, and its subject the first kept position
        self.h = (self.mlp_out if self.mlp_out is not None else self.hidden)[:, 0].float()
        self.predict_edit = torch.tensor([p[0] for p in predict], device=device)
        self.predict_at = torch.tensor([p[1] for p in predict], device=device)
        self.predict_token = torch.tensor([p[2] for p in predict], device=device)
        self.predict_weight = torch.tensor([p[3] for p in predict], device=device)
        self.kl_at = torch.tensor(kl_at, device=device)
        kl_rows = torch.tensor([k[i][0] for k, i in zip(kept_at, kl_at, strict=True)], device=device)
        kl_tokens = torch.tensor([k[i][1] for k, i in zip(kept_at, kl_at, strict=True)], device=device)
        self.kl_base = model.logits(top[kl_rows, kl_tokens]).float().log_softmax(dim=-1)
        self.positional = model.positional(self.kept_layout, self.past_layout.followed_by(self.kept_layout))

    def _table(self, at: list[list[tuple[int, int, int]]], positions: Tensor) -> tuple[Tensor, Tensor, Layout]:
        width = max(1, max(len(places) for places in at))
        rows = torch.zeros(len(at), width, dtype=torch.long)
        tokens = torch.zeros(len(at), width, dtype=torch.long)
        segments = torch.full((len(at), width), -1, dtype=torch.long)
        for b, places in enumerate(at):
            if places:
                table = torch.tensor(places)
                rows[b, : len(places)], tokens[b, : len(places)], segments[b, : len(places)] = table.unbind(dim=1)
        rows, tokens, segments = (t.to(positions.device) for t in (rows, tokens, segments))
        return rows, tokens, Layout(positions[rows, tokens], segments)

    def keep(self, rows: Tensor) -> None:
        """Forget all edits but those at ``rows`` (long tensor)."""
        renumber = torch.full((self.hidden.shape[0],), -1, dtype=torch.long, device=rows.device)
        renumber[rows] = torch.arange(rows.numel(), device=rows.device)
        mine = renumber[self.predict_edit] >= 0
        self.predict_edit = renumber[self.predict_edit[mine]]
        self.predict_at, self.predict_token = self.predict_at[mine], self.predict_token[mine]
        self.predict_weight = self.predict_weight[mine]
        self.hidden, self.subject, self.h = self.hidden[rows], self.subject[rows], self.h[rows]
        self.mlp_out = None if self.mlp_out is None else self.mlp_out[rows]
        self.past = {i: (k[rows], v[rows]) for i, (k, v) in self.past.items()}
        self.kl_at, self.kl_base = self.kl_at[rows], self.kl_base[rows]
        self.kept_layout = Layout(self.kept_layout.positions[rows], self.kept_layout.segments[rows])
        self.past_layout = Layout(self.past_layout.positions[rows], self.past_layout.segments[rows])
        self.positional = self.model.positional(self.kept_layout, self.past_layout.followed_by(self.kept_layout))

    def _inject(self, delta: Tensor) -> Tensor:
        """Hidden states (B, S, d) at the value layer with ``delta`` (B, d) added at the subjects."""
        added = self.subject * delta[:, None].to(self.hidden.dtype)
        norm = self.model.decoder.post_norm(self.layer)
        if self.mlp_out is None or norm is None or self.config.post_norm == "published":
            return self.hidden + added
        return self.hidden + norm(self.mlp_out + added) - norm(self.mlp_out)

    def change_of_state(self) -> Callable[[Tensor], Tensor]:
        """A function from deltas (B, d) of all edits to the change (B, d) of the layer's output at the subject."""
        norm = self.model.decoder.post_norm(self.layer)
        if self.mlp_out is None or norm is None or self.config.post_norm == "published":
            return lambda delta: delta
        outputs = self.mlp_out[:, 0]

        @torch.no_grad()
        def change(delta: Tensor) -> Tensor:
            moved: Tensor = norm(outputs + delta.to(outputs.dtype)) - norm(outputs)
            return moved.float()

        return change

    def losses(self, delta: Tensor) -> Tensor:
        """Total loss (B,) of each edit at ``delta`` (B, d) float32."""
        model = self.model
        hidden = model.run(self._inject(delta), self.layer + 1, model.num_layers, self.positional, PrefixKV(self.past))
        logits = model.logits(hidden[self.predict_edit, self.predict_at]).float()
        picked = logits.gather(1, self.predict_token[:, None]).squeeze(1)
        nll = (logits.logsumexp(dim=1) - picked) * self.predict_weight
        total = torch.zeros(delta.shape[0], device=delta.device).index_add(0, self.predict_edit, nll)
        if self.config.kl_factor:
            edits = torch.arange(delta.shape[0], device=delta.device)
            now = model.logits(hidden[edits, self.kl_at]).float().log_softmax(dim=-1)
            total = total + self.config.kl_factor * (now.exp() * (now - self.kl_base)).sum(dim=-1)
        if self.config.weight_decay:
            scale = self.h.square().sum(dim=1)
            total = total + self.config.weight_decay * _norm(delta) / scale
        return total


def _norm(delta: Tensor) -> Tensor:
    # the norm's gradient at 0 is not defined; published code takes 0, and so does clamping before the root
    return delta.square().sum(dim=1).clamp_min(1e-24).sqrt()


def _minimise(problem: _Problem, config: ValueConfig) -> list[TargetValue]:
    """Adam from zero with a projection after every update and a stop of its own for every edit."""
    count, width = problem.h.shape
    h = problem.h
    first_states, changes = problem.hidden[:, 0].float(), problem.change_of_state()
    deltas = [torch.zeros(width, device=h.device, requires_grad=True) for _ in range(count)]
    adam = torch.optim.Adam(deltas, lr=config.lr)
    loss_of, steps_of = [float("nan")] * count, [0] * count
    converged, clamped = [False] * count, [False] * count
    running = list(range(count))
    packed = list(range(count))
    for step in range(config.steps):
        stacked = torch.stack([deltas[i] for i in packed])
        losses = problem.losses(stacked)
        values = losses.tolist()
        for place, i in enumerate(packed):
            if i in running:
                loss_of[i], steps_of[i] = values[place], step + 1
                converged[i] = values[place] < config.stop_loss
        running = [i for i in running if not converged[i]]
        if not running or step == config.steps - 1:
            break
        adam.zero_grad(set_to_none=True)
        losses.sum().backward()
        for i in packed:
            if converged[i]:
                deltas[i].grad = None  # Adam leaves alone what has no gradient
        adam.step()
        if config.clamp is not None:
            with torch.no_grad():
                for i in running:
                    bound, size = config.clamp * h[i].norm(), deltas[i].norm()
                    clamped[i] = bool(size > bound)
                    if clamped[i]:
                        deltas[i].mul_(bound / size)
        if len(running) < _REPACK_SHARE * len(packed):
            problem.keep(torch.tensor([packed.index(i) for i in running], device=h.device))
            packed = list(running)
    final = torch.stack([d.detach() for d in deltas])
    states = first_states + changes(final)
    return [
        TargetValue(h[i].cpu(), final[i].cpu(), states[i].cpu(), loss_of[i], steps_of[i], converged[i], clamped[i])
        for i in range(count)
    ]
