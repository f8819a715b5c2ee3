"""The problem that a value optimization solves: what is run once, and the losses of a change in every step.

All contexts of one edit are packed into one row as separate segments: a step runs about fifty token positions
per edit, without padding between contexts.

Letters: B edits, J contexts, S kept positions of one edit, P past positions, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import Layout
from errata.editing.model.kv import PrefixKV, RecordingKV
from errata.editing.model.packed import Packed, Plain, Product
from errata.editing.model.span import GatedSpan, span_of
from errata.editing.readout import read_losses
from errata.editing.request import EditRequest
from errata.editing.value_config import PLAIN, ValueConfig, Variant

KL_TEMPLATE = "{} is a"
"""What is asked about a subject so that nothing but the edited fact changes, and about entities that are protected."""
_PACKED_STEPS = 8
"""Packing weights for few rows takes about as long as it saves in so many steps."""


@dataclass(frozen=True)
class Segment:
    """One context of one edit: all its tokens, and where the subject ends."""

    tokens: list[int]
    subject: int
    targets: list[int]
    """Target tokens; the positions that predict them are the last ``len(targets)``. Empty for the KL prompt."""


def edit_segments(
    model: EditableModel, request: EditRequest, contexts: Sequence[str], prompts: Sequence[str] | None = None
) -> list[Segment]:
    """The contexts of one edit, in each of its prompts, with the target appended; then the KL prompt."""
    target = model.text.encode_target(request.target_new)
    segments = []
    for context in contexts:
        for prompt in prompts or (request.prompt,):
            tokens, subject = model.text.encode_for_edit(context, prompt, request.subject)
            segments.append(Segment(tokens + target[:-1], subject, target))
    model.require_fits([segment.tokens for segment in segments])
    tokens, subject = model.text.encode_for_edit("", KL_TEMPLATE, request.subject)
    # the distribution is read at the subject's last token, so what follows it is never run
    segments.append(Segment(tokens[: subject + 1], subject, []))
    return segments


class Problem:
    """Everything about a batch of edits that does not change from step to step."""

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[list[Segment]],
        layer: int,
        config: ValueConfig,
        space: Literal["block", "mlp"],
        variant: Variant = PLAIN,
    ) -> None:
        self.model, self.layer, self.config, self.variant = model, layer, config, variant
        self.first = variant.layers[0] if variant.layers else layer if variant.joint else layer + 1
        """First layer that is run again in every step."""
        self.span: GatedSpan | None = None
        self.protected: Tensor | None = None
        """States (n, d) of the protected entities, in the space of the change; None where nothing is protected."""
        self.in_mlp = space == "mlp" or (config.post_norm == "exact" and model.decoder.post_norm(layer) is not None)
        self._first_pass(edits)

    @torch.no_grad()
    def _first_pass(self, edits: Sequence[list[Segment]]) -> None:
        model, device = self.model, self.model.device
        segments = [s for edit in edits for s in edit]
        rows = model.rows([s.tokens for s in segments])
        positional = model.positional(rows.layout)
        maps = self.variant.layers or (self.layer,)
        with model.map_outputs(maps) as mapped, model.attention_outputs([self.layer]) as attended:
            at_layer = model.run(model.embed(rows), 0, self.first, positional)
            # nothing, but where the value layer itself runs in every step
            model.run(at_layer, self.first, self.layer + 1, positional)
        mlp_out = mapped[self.layer]

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
        # what is kept runs through the layers above in the first step; the past here, as segments of a row
        record = RecordingKV(first=self.first)
        above = model.positional(past_layout)
        model.run(at_layer[past_rows, past_tokens], self.first, model.num_layers, above, record)
        self.past = record.layers
        count, width = self.hidden.shape[:2]
        self.subject = torch.zeros(count, width, 1, dtype=self.hidden.dtype, device=device)
        for b, s in subject_at:
            self.subject[b, s] = 1.0
        self.mlp_out = mlp_out[kept_rows, kept_tokens] if self.in_mlp else None
        self.attention_out = attended[self.layer][kept_rows, kept_tokens] if self.variant.joint else None
        self.map_outs = {layer: mapped[layer][kept_rows, kept_tokens] for layer in self.variant.layers}
        self.h = self._at_first_subject()
        self.size = self._sizes()
        self.predict_edit = torch.tensor([p[0] for p in predict], device=device)
        self.predict_at = torch.tensor([p[1] for p in predict], device=device)
        self.predict_token = torch.tensor([p[2] for p in predict], device=device)
        self.predict_weight = torch.tensor([p[3] for p in predict], device=device)
        self.kl_at = torch.tensor(kl_at, device=device)
        self.packed = self.prepare(pack=self.config.steps >= _PACKED_STEPS)

    def prepare(self, *, pack: bool) -> dict[nn.Module, Packed]:
        """Set up the layers above the value layer for the rows there are.

        Without ``pack`` only weights that are packed already are used.

        Returns:
            Packed weights of the maps that are called as modules of the library.
        """
        packed, tokens = self.model.packed, self._tokens()
        self.positional = self.model.positional(self.kept_layout, self.past_layout.followed_by(self.kept_layout))

        def product_of(maps: Sequence[nn.Linear]) -> Product:
            return packed.joined(maps, tokens, make=pack) or Plain(maps)

        above = self.layer + 1
        read = torch.zeros_like(self.kept_layout.segments, dtype=torch.bool)
        read[self.predict_edit, self.predict_at] = True
        read[torch.arange(read.shape[0], device=read.device), self.kl_at] = True
        layouts = self.kept_layout, self.past_layout
        self.span = span_of(self.model.decoder, above, *layouts, self.past, product_of, read)
        rows = self.rows_of_maps(self.first, self.model.num_layers if self.span is None else above)
        return packed.of(rows, make=pack)

    def rows_of_maps(self, start: int, stop: int) -> dict[nn.Module, int]:
        """How many rows every module of some layers, and the head, sees in a step."""
        tokens = self._tokens()
        rows = {module: tokens for layer in list(self.model.decoder.layers)[start:stop] for module in layer.modules()}
        kl = self.hidden.shape[0] if self.config.kl_factor else 0
        return rows | {self.model.hf.get_output_embeddings(): self.predict_at.numel() + kl}

    def _tokens(self) -> int:
        return int((self.kept_layout.segments >= 0).sum())

    def _changed(self) -> list[Tensor]:
        """What the parts of a delta are added to, (B, S, d) each."""
        return [self.mlp_out if self.mlp_out is not None else self.hidden]

    def _at_first_subject(self) -> Tensor:
        # the empty context is the first segment of each edit, and its subject the first kept position
        return torch.cat([changed[:, 0] for changed in self._changed()], dim=1).float()

    def _sizes(self) -> Tensor:
        """Length (B, n) of what each of the n parts of a delta is added to."""
        if self.config.units == "absolute":
            parts = len(self._changed())
            return torch.stack([torch.stack([part.norm() for part in h.chunk(parts)]) for h in self.h])
        weight = self.subject / self.subject.sum(dim=1, keepdim=True)
        norms = [changed.float().norm(dim=2, keepdim=True) for changed in self._changed()]
        return torch.cat([(weight * norm).sum(dim=1) for norm in norms], dim=1).float()

    def units(self, rows: Tensor) -> Tensor | None:
        """What the optimization counts in, for each number of the deltas (G, D) of the edits at ``rows``."""
        if self.config.units == "absolute":
            return None
        width = self.hidden.shape[2]
        return (self.size[rows] / width**0.5).repeat_interleave(width, dim=1)

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

    def kept(self, rows: Tensor) -> Self:
        """The same problem of the edits at ``rows`` (long tensor) alone; this one stays as it is."""
        rest = copy(self)
        rest._keep(rows)
        return rest

    def _keep(self, rows: Tensor) -> None:
        renumber = torch.full((self.hidden.shape[0],), -1, dtype=torch.long, device=rows.device)
        renumber[rows] = torch.arange(rows.numel(), device=rows.device)
        mine = renumber[self.predict_edit] >= 0
        # every table is a new tensor: whoever has the problem of all edits keeps his
        self.predict_edit = renumber[self.predict_edit[mine]]
        self.predict_at, self.predict_token = self.predict_at[mine], self.predict_token[mine]
        self.predict_weight = self.predict_weight[mine]
        self.hidden, self.subject, self.h = self.hidden[rows], self.subject[rows], self.h[rows]
        self.size = self.size[rows]
        self.map_outs = {layer: outputs[rows] for layer, outputs in self.map_outs.items()}
        self.mlp_out = None if self.mlp_out is None else self.mlp_out[rows]
        self.attention_out = None if self.attention_out is None else self.attention_out[rows]
        self.past = {i: (k[rows], v[rows]) for i, (k, v) in self.past.items()}
        self.kl_at = self.kl_at[rows]
        self.kept_layout = Layout(self.kept_layout.positions[rows], self.kept_layout.segments[rows])
        self.past_layout = Layout(self.past_layout.positions[rows], self.past_layout.segments[rows])
        self.prepare(pack=False)

    def _inject(self, delta: Tensor) -> Tensor:
        """Hidden states (B, S, d) at the value layer with ``delta`` (B, d) added at the subjects."""
        added = self.subject * delta[:, None].to(self.hidden.dtype)
        norm = self.model.decoder.post_norm(self.layer)
        if self.mlp_out is None or norm is None or self.config.post_norm == "published":
            return self.hidden + added
        return self.hidden + norm(self.mlp_out + added) - norm(self.mlp_out)

    def states(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from deltas (G, d) of the edits at ``rows`` to the states (G, d) that they bring about."""
        norm = self.model.decoder.post_norm(self.layer)
        first = self.hidden[rows, 0].float()
        if self.mlp_out is None or norm is None or self.config.post_norm == "published":
            return lambda delta: first + delta
        outputs = self.mlp_out[rows, 0]

        @torch.no_grad()
        def states(delta: Tensor) -> Tensor:
            moved: Tensor = norm(outputs + delta.to(outputs.dtype)) - norm(outputs)
            return first + moved.float()

        return states

    def project(self, delta: Tensor, h: Tensor, size: Tensor) -> tuple[Tensor, bool]:
        """The closest allowed delta (D,) of an edit, and whether it had to be shortened; ``size`` (n,) of its parts."""
        if self.variant.sphere:
            maps = self.variant.layers or (self.layer,)
            pieces = zip(maps, delta.chunk(len(maps)), h.chunk(len(maps)), strict=True)
            return torch.cat([self._on_sphere(*piece) for piece in pieces]), False
        clamp, parts = self.config.clamp, delta.chunk(size.numel())
        if clamp is None:
            return delta, False
        within = [_shortened(part, clamp * own) for part, own in zip(parts, size, strict=True)]
        return torch.cat([part for part, _ in within]), any(shortened for _, shortened in within)

    def _on_sphere(self, layer: int, delta: Tensor, h: Tensor) -> Tensor:
        bias = getattr(self.model.decoder.edited_map(layer), "bias", None)
        output = h if bias is None else h - bias.detach().float()
        target = output + delta
        sized: Tensor = target * (output.norm() / target.norm().clamp_min(1e-12)) - output
        return sized

    def _above(self, delta: Tensor) -> Tensor:
        """Output (B, S, d) of the last layer with ``delta`` in place."""
        return self._upper(self._inject(delta))

    def _upper(self, hidden: Tensor) -> Tensor:
        """The layers above the value layer, (B, S, d) to (B, S, d)."""
        if self.span is not None:
            return self.span(hidden)
        model = self.model
        return model.run(hidden, self.layer + 1, model.num_layers, self.positional, PrefixKV(self.past))

    def losses(
        self, delta: Tensor, h: Tensor, baseline: Tensor | None, size: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Total loss of each edit; a function of its arguments.

        Args:
            delta: changes (B, d), float32.
            h: what the decay measures each of them by, (B, d); ``self.h``, or that of the first edit of its group.
            baseline: log-probabilities (B, V) at the subjects of the KL prompts, from which the divergence is
                measured; None where ``delta`` is 0, so that they are what this call finds.
            size: in relative units what the decay measures by, (B, n) for n parts; by default ``self.size``.

        Returns:
            The losses (B,), and the baseline for the next call; None where no divergence is asked for.
        """
        hidden = self._above(delta)
        edits = torch.arange(delta.shape[0] if self.config.kl_factor else 0, device=delta.device)
        # one product with the head for all: for few edits reading it is a fifth of a step
        wanted = torch.cat([hidden[self.predict_edit, self.predict_at], hidden[edits, self.kl_at[: edits.numel()]]])
        logits = self.model.logits(wanted).float()
        nll, kl, missed = read_losses(logits, self.predict_token, baseline)
        if self.config.kl_factor and baseline is None:
            baseline = logits[self.predict_edit.numel() :].detach().log_softmax(dim=-1)
        none = torch.zeros(delta.shape[0], device=delta.device)
        total = none.index_add(0, self.predict_edit, nll * self.predict_weight)
        if self.variant.hit_weight != 1.0:
            misses = none.index_add(0, self.predict_edit, missed.float())
            total = torch.where(misses > 0, total, self.variant.hit_weight * total)
        if self.config.kl_factor:
            total = total + self.config.kl_factor * kl
        if self.protected is not None:
            total = total + self.config.kp_factor * projection_loss(delta, self.protected)
        if self.config.weight_decay:
            total = total + self.config.weight_decay * self._decay(delta, h, self.size if size is None else size)
        return total, baseline

    def _decay(self, delta: Tensor, h: Tensor, size: Tensor) -> Tensor:
        """The sizes (B,) of deltas (B, D) that ``weight_decay`` weighs, summed over their parts."""
        parts = size.shape[1]
        if self.config.units == "relative":
            unit = size * self.hidden.shape[2] ** 0.5
            pieces = zip(delta.chunk(parts, dim=1), unit.unbind(dim=1), strict=True)
            return torch.stack([lengths(piece) / own for piece, own in pieces]).sum(dim=0)
        halves = zip(delta.chunk(parts, dim=1), h.chunk(parts, dim=1), strict=True)
        return torch.stack([lengths(half) / own.square().sum(dim=1) for half, own in halves]).sum(dim=0)


class JointProblem(Problem):
    """Deltas of the attention's and of the MLP's output of one layer, before any norm behind them (PMET).

    The layer itself runs in every step, as the attention's output is what its MLP reads (arXiv:2308.08742).
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[list[Segment]],
        layer: int,
        config: ValueConfig,
        space: Literal["block", "mlp"],
        variant: Variant,
    ) -> None:
        super().__init__(model, edits, layer, config, "mlp", variant)

    def _changed(self) -> list[Tensor]:
        assert self.attention_out is not None and self.mlp_out is not None
        return [self.attention_out, self.mlp_out]

    def states(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """As in the base class, but of the MLP's output: only its target is written into the weights."""
        first = self.h[rows]
        return lambda delta: (first + delta).chunk(2, dim=1)[1].contiguous()

    def _above(self, delta: Tensor) -> Tensor:
        attention, mlp = (self.subject * half[:, None].to(self.hidden.dtype) for half in delta.chunk(2, dim=1))
        model = self.model
        with model.added(self.layer, attention=attention, mapped=mlp):
            hidden = model.run(self.hidden, self.layer, self.layer + 1, self.positional, PrefixKV(self.past))
        return self._upper(hidden)


class LayersProblem(Problem):
    """Deltas of what the edited maps of several layers put out, found together, before the norms behind the maps.

    A norm behind a map lets through vectors of one length only: a change of the last layer's state, spread over the
    layers, cannot be reached there. What is found here is what the maps are to put out, so every layer can reach its
    own part whatever the norms do. With the variant ``joint`` there is one of the value layer's attention too (PMET).

    In every context a map puts out what it did before the edit, plus the delta; what changes below it does not count,
    as the write makes up for it layer by layer.
    """

    def _changed(self) -> list[Tensor]:
        maps = [self.map_outs[layer] for layer in self.variant.layers]
        return maps if self.attention_out is None else [self.attention_out, *maps]

    def states(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from deltas (G, D) of the edits at ``rows`` to what the maps put out then, (G, n, d)."""
        first, count = self.h[rows], len(self.variant.layers)
        width = self.hidden.shape[2]
        return lambda delta: (first + delta)[:, -count * width :].reshape(-1, count, width).contiguous()

    def _above(self, delta: Tensor) -> Tensor:
        model, layers = self.model, self.variant.layers
        parts = delta.to(self.hidden.dtype).chunk(self.size.shape[1], dim=1)
        given = {n: self.map_outs[n] + part[:, None] for n, part in zip(layers, parts[-len(layers) :], strict=True)}
        with model.overwritten(given, self.subject > 0), ExitStack() as stack:
            if self.variant.joint:
                stack.enter_context(model.added(self.layer, attention=self.subject * parts[0][:, None]))
            hidden = model.run(self.hidden, self.first, self.layer + 1, self.positional, PrefixKV(self.past))
        return self._upper(hidden)


def projection_loss(delta: Tensor, protected: Tensor) -> Tensor:
    """L_kp (B,) of changes (B, d): ``sum_x |P x|^2`` over protected states x (n, d), P the projection on a change's
    direction ("uncertainty", eq. 1); 0 for no change."""
    along = (delta @ protected.to(delta).T).square().sum(dim=1)
    return along / delta.square().sum(dim=1).clamp_min(1e-24)


@torch.no_grad()
def protected_states(model: EditableModel, subjects: Sequence[str], layer: int, *, in_mlp: bool) -> Tensor:
    """States (n, d), float32, of entities at their last token in `KL_TEMPLATE`: what ``layer`` puts out, or its map."""
    found = []
    for subject in subjects:
        tokens, last = model.text.encode_for_edit("", KL_TEMPLATE, subject)
        rows = model.rows([tokens[: last + 1]])
        with model.map_outputs([layer]) as mapped:
            hidden = model.run(model.embed(rows), 0, layer + 1, model.positional(rows.layout))
        found.append((mapped[layer] if in_mlp else hidden)[0, last].float())
    return torch.stack(found)


def _shortened(delta: Tensor, bound: Tensor) -> tuple[Tensor, bool]:
    size = delta.norm()
    return (delta * (bound / size), True) if bool(size > bound) else (delta, False)


def lengths(delta: Tensor) -> Tensor:
    # the norm's gradient at 0 is not defined; published code takes 0, and so does clamping before the root
    return delta.square().sum(dim=1).clamp_min(1e-24).sqrt()
