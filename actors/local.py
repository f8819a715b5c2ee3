"""The parts of a run in this process, on one model, without Ray: for the Python API and small tools.

The same plain classes as behind the actors do the work, one call after the other. All of them use one loaded model: it
holds the editor's weights between calls, and whoever needs the base's has them set, and set back afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.actors.parts import StreamPart
from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress, Sums, UnitWorker
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker, Hits
from errata.actors.workers.model import VersionedModel
from errata.actors.workers.retrieval import RetrievalWorker
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError, UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.streaming import Sampling
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Snapshot
from errata.editing.verify import Outcome as Said
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.arms import Evaluation
from errata.evaluation.free_text import FreeText
from errata.evaluation.outcomes import Arm
from errata.evaluation.patience import ENDLESS, Patience
from errata.evaluation.sampling import SamplingConfig
from errata.retrieval.ike import Asked, DemonstrationPool, InContext
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import Hit, MemoryEntry
from errata.retrieval.router import Findings, FittedRouter, RouterConfig, Routing


class SharedModel:
    """One model for an editor and for those who look at other versions; one call at a time, from any thread."""

    def __init__(self, model: EditableModel, layers: Sequence[int]) -> None:
        self.model, self.layers = model, tuple(layers)
        self.lock = threading.RLock()
        self.unedited: dict[int, Tensor] = model.weights(self.layers)
        """Float32 maps before any edit."""

    def reset(self) -> None:
        """Take every edit out."""
        self.model.set_weights(self.unedited)

    @contextmanager
    def as_base(self) -> Iterator[VersionedModel]:
        """Inside, the model is the unedited one, to be shown at any version; afterwards it is the editor's again."""
        with self.lock, self.model.patched(self.layers):
            self.reset()
            yield VersionedModel(self.model)


class LocalEditor:
    """The stateful editor; it never dies."""

    def __init__(self, shared: SharedModel, worker: EditorWorker, history: Callable[[], Iterable[HistoryItem]]) -> None:
        self._shared, self._worker, self._history = shared, worker, history

    def give_up(self) -> None:
        """A call in this process cannot be ended from outside."""

    def contexts(self) -> tuple[str, ...]:
        """The context prefixes in use."""
        return tuple(self._worker.contexts)

    def map_widths(self) -> dict[int, int]:
        """d_in of every edited map."""
        return self._worker.map_widths()

    def restore(self) -> None:
        """Replay the whole history from the unedited model."""
        items = iter(self._history())
        first = next(items, None)
        self.begin(first if isinstance(first, KeyCovariance) else None)
        if first is not None and not isinstance(first, KeyCovariance):
            self.replay(first)
        for item in items:
            self.replay(item)

    def begin(self, covariance: KeyCovariance | None) -> None:
        """Begin a restoration item by item, on the unedited model."""
        with self._shared.lock:
            self._shared.reset()
            self._worker.start(covariance)

    def replay(self, item: HistoryItem) -> None:
        """The next item of such a restoration."""
        with self._shared.lock:
            self._worker.replay(item)

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        """Requests whose keys a batch must tell if it writes these facts."""
        with self._shared.lock:
            return self._worker.session().keys_wanted(tuple(fact_keys))

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
        """Write a batch; the weights have changed when this returns."""
        with self._shared.lock:
            return self._worker.session().apply(batch)

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None:
        """Compute a batch and forget it."""
        with self._shared.lock:
            self._worker.rehearse(requests)

    def ask(self, requests: Sequence[EditRequest]) -> list[Said]:
        """Whether the model says, as it is now, what each request asked for."""
        with self._shared.lock:
            return self._worker.session().ask(requests)

    def swap(self, covariance: KeyCovariance) -> None:
        """Continue on another covariance."""
        with self._shared.lock:
            self._worker.session().swap_covariance(covariance)

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        """Take edits out; the weights have changed when this returns."""
        with self._shared.lock:
            return self._worker.revert(order, items())

    def snapshot(self) -> Snapshot:
        """The editor as it stands."""
        with self._shared.lock:
            return self._worker.session().snapshot()

    def weights(self) -> dict[int, Tensor]:
        """Copies of the edited maps, float32, by layer."""
        with self._shared.lock:
            return self._worker.session().weights()

    def norms(self) -> dict[int, float]:
        """Frobenius norms of the edited matrices."""
        with self._shared.lock:
            return self._worker.session().norms()


class LocalMemory:
    """The external memory, made when something is searched for first: who never asks it needs no embedder."""

    def __init__(self, make: Callable[[], RetrievalWorker], entries: Callable[[], Sequence[MemoryEntry]]) -> None:
        self._make, self._entries = make, entries
        self._made: RetrievalWorker | None = None
        self._lock = threading.RLock()

    def _worker(self) -> RetrievalWorker:
        with self._lock:
            if self._made is None:
                made = self._make()
                made.sync(list(self._entries()))
                self._made = made
            return self._made

    def restore(self) -> int:
        """Add everything the journal says it should hold; returns how many statements are active."""
        return self._worker().sync(list(self._entries()))

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        """Add statements; a memory that is not made yet will find them in the journal."""
        return 0 if self._made is None else self._made.memory.learn(entries)

    def remove(self, ids: Sequence[int]) -> int:
        """Forget statements; a memory that is not made yet never has them."""
        return 0 if self._made is None else self._made.remove(ids)

    def sync(self, entries: Iterable[MemoryEntry]) -> int:
        """Hold these statements and no others; a memory that is not made yet will find them in the journal."""
        return 0 if self._made is None else self._made.sync(entries)

    def mark(self) -> tuple[int, str] | None:
        """None: it finds in the journal what it is to hold when it is made."""
        return None

    def save(self, mark: tuple[int, str]) -> None:
        """Keep it as it stands, where it is made."""
        if self._made is not None:
            self._made.save(mark)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k nearest active statements of each question, best first."""
        with self._lock:
            return self._worker().memory.search(questions, k)

    def search_seconds(self, questions: Sequence[str], k: int) -> float:
        """Mean wall seconds of embedding and searching one question alone."""
        with self._lock:
            return self._worker().search_seconds(questions, k)

    def digest(self) -> str:
        """Digest of the active content."""
        return self._worker().memory.digest

    def route(self, questions: Sequence[str], k: int) -> Routing:
        """The router in force and each question's candidates."""
        with self._lock:
            return self._worker().route(questions, k)

    def among(self, questions: Sequence[str], entries: Sequence[MemoryEntry], k: int) -> Findings:
        """What a memory of these statements alone finds."""
        with self._lock:
            return self._worker().among(questions, entries, k)

    def in_context(self, pool: DemonstrationPool, asked: Sequence[Asked], without: Sequence[str]) -> InContext:
        """Facts and demonstrations for questions of an evaluation."""
        with self._lock:
            return self._worker().in_context(pool, asked, without)

    def resolved(self, turns: Sequence[str]) -> str:
        """The last turn of a conversation, with what it refers to."""
        with self._lock:
            return self._worker().memory.resolved(turns)

    def router(self) -> FittedRouter:
        """The router in force."""
        with self._lock:
            return self._worker().router()


class LocalEvaluators:
    """Puts questions to versions on the shared model; ``weights`` are maps by layer, none for the base."""

    def __init__(self, shared: SharedModel, spec: ModelSpec, role: RoleConfig, settings: EvaluationSettings) -> None:
        self._shared, self._spec, self._role, self._settings = shared, spec, role, settings

    @contextmanager
    def _worker(self, arms: Sequence[Arm] | None = None) -> Iterator[EvaluationWorker]:
        settings = self._settings if arms is None else replace(self._settings, arms=tuple(arms))
        with self._shared.as_base() as versioned:
            yield EvaluationWorker(self._spec, self._role, settings, versioned)

    def evaluate(
        self,
        requests: Sequence[EditRequest],
        weights: Mapping[int, Tensor],
        hits: Hits,
        arms: Sequence[Arm] | None = None,
    ) -> Evaluation:
        """Every probe of every request on every arm; ``arms`` where they are not those of the settings."""
        with self._worker(arms) as worker:
            return worker.evaluate(list(requests), weights, hits)

    def evaluate_with_text(
        self,
        requests: Sequence[EditRequest],
        weights: Mapping[int, Tensor],
        hits: Hits,
        text: str | None,
        progress: Callable[[int], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> tuple[Evaluation, float | None]:
        """As ``evaluate``, with the version's perplexity on a text where one is given."""
        return self.evaluate(requests, weights, hits), None if text is None else self.perplexity(text, weights)

    def query_seconds(
        self, questions: Sequence[str], weights: Mapping[int, Tensor], hits: Hits, search_seconds: float
    ) -> dict[Arm, float]:
        """Mean wall seconds of one question asked alone, by arm."""
        with self._worker() as worker:
            return worker.query_seconds(questions, weights, hits, search_seconds)

    def perplexity(self, text: str | Sequence[str], weights: Mapping[int, Tensor]) -> float:
        """Perplexity of a version on held-out text, or documents."""
        with self._worker() as worker:
            return worker.perplexity(text, weights)

    def perplexities(self, texts: Mapping[str, Sequence[str]], weights: Mapping[int, Tensor]) -> dict[str, float]:
        """Perplexity of a version on each of several texts, given as documents."""
        return {name: self.perplexity(documents, weights) for name, documents in texts.items()}

    def continuations(
        self, prompts: Sequence[str], weights: Mapping[int, Tensor], max_new_tokens: int, chat: bool
    ) -> list[str]:
        """What a version says after each prompt."""
        with self._worker() as worker:
            return worker.continuations(prompts, weights, max_new_tokens, chat)

    def free_texts(
        self, openings: Mapping[str, Sequence[str]], weights: Mapping[int, Tensor], sampling: SamplingConfig
    ) -> dict[str, FreeText]:
        """Sampled continuations of each fact's openings by a version."""
        with self._worker() as worker:
            return worker.free_texts(openings, weights, sampling)

    def answer(
        self,
        questions: Sequence[Question],
        weights: Mapping[int, Tensor],
        hits: Hits,
        arms: Sequence[Arm],
        max_new_tokens: int | None = None,
        *,
        patience: Patience = ENDLESS,
    ) -> list[dict[Arm, ArmAnswer]]:
        """What the arms say to free questions; one call after another, each to its end."""
        with self._worker(arms) as worker:
            return worker.answer(questions, weights, hits, arms, max_new_tokens)

    def stream(
        self,
        question: Question,
        weights: Mapping[int, Tensor],
        hits: Hits,
        arm: Arm,
        sampling: Sampling,
        plain: bool = False,
        *,
        patience: Patience = ENDLESS,
    ) -> StreamPart:
        """Token by token the model would be another's between two tokens.

        Raises:
            UserError: always; ``answer`` gives the whole.
        """
        raise UserError("an editor in this process gives whole answers; `errata serve` streams them")

    def give_up(self) -> None:
        """Nothing is under way between calls."""


class LocalEstimator:
    """Estimates covariances block by block, added in the order in which a cluster adds them."""

    def __init__(self, shared: SharedModel, spec: ModelSpec, role: RoleConfig) -> None:
        self._shared, self._spec, self._role = shared, spec, role

    def estimate(
        self,
        job: EstimateJob,
        weights: Mapping[int, Tensor],
        progress: Callable[[EstimateProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Estimate:
        """Run a job to its end.

        Raises:
            ErrataError: ``stop`` was set.
        """
        started = time.perf_counter()
        per_block, left = job.per_unit * job.units_per_block, job.most
        most = left
        tree, blocks, tokens = _Tree(), 0, 0
        documents: list[tuple[float, int]] = []
        openings: list[tuple[str, ...]] = []
        # the version that is estimated has the model to itself: editing waits, as there is one model only
        with self._shared.as_base() as versioned:
            worker = UnitWorker(self._spec, self._role, versioned)
            while (left is None or left > 0) and (job.tokens is None or tokens < job.tokens):
                if stop is not None and stop.is_set():
                    raise ErrataError("the covariance estimate was given up")
                take = per_block if left is None else min(left, per_block)
                info, sums = worker.block(job, blocks, take, weights)
                tree.push(sums)
                blocks, tokens, left = blocks + 1, tokens + info.tokens, None if left is None else left - take
                documents += info.documents
                openings += info.openings
                if progress is not None:
                    done = tokens / job.tokens if job.tokens is not None else 1 - (left or 0) / max(most or 1, 1)
                    progress(_progress(tokens, min(done, 1.0), time.perf_counter() - started))
        tensors = {layer: torch.from_numpy(value) for layer, value in sorted(tree.total().items())}
        covariance = KeyCovariance(tensors, tokens, job.source(self._spec.dtype))
        return Estimate(covariance, tuple(documents), time.perf_counter() - started, 0, tuple(openings))


class _Tree:
    """Sums added by pairs as they come, like the digits of a binary counter; the rest from the left at the end."""

    def __init__(self) -> None:
        self._levels: list[tuple[int, Sums]] = []

    def push(self, sums: Sums) -> None:
        level = 0
        while self._levels and self._levels[-1][0] == level:
            sums = _added(self._levels.pop()[1], sums)
            level += 1
        self._levels.append((level, sums))

    def total(self) -> Sums:
        total = self._levels[0][1]
        for _, sums in self._levels[1:]:
            total = _added(total, sums)
        return total


def _added(left: Sums, right: Sums) -> Sums:
    return {layer: left[layer] + right[layer] for layer in left}


def _progress(tokens: int, share: float, seconds: float) -> EstimateProgress:
    rate = tokens / max(seconds, 1e-9)
    return EstimateProgress(tokens, share, rate, seconds * (1 - share) / share if share > 0 else None, 0, rate)


class LocalParts:
    """What `errata.actors.cluster.Cluster` offers, in this process, on a model that is loaded already."""

    def __init__(self, model: EditableModel, spec: ModelSpec, layers: Sequence[int], role: RoleConfig) -> None:
        """``layers`` are the editor's; ``role`` says on how many threads the plain classes run."""
        self._spec, self._role = spec, role
        self.shared = SharedModel(model, layers)

    def estimator(self) -> LocalEstimator:
        """What estimates covariances."""
        return LocalEstimator(self.shared, self._spec, self._role)

    def editor(
        self, editor_config: Any, contexts: ContextSpec, history: Callable[[], Iterable[HistoryItem]]
    ) -> LocalEditor:
        """The stateful editor."""
        worker = EditorWorker(self._spec, self._role, editor_config, contexts, self.shared.model)
        return LocalEditor(self.shared, worker, history)

    def memory(
        self,
        embedder_config: Any,
        index_config: IndexConfig,
        entries: Callable[[], Sequence[MemoryEntry]],
        kept_in: Path | None = None,
        router: RouterConfig | None = None,
    ) -> LocalMemory:
        """The external memory."""
        return LocalMemory(lambda: RetrievalWorker(embedder_config, index_config, kept_in, router), entries)

    def evaluators(self, settings: EvaluationSettings) -> LocalEvaluators:
        """What puts questions to versions."""
        return LocalEvaluators(self.shared, self._spec, self._role, settings)
