"""The closed loop around one batch: look at what was written, and write what is missing once more.

Every further write (a sweep) is computed on the weights that the ones before it left, and all of them together are one
change, applied to the weights before the batch: what was looked at is what is committed. A correction goes for the
edits that are weak. One that did not get where it was to go is written again with a weaker ridge; one that did, and
still is not said, gets a further target, found on the weights as they are. The other edits of the batch keep theirs.

Whether there is another sweep is decided here, once: what was done is part of the receipt, and a replay decides
nothing.

Letters: m edits, d hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.editing.delta import LayerDelta, WeightDelta, apply_delta, side_by_side
from errata.editing.editors.base import Computation, Editor, Sweep
from errata.editing.editors.closed_form.locate import LocateEditor, Written
from errata.editing.editors.closed_form.rect import Rect
from errata.editing.editors.modules.retrieved import Retrieved
from errata.editing.errors import NumericalError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.verify import Check, HeldProbes, Outcome, moved_share

logger = logging.getLogger(__name__)

THERE = 0.9
"""Share of the wanted change from which an edit counts as written; its target is then what is at fault."""
WEAKER = 0.1
"""What the ridge of an edit that is not there is multiplied by from sweep to sweep."""


@dataclass(frozen=True)
class Verified:
    """A batch that is computed and was looked at, but not written yet."""

    computation: Computation
    outcomes: tuple[Outcome, ...]
    held: tuple[int, ...]
    """Answers to the held probes with the batch in the weights."""
    moved: float
    """Share of them that the batch changed."""


def verified(
    model: EditableModel,
    editor: Editor,
    requests: Sequence[EditRequest],
    state: LifelongState,
    contexts: Sequence[str],
    computation: Computation,
    *,
    corrections: int,
    probes: HeldProbes,
    held: Sequence[int],
) -> Verified:
    """Look at a batch in the weights, correct it while that helps, and leave the model's bytes as they were.

    Args:
        held: answers to the probes on the weights as they are.
    """
    if isinstance(editor, Retrieved):
        return _each_alone(model, editor, requests, state, contexts, computation, corrections, held)
    writer = _writer(editor)
    check = Check(model, requests, contexts)
    if writer is not None:
        targets = torch.stack([value.state for value in computation.values])
        check.aim(targets, sorted(computation.delta.layers), writer.measures)
    with model.patched(editor.layers):
        with put(model, computation.delta):
            outcomes = check.outcomes()
            after = probes.ask()
        if writer is not None and not all(outcome.landed for outcome in outcomes):
            loop = _Loop(model, editor, writer, requests, state, contexts, check)
            computation, better = loop.correct(computation, outcomes, corrections)
            if better is not outcomes:
                outcomes = better
                with put(model, computation.delta):
                    after = probes.ask()
    return Verified(computation, tuple(outcomes), after, moved_share(held, after))


def _each_alone(
    model: EditableModel,
    editor: Retrieved,
    requests: Sequence[EditRequest],
    state: LifelongState,
    contexts: Sequence[str],
    computation: Computation,
    corrections: int,
    held: Sequence[int],
) -> Verified:
    """The look at edits that are retrieved: each on the base with its own change alone, and corrected there.

    The held probes are nobody's questions: nothing is chosen for them, so nothing moves.
    """
    outcomes, changes = [], []
    fresh, nothing = editor.fresh(model, state), HeldProbes(model, ())
    with model.patched(editor.layers):
        editor.silence(model)
        for request, part in zip(requests, editor.apart(computation), strict=True):
            look = verified(
                model, editor.method, [request], fresh, contexts, part, corrections=corrections, probes=nothing, held=()
            )
            outcomes.append(look.outcomes[0])
            changes.append(look.computation.delta.layers)
    together = editor.together(model, requests, state, changes)
    return Verified(replace(computation, delta=together), tuple(outcomes), tuple(held), 0.0)


def _writer(editor: Editor) -> LocateEditor | None:
    """The part of an editor that can write a batch once more."""
    if isinstance(editor, Rect):
        return editor.base
    return editor if isinstance(editor, LocateEditor) and editor.corrects else None


@contextmanager
def put(model: EditableModel, delta: WeightDelta) -> Iterator[None]:
    """Within the context, the weights are those with ``delta`` applied."""
    with model.patched(sorted(delta.layers)):
        for layer, change in delta.layers.items():
            model.set_weight(layer, apply_delta(model.weight(layer), change))
        yield


class _Loop:
    """Corrections of one batch."""

    def __init__(
        self,
        model: EditableModel,
        editor: Editor,
        writer: LocateEditor,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        check: Check,
    ) -> None:
        self.model, self.editor, self.writer, self.requests = model, editor, writer, requests
        self.state, self.contexts, self.check = state, contexts, check

    def correct(
        self, computation: Computation, outcomes: list[Outcome], corrections: int
    ) -> tuple[Computation, list[Outcome]]:
        """The batch with the corrections that helped, and its outcomes."""
        layers = sorted(computation.delta.layers)
        targets = torch.stack([value.state for value in computation.values])
        ridge = torch.ones(len(self.requests))
        sweeps = [Sweep(targets, ridge, computation.keys)]
        for _ in range(corrections):
            weak = [number for number, outcome in enumerate(outcomes) if not outcome.landed]
            if not weak:
                break
            targets, ridge = targets.clone(), ridge.clone()
            with put(self.model, computation.delta):
                self._further(weak, outcomes, targets, ridge, layers)
                try:
                    changes, keys = self.writer.write(
                        self.model, self.requests, targets, self.state, self.contexts, layers, ridge
                    )
                except NumericalError as error:
                    logger.info("a correction could not be computed: %s", error)
                    break
            raw = joined(computation.raw, changes)
            sweeps.append(Sweep(targets, ridge, keys))
            delta = finish(self.editor, self.model, raw, self.state, len(self.requests))
            with put(self.model, delta):
                looked = self.check.outcomes()
            if score(looked) <= score(outcomes):
                break
            outcomes = looked
            computation = replace(computation, delta=delta, raw=raw, keys=keys, sweeps=tuple(sweeps))
        return computation, outcomes

    def _further(
        self, weak: Sequence[int], outcomes: Sequence[Outcome], targets: Tensor, ridge: Tensor, layers: Sequence[int]
    ) -> None:
        """Move the targets of weak edits that reached theirs, and weaken the ridge of the others; both in place."""
        there = [n for n in weak if (outcomes[n].reached or 0.0) >= THERE]
        for number in weak:
            ridge[number] *= WEAKER
        if there:
            values = self.writer.more_values(self.model, [self.requests[n] for n in there], self.contexts, layers)
            for number, value in zip(there, values, strict=True):
                if value.finite:
                    targets[number] = value.state


def score(outcomes: Sequence[Outcome]) -> tuple[int, int, float]:
    """What a correction must raise: edits that landed, else tokens that are the argmax, else their probability."""
    tokens = sum(sum(outcome.argmax) for outcome in outcomes)
    return sum(outcome.landed for outcome in outcomes), tokens, sum(outcome.p_target for outcome in outcomes)


def finish(
    editor: Editor, model: EditableModel, raw: Mapping[int, LayerDelta], state: LifelongState, edits: int
) -> WeightDelta:
    """The change of a batch whose sweeps add up to ``raw``, on the weights before it."""
    if isinstance(editor, LocateEditor | Rect):
        return editor.finish(model, raw, state, edits)
    return WeightDelta(dict(raw), editor.config.type)


def joined(first: Mapping[int, LayerDelta], second: Mapping[int, LayerDelta]) -> dict[int, LayerDelta]:
    """Two changes by layer, made one after the other, as one."""
    return {layer: _joined(change, second[layer]) if layer in second else change for layer, change in first.items()}


def _joined(first: LayerDelta, second: LayerDelta) -> LayerDelta:
    if first.kind == "orthogonal":
        return LayerDelta("orthogonal", (second.left.double() @ first.left.double()).float())
    return side_by_side([first, second])


def written_again(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    sweeps: Sequence[Sweep],
    state: LifelongState,
    contexts: Sequence[str],
) -> Written:
    """The change of a batch, computed once more from the targets and ridges of its sweeps, for some of its edits.

    Args:
        sweeps: cut to these requests.
    """
    changes, keys = editor.write(model, requests, sweeps[0].targets, state, contexts, None, first_ridge(sweeps[0]))
    for sweep in sweeps[1:]:
        with put(model, WeightDelta(changes, editor.config.type)):
            more, keys = editor.write(model, requests, sweep.targets, state, contexts, None, sweep.ridge)
        changes = joined(changes, more)
    return changes, keys


def first_ridge(sweep: Sweep) -> Tensor | None:
    """None where it changes nothing, so that a batch of one sweep is computed as it always was."""
    return None if bool((sweep.ridge == 1).all()) else sweep.ridge
