"""Evaluations of frozen versions in the background: they never hold editing up and never influence it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.actors.parts import EvaluationPart, MemoryPart
from errata.actors.workers.evaluation import Hits
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.arms import Evaluation
from errata.evaluation.outcomes import Arm
from errata.evaluation.probes import questions_of
from errata.orchestrator.config.evaluation import EvaluationConfig, MemoryConfig
from errata.orchestrator.measuring.texts import read_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """One evaluation with everything that is reported of it."""

    edits: int
    version: str
    evaluation: Evaluation
    perplexity: float | None
    query_seconds: dict[Arm, float]
    seconds: float
    perplexities: Mapping[str, float] = field(default_factory=dict)
    """By the names of ``evaluation.texts``."""

    def arms(self) -> dict[str, dict[str, float | None]]:
        """Metrics by arm."""
        return {arm: dict(values) for arm, values in self.evaluation.metrics(self.query_seconds).items()}

    def choices(self) -> dict[str, dict[str, float | None]]:
        """How often the memory arms chose nothing."""
        return {arm: dict(values) for arm, values in self.evaluation.choices().items()}


class Measurer:
    """Puts questions to frozen versions, one evaluation at a time, in a thread of its own."""

    def __init__(
        self, pool: EvaluationPart, memory: MemoryPart, config: EvaluationConfig, mem: MemoryConfig, base: str
    ) -> None:
        """``base`` is the digest of the version without edits."""
        self._pool, self._memory, self._config, self._mem = pool, memory, config, mem
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._text = read_held_out(config.held_out)
        self._texts = read_texts(config.texts)
        self._base = base
        self._base_perplexity: Future[float | None] | None = None
        self._base_perplexities: dict[str, float] | None = None
        self.seconds = 0.0

    def base_perplexity(self) -> Future[float | None]:
        """Perplexity of the unedited model, measured once."""
        if self._base_perplexity is None:
            self._base_perplexity = self._thread.submit(
                lambda: None if self._text is None else self._pool.perplexity(self._text, {})
            )
        return self._base_perplexity

    def base_perplexities(self) -> Future[dict[str, float]]:
        """Those of the unedited model on ``evaluation.texts``, measured once."""
        return self._thread.submit(self._perplexities, self._base, {})

    def _perplexities(self, version: str, weights: Any) -> dict[str, float]:
        """By text; runs in the one thread of this class."""
        if not self._texts:
            return {}
        if version != self._base:
            return self._pool.perplexities(self._texts, weights)
        if self._base_perplexities is None:
            self._base_perplexities = self._pool.perplexities(self._texts, {})
        return self._base_perplexities

    def submit(
        self,
        requests: Sequence[EditRequest],
        weights: Any,
        *,
        edits: int,
        version: str,
        latency: bool = False,
        remembered: bool = True,
        done: Callable[[Measurement], None] | None = None,
    ) -> Future[Measurement]:
        """Freeze what the memory finds now, then evaluate in the background.

        Args:
            requests: the facts to ask about.
            weights: reference to the version's edited maps.
            latency: also measure ``query_seconds``.
            remembered: ask the memory; else the version is one of which nothing was remembered yet.
            done: called in the background with the result.
        """
        questions = questions_of(requests)
        near = self._memory.search(questions, self._mem.scr.k) if remembered else [[] for _ in questions]
        hits: Hits = dict(zip(questions, near, strict=True))

        def work() -> Measurement:
            started = time.perf_counter()
            known = self._base_perplexity if version == self._base else None  # submitted before: it is there
            text = None if known is not None else self._text
            evaluation, perplexity = self._pool.evaluate_with_text(requests, weights, hits, text)
            if known is not None:
                perplexity = known.result()
            by_text = self._perplexities(version, weights)
            times = self._latency(questions, weights, hits) if latency else {}
            taken = time.perf_counter() - started
            self.seconds += taken
            result = Measurement(edits, version, evaluation, perplexity, times, taken, by_text)
            if done is not None:
                done(result)
            return result

        return self._thread.submit(work)

    def _latency(self, questions: Sequence[str], weights: Any, hits: Hits) -> dict[Arm, float]:
        count = self._config.latency_questions
        if not count:
            return {}
        chosen = list(questions[:: max(1, len(questions) // count)][:count])
        search = self._memory.search_seconds(chosen, self._mem.scr.k)
        return self._pool.query_seconds(chosen, weights, {q: hits[q] for q in chosen}, search)

    def close(self) -> None:
        """Drop what has not begun and give up what has; returns when the thread is done with the journal."""
        self._pool.give_up()
        self._thread.shutdown(wait=True, cancel_futures=True)


def read_held_out(path: str | None) -> str | None:
    """The held-out text, or None if none is configured.

    Raises:
        UserError: the file is not there or not text.
    """
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation.held_out {path!r} cannot be read: {type(error).__name__}") from error
    if not text.strip():
        raise UserError(f"evaluation.held_out {path!r} holds no text")
    return text
