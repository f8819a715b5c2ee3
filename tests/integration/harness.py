"""What the tests of whole runs share: a dozen facts, settings that take seconds, and a cluster without Ray.

`PlainCluster` offers what `errata.actors.cluster.Cluster` does: the same plain classes called one after the other in
this process. It is the slow, readable form that a distributed run must equal bit for bit, and it lets a crash be
tried at every commit point without starting a dozen processes each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import errata.actors.cluster
import errata.orchestrator.run.opening
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.covariance import Estimate, EstimateJob, UnitWorker
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker
from errata.editing.checkpoint.load import checkpoint_digest
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.editing.request import EditRequest
from errata.editing.session import EditSession
from errata.evaluation.arms import Evaluation
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.launch import run_experiment
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.tracking.tracker import NullTracker
from tests.helpers.memory import HeldMemory

Weights = dict[int, torch.Tensor]

_PLACES = ("France", "Canada", "Italy", "Angola", "Rome", "Paris")
_PEOPLE = ("Danielle Darrieux", "Alice Munro", "Thierry Henry")


def fact(number: int, *, subject: str | None = None, target: str | None = None) -> dict[str, Any]:
    """One record in the project's own schema, about a subject of its own."""
    name = subject or f"{_PEOPLE[number % 3]} {number}"
    return {
        "id": f"fact-{number}",
        "subject": name,
        "prompt": "{} works in",
        "target_new": target or _PLACES[number % 6],
        "target_true": _PLACES[(number + 1) % 6],
        "relation": "place of work",
        "paraphrases": [f"The place where {name} works is"],
        "neighborhood": [{"prompt": f"Person {number} works in", "answer": _PLACES[(number + 1) % 6]}],
        "portability": [{"prompt": f"The capital of the land of {name} is", "answers": ["Paris"]}],
    }


def facts(count: int = 12) -> list[dict[str, Any]]:
    """Records of which the eighth overwrites the second, in a later batch."""
    records = [fact(number) for number in range(count)]
    if count > 7:
        records[7] = fact(7, subject=records[1]["subject"], target="yes")
    return records


def write_stream(path: Path, records: Iterable[dict[str, Any] | str]) -> Path:
    """JSON Lines; a string is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def settings(model: Path, stream: Path, /, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A run of seconds: batches of three, a refresh at six edits in force at nine, three timeline points."""
    held_out = stream.parent / "held_out.txt"
    held_out.write_text("The capital of France is Paris.\n\nRome lies in Italy. Angola is located in Africa.\n")
    data: dict[str, dict[str, Any] | Any] = {
        "name": "tiny",
        "model": {"name": str(model)},
        "editor": {"type": "alphaedit", "layers": [1, 2], "tau": 5.0, "values": {"steps": 3, "lr": 0.5}},
        "contexts": {"count": 1, "length": 3},
        "stream": {"path": str(stream)},
        "batching": {"size": 3},
        "covariance": {"tokens": 150, "max_new_tokens": 8, "sequences_per_unit": 4, "slots": 4},
        "refresh": {"every": 6, "lag": 3},
        "evaluation": {"every": 6, "sample": 2, "max_new_tokens": 3, "latency_questions": 1, "held_out": str(held_out)},
        "memory": {"embedder": {"type": "hash"}},
        "ray": {"generation_workers": 1, "evaluation_workers": 0},
    }
    for section, changes in sections.items():
        data[section] = {**data.get(section, {}), **changes}
    return data


def config(model: Path, stream: Path, /, **sections: Mapping[str, Any]) -> RunConfig:
    """`settings` as a checked configuration."""
    return build_config(settings(model, stream, **sections))


# ---------------------------------------------------------------- the cluster without Ray


class PlainEstimator:
    """Blocks one after the other, added by pairs as a tree that grows to the left."""

    def __init__(self, config: RayConfig, spec: ModelSpec) -> None:
        self._config, self._spec = config, spec
        self._worker: UnitWorker | None = None

    def estimate(
        self, job: EstimateJob, weights: Any, progress: Any = None, stop: threading.Event | None = None
    ) -> Estimate:
        if self._worker is None:
            self._worker = UnitWorker(self._spec, self._config.generation)
        per_block = job.generation.sequences_per_unit * job.units_per_block
        left = job.sequences if job.sequences is not None else None
        blocks: list[dict[int, np.ndarray[Any, Any]]] = []
        tokens, documents = 0, list[tuple[float, int]]()
        while tokens < job.tokens if job.tokens is not None else bool(left):
            if stop is not None and stop.is_set():
                raise ErrataError("given up")
            take = per_block if left is None else min(left, per_block)
            info, sums = self._worker.block(job, len(blocks), take, weights)
            left = None if left is None else left - take
            blocks.append(sums)
            tokens += info.tokens
            documents += info.documents
        total = tree_sum(blocks)
        tensors = {layer: torch.from_numpy(np.array(value)) for layer, value in sorted(total.items())}
        covariance = KeyCovariance(tensors, tokens, job.source(self._spec.dtype))
        return Estimate(covariance, tuple(documents), 0.01, 0)

    def close(self) -> None:
        self._worker = None


def tree_sum(blocks: Sequence[Mapping[int, Any]]) -> dict[int, Any]:
    """The fixed order of addition, written down the plain way: the largest power of two first, halves by halves."""

    def perfect(part: Sequence[Mapping[int, Any]]) -> dict[int, Any]:
        if len(part) == 1:
            return dict(part[0])
        half = len(part) // 2
        left, right = perfect(part[:half]), perfect(part[half:])
        return {layer: left[layer] + right[layer] for layer in left}

    size = 1 << (len(blocks).bit_length() - 1)
    total, rest = perfect(blocks[:size]), list(blocks[size:])
    while rest:
        size = 1 << (len(rest).bit_length() - 1)
        addend = perfect(rest[:size])
        total = {layer: total[layer] + addend[layer] for layer in total}
        rest = rest[size:]
    return total


class PlainEditor:
    """`EditorClient` without an actor: the worker itself, which never dies."""

    def __init__(self, make: Callable[[], EditorWorker], history: Callable[[], Iterable[Any]]) -> None:
        self._make, self._worker, self._history = make, make(), history

    def contexts(self) -> tuple[str, ...]:
        return self._worker.contexts

    def map_widths(self) -> dict[int, int]:
        return self._worker.map_widths()

    def restore(self) -> None:
        self._worker = self._make()  # another one, on a fresh model
        items = list(self._history())
        first = items.pop(0) if items and isinstance(items[0], KeyCovariance) else None
        self.begin(first)
        for item in items:
            self.replay(item)

    def begin(self, covariance: KeyCovariance | None) -> None:
        self._worker.start(covariance)

    def replay(self, item: Any) -> None:
        self._worker.replay(item)

    def keys_wanted(self, fact_keys: Any) -> tuple[str, ...]:
        return self._worker.session().keys_wanted(fact_keys)

    def rehearse(self, requests: Any, died: Any = None) -> None:
        self._worker.rehearse(requests)

    def ask(self, requests: Any) -> Any:
        return self._worker.session().ask(requests)

    def apply(self, batch: Any, died: Any = None) -> Any:
        return self._worker.session().apply(batch)

    def swap(self, covariance: KeyCovariance) -> None:
        self._worker.session().swap_covariance(covariance)

    def revert(self, order: Any, items: Callable[[], Iterable[Any]]) -> Any:
        return self._worker.revert(order, items())

    def snapshot(self) -> Any:
        return self._worker.session().snapshot()

    def weights(self) -> dict[int, torch.Tensor]:
        return {layer: weight.clone() for layer, weight in self._worker.session().weights().items()}

    def norms(self) -> dict[int, float]:
        return self._worker.session().norms()

    def close(self) -> None:
        pass


class PlainMemory(HeldMemory):
    """`MemoryClient` without an actor."""

    def __init__(self, embedder: Any, index: Any, entries: Callable[[], Sequence[Any]], router: Any = None) -> None:
        super().__init__(embedder, index, None, router)
        self._entries = entries

    def restore(self) -> int:
        return self.sync(list(self._entries()))

    def close(self) -> None:
        pass


class PlainEvaluators(EvaluationWorker):
    """`EvaluationPool` without actors; one call at a time, whichever thread it comes from."""

    _turn = threading.RLock()

    def evaluate(self, requests: Any, weights: Any, hits: Any) -> Evaluation:
        with self._turn:
            return super().evaluate(list(requests), weights, hits)

    def perplexity(self, text: Any, weights: Any) -> float:
        with self._turn:
            return super().perplexity(text, weights)

    def perplexities(self, texts: Any, weights: Any) -> dict[str, float]:
        return {name: self.perplexity(documents, weights) for name, documents in texts.items()}

    def continuations(self, prompts: Any, weights: Any, max_new_tokens: int, chat: bool) -> list[str]:
        with self._turn:
            return super().continuations(prompts, weights, max_new_tokens, chat)

    def free_texts(self, openings: Any, weights: Any, sampling: Any) -> Any:
        with self._turn:
            return super().free_texts(openings, weights, sampling)

    def evaluate_with_text(
        self, requests: Any, weights: Any, hits: Any, text: str | None, progress: Any = None, wanted: Any = None
    ) -> Any:
        return self.evaluate(requests, weights, hits), None if text is None else self.perplexity(text, weights)

    def give_up(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Made:
    """What a `PlainCluster` has handed out, for a test to look at."""

    editor: PlainEditor | None = None
    memory: PlainMemory | None = None


class PlainCluster:
    """Stands in for `errata.actors.cluster.Cluster`."""

    last: Made

    def __init__(self, config: RayConfig, spec: ModelSpec) -> None:
        self._config, self._spec = config, spec
        type(self).last = self._made = Made()

    def __enter__(self) -> PlainCluster:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def estimator(self) -> PlainEstimator:
        return PlainEstimator(self._config, self._spec)

    def editor(self, editor_config: Any, contexts: ContextSpec, history: Callable[[], Iterable[Any]]) -> PlainEditor:
        def make() -> EditorWorker:
            return EditorWorker(self._spec, self._config.editor, editor_config, contexts)

        self._made.editor = PlainEditor(make, history)
        return self._made.editor

    def memory(
        self,
        embedder: Any,
        index: Any,
        entries: Callable[[], Sequence[Any]],
        kept_in: Path | None = None,
        router: Any = None,
    ) -> PlainMemory:
        self._made.memory = PlainMemory(embedder, index, entries, router)
        return self._made.memory

    def evaluators(self, settings: EvaluationSettings) -> PlainEvaluators:
        return PlainEvaluators(self._spec, self._config.evaluation, settings)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Runs use `PlainCluster` and no MLflow while the patch holds."""
    patch.setattr(errata.actors.cluster, "Cluster", PlainCluster)
    patch.setattr(errata.orchestrator.run.opening, "Tracker", lambda *_, **__: NullTracker())


def go(settings: RunConfig, output: Path, *, resume: bool = False) -> Weights:
    """Run to the end without Ray; the final weights."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        run_experiment(settings, output, resume=resume, display=Display(quiet=True))
    editor = PlainCluster.last.editor
    assert editor is not None
    return editor.weights()


# ---------------------------------------------------------------- what a run has come to


@dataclass(frozen=True)
class Outcome:
    """Everything about a finished run that an interruption must not change."""

    version: str
    deltas: tuple[str | None, ...]
    batches: tuple[tuple[str, ...], ...]
    edits: tuple[int, ...]
    states: dict[str, str]
    applications: dict[str, int]
    swaps: tuple[tuple[int, str, int], ...]
    refreshes: tuple[tuple[int, str, str | None], ...]
    timeline: tuple[int, ...]


def outcome(directory: Path) -> Outcome:
    """Read off the journal."""
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        versions = journal.versions()
        names = [row.id for row in journal.requests()]
        return Outcome(
            version=journal.head().digest,
            deltas=tuple(version.delta for version in versions),
            batches=tuple(version.request_ids for version in versions[1:]),
            edits=tuple(version.edits for version in versions),
            states={row.id: row.state for row in journal.requests()},
            applications={name: sum(fate.state == "applied" for fate in journal.fates(name)) for name in names},
            swaps=tuple((swap.after_sequence, swap.covariance, swap.edits) for swap in journal.swaps()),
            refreshes=tuple((row.triggered_at, row.state, row.covariance) for row in journal.refreshes()),
            timeline=tuple(sorted({row.edits for row in journal.evaluations("timeline")})),
        )


@contextmanager
def opened(settings: RunConfig, output: Path) -> Iterator[Pipeline]:
    """A started pipeline on the run in ``output``, which is made when absent, without Ray."""
    digest = checkpoint_digest(Path(settings.model.name))
    with errata.orchestrator.run.opening.open_journal(settings, output, digest) as journal:
        store = open_store(output)
        store.sweep()
        with PlainCluster(settings.ray, settings.model_spec(digest)) as cluster:
            pipeline = make_pipeline(
                settings,
                journal,
                store,
                cluster,  # type: ignore[arg-type]
                tracker=NullTracker(),
                display=Display(quiet=True),
            )
            try:
                pipeline.start()
                yield pipeline
            finally:
                pipeline.close()


def asked(records: list[dict[str, Any]]) -> list[EditRequest]:
    """Records of ``facts`` as requests."""
    return [EditRequest.model_validate({k: v for k, v in record.items() if k != "neighborhood"}) for record in records]


def write_all(pipeline: Pipeline) -> None:
    """Until nothing waits."""
    while pipeline.write_next(ended=True) is not None:
        pass


def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequence numbers of the commits that are replayed from now on."""
    plain, seen = EditSession.replay, list[int]()

    def replay(self: EditSession, receipt: Any) -> None:
        seen.append(receipt.sequence)
        plain(self, receipt)

    monkeypatch.setattr(EditSession, "replay", replay)
    return seen


def scenario(name: str, *arguments: object) -> dict[str, Any]:
    """Run a module of ``tests.integration.scenarios``, which starts a cluster of its own; what it prints last."""
    command = [sys.executable, "-m", f"tests.integration.scenarios.{name}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
