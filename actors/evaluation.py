"""Evaluation workers: frozen versions, records shared out, all arms of a record on one worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from torch import Tensor

from actors.runtime import LOST, check_born, kill, make_actor, unwrap
from actors.settings import ModelSpec, RayConfig, RoleConfig
from actors.worker import VersionedModel, load_for
from editing.errors import ErrataError
from editing.request import EditRequest
from evaluation.arms import ArmEvaluator, Evaluation
from evaluation.caching import CachingEngine
from evaluation.outcomes import Arm
from evaluation.perplexity import perplexity, windows_of
from retrieval.memory import Hit
from retrieval.scr import ScrConfig, SelectiveReasoner

logger = logging.getLogger(__name__)

Hits = Mapping[str, Sequence[Hit]]
_CHUNKS_PER_WORKER = 2


@dataclass(frozen=True)
class EvaluationSettings:
    """How questions are put."""

    scr: ScrConfig
    arms: tuple[Arm, ...]
    max_new_tokens: int = 12
    stop_at_newline: bool = True


class EvaluationWorker:
    """An `ArmEvaluator` on a model loaded in this process. Plain class; `EvaluationActor` is its shell."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, settings: EvaluationSettings) -> None:
        model = load_for(role, spec)
        self._versioned = VersionedModel(model)
        self._settings = settings
        engine = CachingEngine(model)
        self._evaluator = ArmEvaluator(
            model,
            SelectiveReasoner(engine, model.text, settings.scr),
            engine=engine,
            max_new_tokens=settings.max_new_tokens,
            stop_at_newline=settings.stop_at_newline,
        )

    def evaluate(self, requests: Sequence[EditRequest], weights: Mapping[int, Tensor], hits: Hits) -> Evaluation:
        """Every probe of every request on every arm; ``weights`` are the edited maps of the version."""
        return self._evaluator.evaluate(
            requests,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            arms=self._settings.arms,
            base_digest=self._versioned.model.digest,
        )

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm."""
        return self._evaluator.query_seconds(
            questions,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            arms=self._settings.arms,
            search_seconds=search_seconds,
        )

    def perplexity(self, text: str, weights: Mapping[int, Tensor]) -> float:
        """Perplexity of the version on held-out text; no weights for the base."""
        model = self._versioned.model
        with model.patched(sorted(weights)):
            model.set_weights(weights)
            paragraphs = [part for part in text.split("\n\n") if part.strip()]
            return perplexity(self._evaluator.engine, windows_of(model.text, paragraphs)).value


@ray.remote
class EvaluationActor:
    """Shell of `EvaluationWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, settings: EvaluationSettings) -> None:
        self._worker = EvaluationWorker(spec, role, settings)

    def evaluate(self, requests: Sequence[EditRequest], weights: Mapping[int, Tensor], hits: Hits) -> Evaluation:
        return self._worker.evaluate(requests, weights, hits)

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        return self._worker.query_seconds(questions, weights, hits, search_seconds)

    def perplexity(self, text: str, weights: Mapping[int, Tensor]) -> float:
        return self._worker.perplexity(text, weights)


def _ask(part: Sequence[EditRequest], weights: Any, hits: Any, actor: Any) -> Any:
    return actor.evaluate.remote(part, weights, hits)


class EvaluationPool:
    """Shares evaluations out over the workers; a chunk whose worker died is done again by a new one."""

    def __init__(self, config: RayConfig, spec: ModelSpec, settings: EvaluationSettings) -> None:
        self._config, self._spec, self._settings = config, spec, settings
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._revivals = 0
        self._actors: list[Any] = [self._make() for _ in range(config.evaluation_workers)]

    def _make(self) -> Any:
        return make_actor(EvaluationActor, self._config.evaluation, self._spec, self._config.evaluation, self._settings)

    @property
    def actors(self) -> tuple[Any, ...]:
        """Handles of the workers, for fault tests."""
        return tuple(self._actors)

    def evaluate(self, requests: Sequence[EditRequest], weights: Any, hits: Hits) -> Evaluation:
        """Evaluate records against a frozen version; call from any thread.

        Args:
            requests: at least one.
            weights: the edited maps by layer, or a reference to them.
            hits: per question what the memory found at this version.
        """
        chunks = min(len(requests), len(self._actors) * _CHUNKS_PER_WORKER)
        parts = [list(requests[i::chunks]) for i in range(chunks)]
        reference = ray.put(dict(hits))
        done: list[Evaluation] = self._spread([partial(_ask, part, weights, reference) for part in parts])
        by_id = {record.request_id: record for evaluation in done for record in evaluation.records}
        ordered = tuple(by_id[request.id] for request in requests)
        return Evaluation(ordered, done[0].arms, sum(evaluation.seconds for evaluation in done))

    def query_seconds(
        self, questions: Sequence[str], weights: Any, hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm, on one worker."""
        found: list[dict[Arm, float]] = self._spread(
            [lambda actor: actor.query_seconds.remote(list(questions), weights, dict(hits), search_seconds)]
        )
        return found[0]

    def perplexity(self, text: str, weights: Any) -> float:
        """Perplexity of a version on held-out text."""
        found: list[float] = self._spread([lambda actor: actor.perplexity.remote(text, weights)])
        return found[0]

    def give_up(self) -> None:
        """End evaluations that are under way with an error; call from any thread."""
        self._given_up.set()

    def close(self) -> None:
        """End the workers."""
        self.give_up()
        for actor in self._actors:
            kill(actor)

    def _spread(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """Run the calls over the workers, at most one at a time on each; results in the order of the calls."""
        with self._lock:
            waiting = list(enumerate(calls))
            running: dict[Any, tuple[int, int]] = {}
            idle = list(range(len(self._actors)))
            results: dict[int, Any] = {}
            while waiting or running:
                if self._given_up.is_set():
                    raise ErrataError("the evaluation was given up")
                while waiting and idle:
                    place, call = waiting.pop(0)
                    slot = idle.pop(0)
                    running[call(self._actors[slot])] = (place, slot)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in ready:
                    place, slot = running.pop(reference)
                    idle.append(slot)
                    try:
                        results[place] = ray.get(reference)
                    except LOST as error:
                        if self._given_up.is_set():
                            raise ErrataError("the evaluation was given up") from error
                        check_born(error)
                        self._revive(slot, error)
                        waiting.append((place, calls[place]))
                    except ray.exceptions.RayTaskError as error:
                        raise unwrap(error) from error
            return [results[i] for i in range(len(calls))]

    def _revive(self, slot: int, error: Exception) -> None:
        self._revivals += 1
        if self._revivals > self._config.max_revivals:
            raise ErrataError(
                f"evaluation workers died {self._revivals} times; allowed: ray.max_revivals {self._config.max_revivals}"
            ) from error
        logger.warning("an evaluation worker died (%s); its records are done again", type(error).__name__)
        kill(self._actors[slot])
        self._actors[slot] = self._make()
