"""The evaluator of one process: every arm of a record, on a model whose maps are set to frozen versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.model import VersionedModel, load_for
from errata.editing.errors import AbandonedError
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditRequest
from errata.evaluation.answering import ArmAnswer, Question, answer
from errata.evaluation.arms import ArmEvaluator, Evaluation
from errata.evaluation.caching import CachingEngine
from errata.evaluation.free_text import FreeText, free_texts
from errata.evaluation.outcomes import Arm
from errata.evaluation.perplexity import paragraphs_of, perplexity, windows_of
from errata.evaluation.question_times import query_seconds
from errata.evaluation.reasoning import ReasoningMarks
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from errata.evaluation.streaming import ArmStream, Opened, OpenStreams, TextPiece
from errata.retrieval.memory import Hit
from errata.retrieval.router import Answering, Findings, Route, Router, Routing
from errata.retrieval.scr import ScrConfig, SelectiveReasoner

Hits = Mapping[str, Sequence[Hit]]
"""What the memory found per question; `errata.retrieval.router.Findings` where questions are routed too."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How questions are put."""

    scr: ScrConfig
    arms: tuple[Arm, ...]
    max_new_tokens: int = 12
    stop_at_newline: bool = True
    reasoning: ReasoningMarks | None = None
    routed: Answering = "edited_memory"
    """What answers a question that is routed to a statement."""


class BoundRouter:
    """A router with the candidates of some questions and a model to ask about the doubtful."""

    def __init__(self, routing: Routing, reasoner: SelectiveReasoner, answer: Answering) -> None:
        self.answer, self.digest = answer, routing.fitted.digest
        self._router, self._candidates, self._reasoner = Router(routing.fitted), routing.candidates, reasoner

    def route(self, questions: Sequence[str]) -> list[Route]:
        """One decision a question; call it while the base's weights are live."""
        return self._router.route(questions, [self._candidates.get(q, ()) for q in questions], self._reasoner.shares)


def _ending_unless(wanted: Callable[[], bool]) -> Callable[[], None]:
    def check() -> None:
        if not wanted():
            raise AbandonedError("nobody wants this answer any more")

    return check


class EvaluationWorker:
    """An `ArmEvaluator` on a model loaded in this process. Plain class; `EvaluationActor` is its shell."""

    def __init__(
        self,
        spec: ModelSpec,
        role: RoleConfig,
        settings: EvaluationSettings,
        versioned: VersionedModel | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        """``wanted`` is asked before each pass through the model whether the call under way still is; where it is not,
        the call ends with AbandonedError."""
        self._versioned = versioned or VersionedModel(load_for(role, spec))
        model = self._versioned.model
        self._streams = OpenStreams()
        self._settings = settings
        engine = CachingEngine(model)
        if wanted is not None:
            engine.before_pass = _ending_unless(wanted)
        self._reasoner = SelectiveReasoner(engine, model.text, settings.scr, capacity=model.capacity)
        self._evaluator = ArmEvaluator(
            model,
            self._reasoner,
            engine=engine,
            max_new_tokens=settings.max_new_tokens,
            stop_at_newline=settings.stop_at_newline,
            reasoning=settings.reasoning,
        )

    def evaluate(self, requests: Sequence[EditRequest], weights: Mapping[int, Tensor], hits: Hits) -> Evaluation:
        """Every probe of every request on every arm; ``weights`` are the edited maps of the version."""
        self._versioned.show_base()
        return self._evaluator.evaluate(
            requests,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            arms=self._settings.arms,
            base_digest=self._versioned.model.digest,
            router=self._bound(hits),
            in_context=hits.shown if isinstance(hits, Findings) else None,
        )

    def _bound(self, hits: Hits) -> BoundRouter | None:
        routing = hits.routing if isinstance(hits, Findings) else None
        return (
            None if routing is None else BoundRouter(routing, self._reasoner, routing.answer or self._settings.routed)
        )

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm."""
        self._versioned.show_base()
        return query_seconds(
            self._evaluator,
            questions,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            arms=self._settings.arms,
            search_seconds=search_seconds,
            router=self._bound(hits),
            in_context=hits.shown if isinstance(hits, Findings) else None,
        )

    def perplexity(self, text: str | Sequence[str], weights: Mapping[int, Tensor]) -> float:
        """Perplexity of the version on held-out text, or documents; no weights for the base."""
        self._versioned.show_base()
        model = self._versioned.model
        with model.patched(sorted(weights)):
            model.set_weights(weights)
            return perplexity(self._evaluator.engine, windows_of(model.text, paragraphs_of(text))).value

    def continuations(
        self, prompts: Sequence[str], weights: Mapping[int, Tensor], max_new_tokens: int, chat: bool
    ) -> list[str]:
        """What the version says after each prompt, greedily, or to it as a chat message; no weights for the base."""
        self._versioned.show_base()
        model = self._versioned.model
        with model.patched(sorted(weights)):
            model.set_weights(weights)
            encode = model.text.encode_prompt
            rows = [model.text.encode_chat([{"role": "user", "content": p}]) if chat else encode(p) for p in prompts]
            return [answer.text for answer in self._evaluator.engine.generate(rows, max_new_tokens=max_new_tokens)]

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Mapping[int, Tensor], sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        """Sampled continuations of each fact's openings by the version; no weights for the base."""
        self._versioned.show_base()
        model = self._versioned.model
        with model.patched(sorted(weights)):
            model.set_weights(weights)
            return free_texts(SamplingEngine(model), openings, sampling=sampling)

    def answer(
        self,
        questions: Sequence[Question],
        weights: Mapping[int, Tensor],
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None,
    ) -> list[dict[Arm, ArmAnswer]]:
        """What the arms say to free questions."""
        self._versioned.show_base()
        return answer(
            self._evaluator,
            self._reasoner,
            questions,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            arms=arms,
            base_digest=self._versioned.model.digest,
            max_new_tokens=max_new_tokens,
            router=self._bound(hits),
        )

    def open_stream(
        self, question: Question, weights: Mapping[int, Tensor], hits: Hits, arm: Arm, sampling: Sampling, plain: bool
    ) -> tuple[int, Opened]:
        """Decide what an arm's answer rests on and run its prompt; its number, for `next_piece`."""
        self._versioned.show_base()
        stream = ArmStream(
            self._evaluator,
            self._reasoner,
            question,
            arm,
            sampling,
            base=self._versioned.base(tuple(weights)),
            edited=weights,
            hits=hits,
            router=self._bound(hits),
            plain=plain,
        )
        return self._streams.add(stream), stream.opened

    def next_piece(self, number: int, tokens: int) -> TextPiece:
        """Up to so many tokens more of an answer under way."""
        self._versioned.show_base()
        return self._streams.next(number, tokens)

    def close_stream(self, number: int) -> None:
        """Nobody wants the rest of an answer."""
        self._streams.close(number)
