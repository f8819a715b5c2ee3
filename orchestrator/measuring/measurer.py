"""Evaluations of frozen versions in the background: they never hold editing up and never influence it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from errata.actors.parts import EvaluationPart, MemoryPart
from errata.actors.workers.evaluation import Hits
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.editing.texts import read_text
from errata.evaluation.arms import Evaluation
from errata.evaluation.judge import ContainsJudgeConfig, Judge, JudgeConfig, LlmJudgeConfig, build_judge
from errata.evaluation.judged import judged
from errata.evaluation.outcomes import Arm
from errata.evaluation.probes import questions_of
from errata.orchestrator.config.evaluation import EvaluationConfig, MemoryConfig
from errata.orchestrator.measuring.finding import QuestionFinder, demonstration_pool
from errata.orchestrator.measuring.free import FreeTexts, with_edit_score
from errata.orchestrator.measuring.texts import read_texts
from errata.retrieval.router import Findings

logger = logging.getLogger(__name__)

JUDGMENTS: Final = "judged.jsonl"
"""File of a run in which a language model's verdicts are kept."""


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
    free: Mapping[Arm, Mapping[str, float | None]] = field(default_factory=dict)
    """Figures of free continuations by arm."""

    def arms(self) -> dict[str, dict[str, float | None]]:
        """Metrics by arm."""
        figures = {arm: dict(values) for arm, values in self.evaluation.metrics(self.query_seconds).items()}
        return {
            arm: with_edit_score({**own, **self.free[arm]}) if arm in self.free else own for arm, own in figures.items()
        }

    def only(self, names: Collection[str]) -> Measurement:
        """The same with the figures of some facts; a note that there were more is not kept."""
        return replace(self, evaluation=self.evaluation.only(names))

    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """95 % intervals by arm and metric, over the facts."""
        return {arm: dict(spans) for arm, spans in self.evaluation.intervals().items()}

    def choices(self) -> dict[str, dict[str, float | None]]:
        """How often the memory arms chose nothing."""
        return {arm: dict(values) for arm, values in self.evaluation.choices().items()}


class Measurer:
    """Puts questions to frozen versions, one evaluation at a time, in a thread of its own."""

    def __init__(
        self,
        pool: EvaluationPart,
        memory: MemoryPart,
        config: EvaluationConfig,
        mem: MemoryConfig,
        base: str,
        *,
        judgments: Path | None = None,
    ) -> None:
        """Args:
            base: digest of the version without edits.
            judgments: file in which a language model's verdicts are kept.

        Raises:
            UserError: a file that is measured on is not there, or the judge's key is not set.
        """
        self._pool, self._memory, self._config, self._mem = pool, memory, config, mem
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._text = read_held_out(config.held_out)
        self._texts = read_texts(config.texts)
        self._free = None if config.free_text is None else FreeTexts(config.free_text)
        self._finder = QuestionFinder(memory, mem.scr.k, None if config.ike is None else demonstration_pool(config.ike))
        self._judge = run_judge(config.judge, judgments)
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
        free_texts: bool = False,
        progress: Callable[[int], None] | None = None,
        done: Callable[[Measurement], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Future[Measurement]:
        """Freeze what the memory finds now, then evaluate in the background.

        Args:
            requests: the facts to ask about.
            weights: reference to the version's edited maps.
            latency: also measure ``query_seconds``.
            remembered: ask the memory; else the version is one of which nothing was remembered yet.
            free_texts: also continue openings freely, where the configuration says so.
            progress: called in the background with the number of facts done: 0 when it begins.
            done: called in the background with the result.
            wanted: asked now and then whether it is to go on; the future holds AbandonedError where it is not.
        """
        questions = questions_of(requests)
        hits = self._finder.find(requests, self._config.arms, remembered=remembered)

        def work() -> Measurement:
            started = time.perf_counter()
            if progress is not None:
                progress(0)
            known = self._base_perplexity if version == self._base else None  # submitted before: it is there
            text = None if known is not None else self._text
            evaluation, perplexity = self._pool.evaluate_with_text(requests, weights, hits, text, progress, wanted)
            if self._judge is not None:
                evaluation = judged(evaluation, self._judge)
            if known is not None:
                perplexity = known.result()
            by_text = self._perplexities(version, weights)
            times = self._latency(questions, weights, hits) if latency else {}
            free = self._free.measure(self._pool, requests, weights) if free_texts and self._free is not None else {}
            taken = time.perf_counter() - started
            self.seconds += taken
            result = Measurement(edits, version, evaluation, perplexity, times, taken, by_text, free)
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
        routing, shown = (hits.routing, hits.shown) if isinstance(hits, Findings) else (None, None)
        few = Findings({q: hits[q] for q in chosen}, routing, shown)
        return self._pool.query_seconds(chosen, weights, few, search)

    def close(self) -> None:
        """Drop what has not begun and give up what has; returns when the thread is done with the journal."""
        self._pool.give_up()
        self._thread.shutdown(wait=True, cancel_futures=True)


def check_evaluation(config: EvaluationConfig) -> None:
    """Everything that measuring needs, before anything has started.

    Raises:
        UserError: a file that is measured on is not there or not what it should be, or the judge's key is not set.
    """
    read_held_out(config.held_out)
    read_texts(config.texts)
    run_judge(config.judge)
    if config.free_text is not None:
        FreeTexts(config.free_text)
    if config.ike is not None:
        demonstration_pool(config.ike)


def run_judge(config: JudgeConfig, judgments: Path | None = None) -> Judge | None:
    """The judge of a run, or None for containment, by which evaluation workers judge themselves.

    A language model is asked from here, not from the workers: one process keeps its verdicts and knows its key.

    Raises:
        UserError: the environment variable with the key is not set.
    """
    if isinstance(config, ContainsJudgeConfig):
        return None
    if isinstance(config, LlmJudgeConfig) and config.endpoint.cache is None:
        endpoint = config.endpoint.model_copy(update={"cache": judgments})
        config = config.model_copy(update={"endpoint": endpoint})
    return build_judge(config)


def read_held_out(path: str | None) -> str | None:
    """The held-out text, or None if none is configured.

    Raises:
        UserError: the file is not there or not text.
    """
    if path is None:
        return None
    text = read_text(path, "evaluation.held_out")
    if not text.strip():
        raise UserError(f"evaluation.held_out {path!r} holds no text")
    return text
