"""What the memory knows of the questions of an evaluation, for whichever arms are asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from errata.actors.parts import MemoryPart
from errata.actors.workers.evaluation import Hits
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.outcomes import IKE_ARMS, MEMORY_ARMS, Arm
from errata.evaluation.probes import probes_of, questions_of
from errata.retrieval.ike import Asked, DemonstrationPool, IkeConfig, InContext
from errata.retrieval.memory import Hit
from errata.retrieval.router import Findings, Routing


def demonstration_pool(config: IkeConfig) -> DemonstrationPool:
    """The demonstrations of a training split.

    Raises:
        UserError: the file is not there, is no data set, or no record of it gives one.
    """
    records = open_dataset(config.demonstrations, config.schema_, limit=config.records)
    requests = [record.request.cleaned() for record in records if isinstance(record, ValidRecord)]
    pool = DemonstrationPool.of(requests, config)
    if not pool.demonstrations:
        raise UserError(f"evaluation.ike.demonstrations {config.demonstrations!r} holds no record to demonstrate with")
    return pool


class Finds(Protocol):
    """What of `errata.actors.parts.MemoryPart` is needed."""

    def search(self, questions: Sequence[str], k: int) -> Sequence[Sequence[Hit]]: ...

    def route(self, questions: Sequence[str], k: int) -> Routing: ...


def findings(memory: Finds, questions: Sequence[str], k: int, arms: Collection[Arm]) -> Findings:
    """What a memory finds for distinct questions, as far as the arms ask it: ``k`` statements each, and candidates for
    the router."""
    near = memory.search(questions, k) if MEMORY_ARMS & set(arms) else [[] for _ in questions]
    routing = memory.route(questions, k) if "routed" in arms else None
    return Findings(dict(zip(questions, near, strict=True)), routing)


class QuestionFinder:
    """Freezes what the memory finds now, so that what is committed later does not reach an evaluation under way."""

    def __init__(self, memory: MemoryPart, k: int, pool: DemonstrationPool | None) -> None:
        """``k``: statements looked up for a question; ``pool``: for the arms of in-context editing."""
        self._memory, self._k, self._pool = memory, k, pool

    def find(self, requests: Sequence[EditRequest], arms: Collection[Arm], *, remembered: bool = True) -> Hits:
        """Per question of these facts the nearest statements, and beside them what the arms need.

        Args:
            remembered: ask the memory; else the version is one of which nothing was remembered yet.

        Raises:
            UserError: an arm of in-context editing, and no demonstrations are configured.
        """
        questions = questions_of(requests)
        found = findings(self._memory, questions if remembered else [], self._k, arms)
        shown = self._in_context(requests, remembered) if set(IKE_ARMS) & set(arms) else None
        return Findings({question: found.get(question, []) for question in questions}, found.routing, shown)

    def _in_context(self, requests: Sequence[EditRequest], remembered: bool) -> InContext:
        if self._pool is None:
            raise UserError("the arms 'ike' and 'ike_oracle' need evaluation.ike.demonstrations, a training split")
        if not remembered:
            return InContext()
        asked = {
            Asked(request.id, request.fact_key, probe.prompt) for request in requests for probe in probes_of(request)
        }
        ordered = sorted(asked, key=lambda one: (one.request_id, one.question))
        return self._memory.in_context(self._pool, ordered, [request.subject for request in requests])
