"""Workers that generate and evaluate on one loaded model, where memory or time for a second one is short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from torch import Tensor

from errata.actors.covariance import BLOCK_RETURNS, handed_over
from errata.actors.evaluation import EvaluationPool
from errata.actors.reduction import Piece
from errata.actors.runtime import WorkerGroup, make_actor, still_wanted
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.covariance import BlockInfo, EstimateJob, KeyCheck, UnitWorker
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker, Hits
from errata.actors.workers.model import VersionedModel, load_for, yield_to_others
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditRequest
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.arms import Evaluation
from errata.evaluation.free_text import FreeText
from errata.evaluation.outcomes import Arm
from errata.evaluation.sampling import SamplingConfig
from errata.evaluation.streaming import Opened, TextPiece


@ray.remote
class SharedActor:
    """Shell of a `UnitWorker` and an `EvaluationWorker` over one model; calls are done one after another."""

    def __init__(self, spec: ModelSpec, role: RoleConfig) -> None:
        yield_to_others(role)
        self._spec, self._role = spec, role
        self._versioned = VersionedModel(load_for(role, spec))
        self._units = UnitWorker(spec, role, self._versioned)

    def ready(self) -> str:
        """The node this is on; answered once the model is loaded and what was asked before is done."""
        return str(ray.get_runtime_context().get_node_id())

    def put_questions_by(self, settings: EvaluationSettings) -> None:
        """How questions are put from now on; comes before the first one."""
        self._questions = EvaluationWorker(self._spec, self._role, settings, self._versioned, still_wanted)

    @ray.method(num_returns=BLOCK_RETURNS)
    def block(
        self, job: EstimateJob, index: int, sequences: int, weights: Mapping[int, Tensor]
    ) -> tuple[BlockInfo | Piece | None, ...]:
        return handed_over(*self._units.block(job, index, sequences, weights))

    def check(self, job: EstimateJob, sequences: int, weights: Mapping[int, Tensor]) -> KeyCheck:
        return self._units.check(job, sequences, weights)

    def evaluate(self, requests: Sequence[EditRequest], weights: Mapping[int, Tensor], hits: Hits) -> Evaluation:
        return self._questions.evaluate(requests, weights, hits)

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        return self._questions.query_seconds(questions, weights, hits, search_seconds)

    def perplexity(self, text: str | Sequence[str], weights: Mapping[int, Tensor]) -> float:
        return self._questions.perplexity(text, weights)

    def continuations(
        self, prompts: Sequence[str], weights: Mapping[int, Tensor], max_new_tokens: int, chat: bool
    ) -> list[str]:
        return self._questions.continuations(prompts, weights, max_new_tokens, chat)

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Mapping[int, Tensor], sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        return self._questions.free_texts(openings, weights, sampling)

    def answer(
        self,
        questions: Sequence[Question],
        weights: Mapping[int, Tensor],
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None,
    ) -> list[dict[Arm, ArmAnswer]]:
        return self._questions.answer(questions, weights, hits, arms, max_new_tokens)

    def open_stream(
        self, question: Question, weights: Mapping[int, Tensor], hits: Hits, arm: Arm, sampling: Sampling, plain: bool
    ) -> tuple[int, Opened]:
        return self._questions.open_stream(question, weights, hits, arm, sampling, plain)

    def next_piece(self, number: int, tokens: int) -> TextPiece:
        return self._questions.next_piece(number, tokens)

    def close_stream(self, number: int) -> None:
        self._questions.close_stream(number)


def shared_workers(config: RayConfig, spec: ModelSpec) -> WorkerGroup:
    """As many as generate, with the resources of the generation role."""
    role = config.generation
    return WorkerGroup(
        lambda: make_actor(SharedActor, role, spec, role),
        config.generation_workers,
        most_revivals=config.max_revivals,
        within=config.revival_seconds,
        what="workers",
    )


def evaluators_on(
    workers: WorkerGroup, config: RayConfig, spec: ModelSpec, settings: EvaluationSettings
) -> EvaluationPool:
    """Evaluation by shared workers."""
    workers.prepare(lambda actor: actor.put_questions_by.remote(settings))
    return EvaluationPool(config, spec, settings, workers)
