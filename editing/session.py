"""The stateful editor as a plain class: a model, an editor, its lifelong state, and the versions in between.

An actor or a test holds one. It is a cache: base weights, the ordered commits and the covariances they name rebuild
it exactly.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from errata.editing.corrections import Verified, verified
from errata.editing.covariance import KeyCovariance
from errata.editing.cutting import cut_out_culprits
from errata.editing.delta import WeightDelta, apply_delta, weight_norm
from errata.editing.editors.base import Computation, Editor, Progress, Sweep
from errata.editing.errors import (
    DependentKeysError,
    EditorFaultError,
    ErrataError,
    NumericalError,
    UserError,
    in_words,
)
from errata.editing.limits import check_request
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.state import LifelongState, OldKeys
from errata.editing.value_config import length_of
from errata.editing.verify import Check, DamageError, HeldProbes, Outcome, VerifyConfig, held_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestResult:
    """What became of one request of a batch."""

    request_id: str
    applied: bool
    reason: str | None = None
    loss: float = math.nan
    steps: int = 0
    converged: bool = False
    clamped: bool = False
    outcome: Literal["landed", "weak"] | None = None
    """Of an applied request: whether the model says it, on the weights as they are served; None where nobody asked."""
    figures: Mapping[str, Any] | None = None
    """What was measured of it (`errata.editing.verify.Outcome`), of a refused one as well."""
    delta_norm: float | None = None
    """|delta| of its target value, where the method optimizes one; of several parts together."""
    state_norm: float | None = None
    """|h| of what ``delta`` was added to; the clamp bounds their ratio."""
    kp_loss: float | None = None
    """L_kp of the change, where entities are protected."""


@dataclass(frozen=True)
class Part:
    """Columns ``start`` to ``start + width`` of a revert's left factors, rows of the right ones: batch ``sequence``."""

    sequence: int
    start: int
    width: int


@dataclass(frozen=True)
class EditReceipt:
    """One applied batch: the change, what joins the past keys, and the fate of every request.

    ``keys`` are float32 (d_in, m) by layer and ``targets`` float32 (m, d), for the applied requests in order; where a
    norm follows the edited maps, targets are what each map is to put out, (m, n, d). Both are those of the last sweep.
    ``delta`` is None when no request could be applied.
    """

    sequence: int
    delta: WeightDelta | None
    results: tuple[RequestResult, ...]
    request_ids: tuple[str, ...]
    fact_keys: tuple[str, ...]
    superseded: tuple[str, ...]
    """Earlier requests whose facts this batch overwrites; their keys have left the past keys."""
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None
    covariance_digest: str | None = None
    seconds: float = 0.0
    kind: Literal["edit", "revert"] = "edit"
    taken_out: tuple[str, ...] = ()
    """Of a revert: the requests that left the weights with it. ``request_ids`` are then those whose keys changed."""
    parts: tuple[Part, ...] = ()
    """Of a revert: where in the factors of ``delta`` the new contribution of every batch computed again stands."""
    whole: bool = False
    """Of a revert: ``keys`` and ``memory`` are all that the editor remembers, not what joins it."""
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    """All writes that make up the change, in order, where a correction followed the first."""
    moved: float | None = None
    """Share of the held probes whose answer the batch changed; None where nobody asked."""
    later: tuple[str, ...] = ()
    """Requests of the batch that stayed weak among the others, and are to be tried alone; they have no result."""
    old_keys: OldKeys = field(default_factory=dict)
    """Keys that leave with this commit, of an editor that does not hold them any more (``EditSession.keys_wanted``)."""


@dataclass(frozen=True)
class Snapshot:
    """An editor as it stood right after a commit: continuing from it gives the bits that a replay gives."""

    sequence: int
    weights: Mapping[int, Tensor]
    """Float32 masters of the edited maps, on the CPU."""
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """With ``about``, the lifelong state."""


NOT_LANDED = "not_landed"
"""Why a request is refused that the model does not say once it is written."""
CONTROL = EditRequest(
    id="control", subject="Paris", prompt="The city of {} lies in", target_new="France", target_true="Italy"
)
"""An edit that any working editor can compute."""


@dataclass(frozen=True)
class _Computed:
    """A change that is not written yet, and what it would do."""

    requests: list[EditRequest]
    refused: dict[str, str]
    superseded: tuple[str, ...]
    state: LifelongState
    computation: Computation | None
    look: Verified | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of refused requests."""
    later: tuple[str, ...] = ()


class EditSession:
    """Applies batches in order; applying a sequence number again returns the receipt it had."""

    def __init__(
        self,
        model: EditableModel,
        editor: Editor,
        covariance: KeyCovariance | None,
        contexts: Sequence[str],
        verify: VerifyConfig | None = None,
    ) -> None:
        """``verify``: how every batch is looked at before it is written; None does not look."""
        self.model, self.editor, self.contexts = model, editor, tuple(contexts)
        self.verify = verify if verify is not None and verify.enabled else None
        self._probes = None if self.verify is None else HeldProbes(model, held_prompts(self.verify))
        self._held: tuple[int, ...] | None = None
        """Answers to the held probes on the present weights, where they are known."""
        self.state: LifelongState = editor.new_state(model, covariance)
        self.sequence = 0
        self.last: EditReceipt | None = None
        self.base = {layer: weight.cpu() for layer, weight in model.weights(editor.layers).items()}
        """The maps at the beginning; a revert computes from there."""

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        """Requests whose keys a batch must tell if it writes these facts: they leave, and are not held."""
        return tuple(self.state.holding(fact_keys)) if self.state.wants_keys else ()

    def apply(self, batch: EditBatch, progress: Progress | None = None) -> EditReceipt:
        """Write a batch into the weights.

        A request that cannot be written is refused, with the error, and the others are written. Those that could not
        be written together with them, though nothing is wrong with them, have no result: they are for another batch.

        Raises:
            ErrataError: the sequence number neither follows the last one nor repeats it.
            EditorFaultError: nothing can be written any more, whatever it is.
        """
        if self.last is not None and batch.sequence == self.last.sequence:
            if self.last.kind != "edit":
                raise ErrataError(f"commit {batch.sequence} is a revert here, not that batch; restore from the journal")
            return self.last
        if batch.sequence != self.sequence + 1:
            raise ErrataError(f"batch {batch.sequence} does not follow batch {self.sequence}; replay what lies between")
        started = time.perf_counter()
        fitting, refused = self._check(batch.requests)
        cut = cut_out_culprits(fitting, lambda requests: self._computed(requests, progress, batch.old_keys))
        if cut.culprits and not cut.kept and not isinstance(cut.culprits[0][1], DamageError):
            self._require_working(cut.culprits[0][1], progress)
        refused |= {request.id: in_words(error) for request, error in cut.culprits}
        computed = cut.result or _Computed([], {}, (), self.state, None)
        refused |= computed.refused
        damage = {r.id: {"moved": e.moved} for r, e in cut.culprits if isinstance(e, DamageError)}
        computed = replace(computed, figures={**computed.figures, **damage})
        receipt = self._receipt(batch, computed, refused, left={r.id for r in cut.left} | set(computed.later))
        if computed.computation is not None:
            self._advance(receipt, computed.state)
            self._held = None if computed.look is None else computed.look.held
        # whoever takes this batch over from the receipt alone has to know what leaves with it
        receipt = replace(
            receipt, old_keys={name: batch.old_keys[name] for name in receipt.superseded if name in batch.old_keys}
        )
        self.sequence, self.last = batch.sequence, replace(receipt, seconds=time.perf_counter() - started)
        return self.last

    def replay(self, receipt: EditReceipt) -> None:
        """Take over a committed batch without computing it again.

        Raises:
            ErrataError: it does not follow the last batch, or was computed on another covariance.
        """
        if receipt.sequence != self.sequence + 1:
            raise ErrataError(f"commit {receipt.sequence} does not follow commit {self.sequence}")
        if receipt.delta is not None or receipt.kind == "revert":
            if receipt.covariance_digest != self.state.covariance_digest:
                raise ErrataError(
                    f"commit {receipt.sequence} was made on covariance {str(receipt.covariance_digest)[:12]}, "
                    f"the editor holds {str(self.state.covariance_digest)[:12]}"
                )
            self._advance(receipt, self.state.without(receipt.superseded, receipt.old_keys))
        self.sequence, self.last, self._held = receipt.sequence, receipt, None

    def take_out(self, sequence: int, revert: Callable[[EditSession], EditReceipt]) -> EditReceipt:
        """Commit a revert: the change that takes earlier requests out of the weights and the state.

        Args:
            revert: computes it, given this session; neither weights nor state have changed when it returns.

        Raises:
            ErrataError: the sequence number neither follows the last one nor repeats it.
        """
        if self.last is not None and sequence == self.last.sequence:
            if self.last.kind != "revert":
                raise ErrataError(f"commit {sequence} is a batch here, not that revert; restore from the journal")
            return self.last
        if sequence != self.sequence + 1:
            raise ErrataError(f"revert {sequence} does not follow batch {self.sequence}; replay what lies between")
        started = time.perf_counter()
        receipt = revert(self)
        if receipt.delta is not None:
            self._require_finite(receipt.delta)
        self._advance(receipt, self.state)
        self._held = None
        self.sequence, self.last = sequence, replace(receipt, seconds=time.perf_counter() - started)
        return self.last

    def snapshot(self) -> Snapshot:
        """Everything that continuing from here needs, besides the covariance."""
        weights = {layer: weight.cpu() for layer, weight in self.weights().items()}
        return Snapshot(self.sequence, weights, self.state.about(), self.state.tensors())

    def resume(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot; the session holds the covariance that it was made on.

        Raises:
            ErrataError: it belongs to another covariance, or to other layers.
        """
        if sorted(snapshot.weights) != sorted(self.editor.layers):
            raise ErrataError(f"the snapshot holds layers {sorted(snapshot.weights)}, want {list(self.editor.layers)}")
        state = self.state.restored(snapshot.about, snapshot.tensors, "the snapshot")
        self.model.set_weights(snapshot.weights)
        self.state, self.sequence, self.last, self._held = state, snapshot.sequence, None, None

    def swap_covariance(self, covariance: KeyCovariance) -> None:
        """Continue on another covariance; past keys are kept."""
        self.state = self.state.with_covariance(covariance)

    def weights(self) -> dict[int, Tensor]:
        """Float32 masters of the edited maps as they are now."""
        return self.model.weights(self.editor.layers)

    def norms(self) -> dict[int, float]:
        """Frobenius norm of each edited matrix as it is now."""
        return {layer: weight_norm(self.model.weight(layer)) for layer in self.editor.layers}

    def rehearse(self, requests: Sequence[EditRequest]) -> None:
        """Compute a batch and forget it: raises what `apply` would meet with these requests, and changes nothing."""
        fitting, _ = self._check(requests)
        if fitting:
            with suppress(DamageError):
                self._computed(fitting, None)

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]:
        """Whether the model, as it is now, says what each request asked for, after the bare prompt; nothing changes."""
        return Check(self.model, requests, ("",), self.editor.pieces_for).outcomes() if requests else []

    # --- parts ---

    def _computed(
        self, requests: Sequence[EditRequest], progress: Progress | None, old_keys: OldKeys | None = None
    ) -> _Computed:
        """The change that writes the requests, without those that the method cannot write beside the others."""
        refused: dict[str, str] = {}
        figures: dict[str, Mapping[str, Any]] = {}
        later: tuple[str, ...] = ()
        good = list(requests)
        while True:
            # what a refused request would have superseded stays
            superseded = tuple(self.state.holding([r.fact_key for r in good]))
            # a rehearsal is told no keys, and is as good with those that would leave
            told = old_keys is not None or not self.state.wants_keys
            state = self.state.without(superseded, old_keys) if told else self.state
            if not good:
                return _Computed(good, refused, superseded, state, None, None, figures, later)
            try:
                computation = self.editor.compute(self.model, good, state, self.contexts, progress)
            except DependentKeysError as error:
                refused |= error.reasons
                good = [r for r in good if r.id not in error.reasons]
                continue
            bad = [i for i, value in enumerate(computation.values) if not value.finite]
            if bad:
                for i in bad:
                    refused[good[i].id] = "the target value did not stay finite; check editor.values.lr"
                good = [r for i, r in enumerate(good) if i not in bad]
                continue
            self._require_finite(computation.delta)
            look = self._look(good, state, computation)
            if look is None:
                return _Computed(good, refused, superseded, state, computation)
            weak = {r.id: o for r, o in zip(good, look.outcomes, strict=True) if not o.landed}
            policy = "keep" if self.verify is None else self.verify.on_weak
            if not weak or policy == "keep" or (policy == "retry" and len(requests) == 1):
                return _Computed(good, refused, superseded, state, look.computation, look, figures, later)
            if policy == "retry":
                later = (*later, *weak)
            else:
                refused |= dict.fromkeys(weak, NOT_LANDED)
                figures |= {name: outcome.figures() for name, outcome in weak.items()}
            # without them the others are another batch
            good = [r for r in good if r.id not in weak]

    def _look(self, requests: Sequence[EditRequest], state: LifelongState, computation: Computation) -> Verified | None:
        """What became of a computed batch, corrected; None where nobody looks.

        Raises:
            DamageError: it changes more of the held probes' answers than it may.
        """
        if self.verify is None or self._probes is None:
            return None
        if self._held is None:
            self._held = self._probes.ask()
        look = verified(
            self.model,
            self.editor,
            requests,
            state,
            self.contexts,
            computation,
            corrections=self.verify.corrections,
            probes=self._probes,
            held=self._held,
        )
        self._require_finite(look.computation.delta)
        if self.verify.max_damage is not None and look.moved > self.verify.max_damage:
            raise DamageError(look.moved, self.verify.max_damage)
        return look

    def _require_working(self, error: Exception, progress: Progress | None) -> None:
        """Raise `EditorFaultError` where a plain edit fails as well: then no request is at fault."""
        try:
            self._computed([CONTROL], progress)
        except Exception:
            raise EditorFaultError(f"the editor fails on every edit, a plain one too: {in_words(error)}") from error

    def _check(self, requests: Sequence[EditRequest]) -> tuple[list[EditRequest], dict[str, str]]:
        good: list[EditRequest] = []
        refused: dict[str, str] = {}
        for request in requests:
            try:
                # the probes are asked elsewhere, where one that is too long is left out
                check_request(
                    request, self.model.text, self.model.capacity, contexts=("", *self.contexts), probes=False
                )
            except (UserError, ValueError) as error:
                refused[request.id] = str(error)
            else:
                good.append(request)
        return good, refused

    def _require_finite(self, delta: WeightDelta) -> None:
        for layer, change in delta.layers.items():
            if not math.isfinite(change.norm):
                raise NumericalError(f"the update of layer {layer} is not finite (norm {change.norm})")

    def _receipt(
        self,
        batch: EditBatch,
        computed: _Computed,
        refused: Mapping[str, str],
        left: Collection[str],
    ) -> EditReceipt:
        good, superseded, computation = computed.requests, computed.superseded, computed.computation
        values = {} if computation is None else {r.id: v for r, v in zip(good, computation.values, strict=True)}
        outcomes = {} if computed.look is None else {r.id: o for r, o in zip(good, computed.look.outcomes, strict=True)}
        results = []
        for request in batch.requests:
            if request.id in refused:
                figures = computed.figures.get(request.id)
                results.append(RequestResult(request.id, False, refused[request.id], figures=figures))
            elif request.id not in left:
                v = values[request.id]
                result = RequestResult(
                    request.id,
                    True,
                    None,
                    v.loss,
                    v.steps,
                    v.converged,
                    v.clamped,
                    delta_norm=length_of(v.delta),
                    state_norm=length_of(v.h),
                    kp_loss=v.kp_loss,
                )
                if (outcome := outcomes.get(request.id)) is not None:
                    figures = outcome.figures()
                    if computation is not None and len(computation.sweeps) > 1:
                        figures["sweeps"] = len(computation.sweeps)
                    result = replace(result, outcome="landed" if outcome.landed else "weak", figures=figures)
                results.append(result)
        targets = None
        if computation is not None:
            # those of the last sweep, which the last keys belong to
            targets = torch.stack([v.state for v in computation.values])
            targets = computation.sweeps[-1].targets if computation.sweeps else targets
        return EditReceipt(
            sequence=batch.sequence,
            delta=None if computation is None else computation.delta,
            results=tuple(results),
            request_ids=tuple(r.id for r in good),
            fact_keys=tuple(r.fact_key for r in good),
            superseded=superseded,
            keys={} if computation is None else dict(computation.keys),
            targets=targets,
            covariance_digest=self.state.covariance_digest,
            sweeps=() if computation is None else computation.sweeps,
            moved=None if computed.look is None else computed.look.moved,
            later=computed.later,
        )

    def _advance(self, receipt: EditReceipt, state: LifelongState) -> None:
        # the state first: it can fail, and then neither it nor the weights have changed
        if receipt.whole:
            advanced = state.rebuilt(receipt.request_ids, receipt.fact_keys, receipt.keys, receipt.memory)
        elif receipt.kind == "revert":
            # a batch that lost a request was computed again: its other keys come in as they are without it
            left = state.without((*receipt.taken_out, *receipt.request_ids), receipt.old_keys)
            advanced = left.appended(receipt.keys, receipt.request_ids, receipt.fact_keys) if receipt.keys else left
        else:
            assert receipt.delta is not None
            advanced = self.editor.advance(state, receipt.delta, receipt.keys, receipt.request_ids, receipt.fact_keys)
        for layer, change in {} if receipt.delta is None else receipt.delta.layers.items():
            self.model.set_weight(layer, apply_delta(self.model.weight(layer), change))
        self.state = advanced
