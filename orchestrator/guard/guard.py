"""The guard: asks frozen versions whether the model is still itself, and stops the stream when it is not.

Every n batches it asks sentinel probes and measures perplexity on held-out text, on the version as it then is, and
compares with the unedited model. A breach pauses the stream, alerts, and may revert the edits since the last version
that was good. Everything it finds and does is an event in the journal, and its state is read off those events, so an
interruption forgets nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from errata.editing.digest import digest_json
from errata.editing.errors import ErrataError
from errata.editing.wording import counted
from errata.orchestrator.config.guard import WEBHOOK, GuardConfig
from errata.orchestrator.guard.notify import notifiers
from errata.orchestrator.guard.rules import GuardVerdict, Reading, judge
from errata.orchestrator.guard.webhook import Outcome, Webhook
from errata.orchestrator.history.bisect import RegressionProbe
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Version

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

EVENT: Final = "guard"
"""Kind of the journal's events; what happened is in their ``what``."""


class GuardPauseError(ErrataError):
    """The guard has paused the stream; the message says why and how to go on."""


class Watch(Protocol):
    """Asks frozen versions; called from the guard's thread."""

    def answers(self, probes: Sequence[RegressionProbe], weights: Any) -> Sequence[str]:
        """Greedy answers of the version with these edited maps; no maps for the base."""
        ...

    def perplexity(self, text: str, weights: Any) -> float: ...


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """Where the guard stands, for a page and for metrics."""

    checks: int
    breaches: int
    good_sequence: int
    """The newest version that was checked and found good; 0 for the base."""
    paused: str | None
    """Why the stream is paused; None while it is not."""
    last: GuardVerdict | None


@dataclass
class _State:
    checked: int = 0
    good: int = 0
    checks: int = 0
    breaches: int = 0
    broken: bool = False
    """The newest check found a breach, or failed, and nothing good has followed."""
    paused: str | None = None
    reverting: tuple[str, ...] = ()
    """Edits of a revert that was begun and not finished."""
    unreported: Mapping[str, Any] | None = None
    """A breach of whose alert nothing is known."""


class Guard:
    """See the module. All methods but `status` and `close` are for the one thread that writes the journal.

    Args:
        text: held-out text; None to leave perplexity out.
        weights: a reference to the edited maps as they are now.
        revert: takes edits out by one commit; (ids, reason) -> the version after it.
        metrics: draws points of curves, by name, at a number of edits.
        say: one line for whoever watches.
    """

    def __init__(
        self,
        config: GuardConfig,
        probes: Sequence[RegressionProbe],
        text: str | None,
        *,
        journal: Journal,
        watch: Watch,
        weights: Callable[[], Any],
        revert: Callable[[Sequence[str], str], Version],
        metrics: Callable[[Mapping[str, float], int], None] = lambda values, step: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._config, self._probes = config, tuple(probes)
        self._text = None if config.max_perplexity_ratio is None else text
        self._journal, self._watch, self._weights, self._revert = journal, watch, weights, revert
        self._metrics, self._say = metrics, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guard")
        self._base: Reading | None = None
        self._pending: tuple[Version, Future[tuple[Reading, float]]] | None = None
        self._last: GuardVerdict | None = None
        self._acting = False
        self._state = _read_state(journal)
        url = os.environ.get(WEBHOOK) or config.webhook
        self._channels = notifiers(config.webhook_retries, self._alerted)
        if url:
            patience, retries = config.webhook_timeout_seconds, config.webhook_retries
            self._channels.append(Webhook(url, timeout=patience, retries=retries, done=self._alerted))

    # ---------------------------------------------------------------- for the loop

    @property
    def paused(self) -> str | None:
        """Why nothing more may be written, or None."""
        return self._state.paused

    @property
    def unfinished(self) -> bool:
        """Whether a revert was begun that `start` has to finish."""
        return bool(self._state.reverting)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the model as it is: no breach stands, no check has failed."""
        return not self._state.broken and self._state.paused is None

    def status(self) -> GuardStatus:
        """A snapshot; from any thread."""
        state = self._state
        return GuardStatus(state.checks, state.breaches, state.good, state.paused, self._last)

    def start(self) -> None:
        """Take up what an interruption has left: finish a revert, check a version whose turn it was."""
        if self._state.unreported is not None:
            self._tell(self._state.unreported)
        if self._state.reverting:
            self._take_out(self._state.reverting, f"guard: back to v{self._state.good}, as begun before")
        head = self._journal.head()
        if head.sequence > 0:
            self.after_commit(head)

    def after_commit(self, version: Version) -> None:
        """At a batch boundary: act on a verdict that has come, and begin a check that is due."""
        if self._acting or self._config.every is None:
            return
        self.act()
        if self._pending is None and version.sequence - self._state.checked >= self._config.every:
            self._begin(version)
        if self._config.wait:
            self.act(wait=True)

    def act(self, *, wait: bool = False) -> None:
        """Act on the verdict that has come, if one has; with ``wait``, on the one that is under way."""
        if self._pending is None or self._acting or not (wait or self._pending[1].done()):
            return
        with self._busy():
            self._conclude(*self._pending)

    def finish(self) -> None:
        """The stream has ended: act on what is still under way."""
        self.act(wait=True)

    def resume(self, by: str) -> None:
        """Somebody lets the stream go on. If nothing has changed, the next check will pause it again."""
        if self._state.paused is not None:
            self._note("resume", by=by)
            self._state.paused = None

    def close(self) -> None:
        """Drop a check under way; give alerts a few seconds."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for channel in self._channels:
            channel.close()

    # ---------------------------------------------------------------- checking

    def _begin(self, version: Version) -> None:
        self._state.checked = version.sequence
        weights = self._weights()
        self._pending = version, self._thread.submit(self._measure, weights)

    def _measure(self, weights: Any) -> tuple[Reading, float]:
        """In the guard's thread; the base first, once."""
        started = time.perf_counter()
        if self._base is None:
            self._base = self._kept_base() or self._measure_base()
        return self._read(weights), time.perf_counter() - started

    def _read(self, weights: Any) -> Reading:
        answers = tuple(self._watch.answers(self._probes, weights)) if self._probes else ()
        return Reading(answers, None if self._text is None else self._watch.perplexity(self._text, weights))

    def _key(self) -> str:
        probes = [probe.model_dump(mode="json") for probe in self._probes]
        return digest_json([self._journal.meta.base_digest, probes, self._text])

    def _kept_base(self) -> Reading | None:
        for event in reversed(self._journal.events(EVENT)):
            if event.data["what"] == "baseline" and event.data["key"] == self._key():
                return Reading(tuple(event.data["answers"]), event.data["perplexity"])
        return None

    def _measure_base(self) -> Reading:
        base = self._read({})
        self._note("baseline", key=self._key(), answers=list(base.answers), perplexity=base.perplexity)
        return base

    def _conclude(self, version: Version, future: Future[tuple[Reading, float]], *, reverted: bool = False) -> None:
        self._pending = None
        place: dict[str, Any] = {"sequence": version.sequence, "version": version.digest, "edits": version.edits}
        try:
            reading, seconds = future.result()
        except Exception as error:
            # not knowing is no breach, but nothing is published on the strength of it
            self._state.broken = True
            self._note("failed", **place, reason=str(error))
            logger.error("guard: v%d could not be checked: %s", version.sequence, error)
            return
        assert self._base is not None
        verdict = self._last = judge(self._config, self._probes, self._base, reading)
        # what is going to be done stands in the same event as what was found: a crash after it changes nothing
        reason = f"v{version.sequence}: " + "; ".join(verdict.reasons)
        acting = not verdict.good and self._config.revert and not reverted
        data = {
            **place,
            **asdict(verdict),
            "perplexity": reading.perplexity,
            "seconds": seconds,
            # a revert that has not helped leaves nothing to try, whatever the settings say
            "paused": reason if not verdict.good and (self._config.pause or reverted) else None,
            "good_sequence": self._state.good,
            "reverting": self._since_good() if acting else (),
        }
        self._note("check", **data)
        _apply_check(self._state, data)
        figures = {"guard/breaches": float(not verdict.good)}
        figures |= {} if verdict.kept is None else {"guard/sentinels_kept_share": verdict.kept}
        figures |= {} if verdict.ratio is None else {"guard/perplexity_ratio": verdict.ratio}
        self._metrics(figures, version.edits)
        if not verdict.good:
            self._breach(reason, data)

    # ---------------------------------------------------------------- acting

    def _breach(self, reason: str, data: Mapping[str, Any]) -> None:
        ids, good = data["reverting"], data["good_sequence"]
        logger.error("GUARD BREACH at %s", reason)
        self._tell(data)
        then = f"; reverting {counted(len(ids), 'edit')}, back to v{good}" if ids else ""
        self._say(f"guard: {reason}{'; paused' if data['paused'] else ''}{then}")
        if ids:
            self._take_out(ids, f"guard: {reason}")

    def _since_good(self) -> tuple[str, ...]:
        return tuple(row.id for row in self._journal.applied_after(self._state.good))

    def _take_out(self, ids: Sequence[str], reason: str) -> None:
        """One commit that reverts them, and a check of what came of it: nobody should have to believe that it helped.

        Those that are gone already, by an attempt that was interrupted, are passed over.
        """
        good = self._state.good
        with self._busy():
            still = {row.id for row in self._journal.requests_named(ids) if row.state == "applied"}
            left = [name for name in ids if name in still]
            try:
                version = self._revert(left, reason) if left else self._journal.head()
            except ErrataError as error:
                # the edits stay in, so nothing more is written on top of them, whatever the settings say
                self._state.reverting, self._state.paused = (), f"the revert to v{good} failed: {error}"
                self._note("revert_failed", to=good, requests=list(ids), reason=self._state.paused)
                logger.error("guard: %s", self._state.paused)
                self._say(f"guard: {self._state.paused}; paused")
                return
            self._note("reverted", sequence=version.sequence, version=version.digest, to=good, requests=list(ids))
            self._state.reverting = ()
            self._say(f"guard: {counted(len(ids), 'edit')} reverted; v{version.sequence} holds what v{good} held")
            self._begin(version)
            assert self._pending is not None
            self._conclude(*self._pending, reverted=True)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """The guard's own commits are none of its business."""
        before, self._acting = self._acting, True
        try:
            yield
        finally:
            self._acting = before

    # ---------------------------------------------------------------- telling

    def _tell(self, data: Mapping[str, Any]) -> None:
        for channel in self._channels:
            channel.send(self._alert(data))

    def _alert(self, data: Mapping[str, Any]) -> dict[str, Any]:
        keys = ("version", "sequence", "edits", "reasons", "broken", "kept", "ratio", "paused", "reverting")
        return {"event": "guard_breach", "run": self._journal.meta.run_id, **{key: data[key] for key in keys}}

    def _alerted(self, outcome: Outcome) -> None:
        sequence = outcome.payload.get("sequence")
        data = {"host": outcome.host, "delivered": outcome.delivered, "attempts": outcome.attempts}
        self._note("alert", sequence=sequence, **data, reason=outcome.why)

    def _note(self, what: str, **data: Any) -> None:
        self._journal.record_event(EVENT, {"what": what, **data})


def _read_state(journal: Journal) -> _State:
    """Where the guard of an earlier process left off."""
    state = _State()
    for event in journal.events(EVENT):
        data = event.data
        match data["what"]:
            case "check":
                _apply_check(state, data)
            case "failed":
                state.checked, state.broken = max(state.checked, data["sequence"]), True
            case "resume":
                state.paused = None
            case "reverted":
                state.reverting = ()
            case "revert_failed":
                state.reverting, state.paused = (), data["reason"]
            case "alert":
                state.unreported = None
    return state


def _apply_check(state: _State, data: Mapping[str, Any]) -> None:
    """What a check does to the state, now or when its event is read back."""
    state.checks += 1
    state.checked = max(state.checked, data["sequence"])
    state.broken = not data["good"]
    if data["good"]:
        state.good = data["sequence"]
        return
    state.breaches += 1
    state.paused = data["paused"] or state.paused
    state.reverting = tuple(data["reverting"])
    state.unreported = data


# ---------------------------------------------------------------- in a pipeline
