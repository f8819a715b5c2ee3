"""What a run needs of the places where its parts live: interfaces that `errata.actors.cluster` and, without Ray,
`errata.actors.local` offer alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress
from errata.actors.workers.editor import ContextSpec
from errata.actors.workers.evaluation import EvaluationSettings, Hits
from errata.editing.covariance import KeyCovariance
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Snapshot
from errata.editing.verify import Outcome
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.arms import Evaluation
from errata.evaluation.free_text import FreeText
from errata.evaluation.outcomes import Arm
from errata.evaluation.patience import ENDLESS, Patience
from errata.evaluation.sampling import SamplingConfig
from errata.evaluation.streaming import Opened, TextPiece
from errata.retrieval.ike import Asked, DemonstrationPool, InContext
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import Hit, MemoryEntry
from errata.retrieval.router import Findings, FittedRouter, RouterConfig, Routing


class EditorPart(Protocol):
    """The stateful editor."""

    def give_up(self) -> None:
        """End it for good, whatever it is at; from any thread."""

    def contexts(self) -> tuple[str, ...]:
        """The context prefixes in use, from now on fixed."""

    def map_widths(self) -> dict[int, int]:
        """d_in of every edited map."""

    def restore(self) -> None:
        """Replay the whole history into a fresh editor."""

    def begin(self, covariance: KeyCovariance | None) -> None:
        """Begin a restoration item by item."""

    def replay(self, item: HistoryItem) -> None:
        """The next item of such a restoration."""

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        """Requests whose keys a batch must tell if it writes these facts."""

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
        """Write a batch; the weights have changed when this returns. ``died`` is told of deaths with it in hand."""

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None:
        """Compute a batch and forget it, to see whether the editor outlives that."""

    def ask(self, requests: Sequence[EditRequest]) -> list[Outcome]:
        """Whether the model says, as it is now, what each request asked for."""

    def swap(self, covariance: KeyCovariance) -> None:
        """Continue on another covariance."""

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        """Take edits out; the weights have changed when this returns."""

    def snapshot(self) -> Snapshot:
        """The editor as it stands."""

    def weights(self) -> Any:
        """The edited maps by layer as they are now, or a reference to them; passed on without being looked at."""

    def norms(self) -> dict[int, float]:
        """Frobenius norms of the edited matrices."""


class MemoryPart(Protocol):
    """The external memory."""

    def restore(self) -> int:
        """Add everything the journal says it should hold; returns how many statements are active."""

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements; adding one twice changes nothing."""

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements by id."""

    def sync(self, entries: Iterable[MemoryEntry]) -> int:
        """Hold these statements and no others; returns how many are active. A part that does not need them yet does
        not iterate."""

    def mark(self) -> tuple[int, str] | None:
        """Number and digest of the version that the memory was found saved at; None where it began empty."""

    def save(self, mark: tuple[int, str]) -> None:
        """Keep the memory as it stands, as that of a version, so that a restart goes on from there."""

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first."""

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates."""

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        """What a memory of these statements alone finds, at most one of a fact; for questions about another time."""

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions of an evaluation; none of these names a subject of ``without``."""

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""

    def router(self) -> FittedRouter:
        """The router in force."""

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone."""

    def digest(self) -> str:
        """Digest of the active content."""


class StreamPart(Protocol):
    """An answer under way."""

    @property
    def opened(self) -> Opened:
        """What it rests on."""

    @property
    def next(self) -> Callable[[int], TextPiece]:
        """Gives up to so many tokens more."""

    @property
    def close(self) -> Callable[[], object]:
        """Nobody wants the rest."""


class EvaluationPart(Protocol):
    """What puts questions to frozen versions; ``weights`` are maps by layer, or a reference to them."""

    def evaluate(self, requests: Sequence[EditRequest], weights: Any, hits: Hits) -> Evaluation:
        """Every probe of every request on every arm."""

    def evaluate_with_text(
        self,
        requests: Sequence[EditRequest],
        weights: Any,
        hits: Hits,
        text: str | None,
        progress: Callable[[int], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> tuple[Evaluation, float | None]:
        """As ``evaluate``, with the version's perplexity on a text where one is given.

        ``progress`` is called with the number of requests that are done, now and then, from the calling thread;
        ``wanted`` is asked now and then whether it is to go on, and AbandonedError raised where it is not.
        """

    def query_seconds(
        self, questions: Sequence[str], weights: Any, hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm."""

    def perplexity(self, text: str, weights: Any) -> float:
        """Perplexity of a version on held-out text."""

    def perplexities(self, texts: Mapping[str, Sequence[str]], weights: Any) -> dict[str, float]:
        """Perplexity of a version on each of several texts, given as documents."""

    def continuations(self, prompts: Sequence[str], weights: Any, max_new_tokens: int, chat: bool) -> list[str]:
        """What a version says after each prompt."""

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Any, sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        """Sampled continuations of each fact's openings by a version; no weights for the base."""

    def answer(
        self,
        questions: Sequence[Question],
        weights: Any,
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
        *,
        patience: Patience = ENDLESS,
    ) -> list[dict[Arm, ArmAnswer]]:
        """What the arms say to free questions, while ``patience`` lasts."""

    def stream(
        self,
        question: Question,
        weights: Any,
        hits: Hits,
        arm: Arm,
        sampling: Sampling,
        plain: bool = False,
        *,
        patience: Patience = ENDLESS,
    ) -> StreamPart:
        """Begin an arm's answer to one question, token by token, while ``patience`` lasts."""

    def give_up(self) -> None:
        """End evaluations that are under way with an error."""


class EstimatorPart(Protocol):
    """What estimates covariances."""

    def estimate(
        self,
        job: EstimateJob,
        weights: Any,
        progress: Callable[[EstimateProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Estimate:
        """Run a job to its end; setting ``stop`` gives it up."""


class Parts(Protocol):
    """Where the parts are made: a cluster, or this process."""

    def estimator(self) -> EstimatorPart: ...

    def editor(
        self, editor_config: Any, contexts: ContextSpec, history: Callable[[], Iterable[HistoryItem]]
    ) -> EditorPart: ...

    def memory(
        self,
        embedder_config: Any,
        index_config: IndexConfig,
        entries: Callable[[], Sequence[MemoryEntry]],
        kept_in: Path | None = None,
        router: RouterConfig | None = None,
    ) -> MemoryPart: ...

    def evaluators(self, settings: EvaluationSettings) -> EvaluationPart: ...
