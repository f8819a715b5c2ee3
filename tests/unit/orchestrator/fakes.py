"""A cluster whose editor writes whole numbers: sums of them are exact, so a plain model can say what must come out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.actors.workers.covariance import Estimate
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta, apply_delta
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Part, RequestResult, Snapshot
from errata.retrieval.memory import MemoryEntry

LAYER, WIDTH = 0, 4


def factors(name: str) -> tuple[Tensor, Tensor]:
    """What a request adds to the weights: (4, 1) and (1, 4), small whole numbers."""
    digits = hashlib.sha256(name.encode()).digest()
    numbers = torch.tensor([float(digit % 5 - 2) for digit in digits[: 2 * WIDTH]])
    return numbers[:WIDTH, None].clone(), numbers[None, WIDTH:].clone()


def addition(names: Iterable[str]) -> Tensor:
    """The weights of requests together."""
    total = torch.zeros(WIDTH, WIDTH)
    for name in names:
        left, right = factors(name)
        total += left @ right
    return total


class FakeEditor:
    """What `EditorClient` offers; a target ``bad`` is refused, and reverts give receipts as the real ones do."""

    def __init__(self, history: Callable[[], Iterable[HistoryItem]]) -> None:
        self._history = history
        self._reset(None)

    def _reset(self, covariance: KeyCovariance | None) -> None:
        self.weight = torch.zeros(WIDTH, WIDTH)
        self.held: dict[str, str] = {}
        self.covariance = None if covariance is None else covariance.digest
        self.sequence = 0

    # --- what the pipeline calls ---

    def contexts(self) -> tuple[str, ...]:
        return ("",)

    def map_widths(self) -> dict[int, int]:
        return {LAYER: WIDTH}

    def norms(self) -> dict[int, float]:
        return {LAYER: float(self.weight.norm())}

    def weights(self) -> dict[int, Tensor]:
        return {LAYER: self.weight}

    def begin(self, covariance: KeyCovariance | None) -> None:
        self._reset(covariance)

    def restore(self) -> None:
        items = list(self._history())
        self._reset(items.pop(0) if items and isinstance(items[0], KeyCovariance) else None)  # type: ignore[arg-type]
        for item in items:
            self.replay(item)

    def replay(self, item: HistoryItem) -> None:
        if isinstance(item, KeyCovariance):
            self.covariance = item.digest
        elif isinstance(item, Snapshot):
            self.weight, self.sequence = item.weights[LAYER], item.sequence
            assert item.about["covariance"] == self.covariance
            self.held = dict(item.about["held"])
        else:
            assert item.sequence == self.sequence + 1 and item.covariance_digest in (None, self.covariance)
            self._take(item)

    def swap(self, covariance: KeyCovariance) -> None:
        self.covariance = covariance.digest

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        return ()

    def rehearse(self, requests: Sequence[EditRequest], died: Callable[[Exception], None] | None = None) -> None:
        pass

    def apply(self, batch: EditBatch, died: Callable[[Exception], None] | None = None) -> EditReceipt:
        if batch.sequence == self.sequence:
            return self.last
        good = [request for request in batch.requests if request.target_new != "bad"]
        facts = {request.fact_key for request in good}
        names = tuple(request.id for request in good)
        receipt = EditReceipt(
            sequence=batch.sequence,
            delta=WeightDelta({LAYER: _joined(names)}, "fake") if good else None,
            results=tuple(RequestResult(r.id, r in good, None if r in good else "bad") for r in batch.requests),
            request_ids=names,
            fact_keys=tuple(request.fact_key for request in good),
            superseded=tuple(name for name, fact in self.held.items() if fact in facts),
            covariance_digest=self.covariance,
        )
        self._take(receipt)
        return receipt

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        lefts, rights, parts = [], [], []
        for item in items():
            if isinstance(item, EditReceipt) and item.kind == "edit" and item.sequence in order.touched:
                kept = [name for name in item.request_ids if name not in order.gone]
                new, old = _joined(kept), order.touched[item.sequence].layers[LAYER]
                assert new.right is not None and old.right is not None
                parts.append(Part(item.sequence, sum(left.shape[1] for left in lefts), len(kept)))
                lefts += [new.left, -old.left]
                rights += [new.right, old.right]
        assert {part.sequence for part in parts} == set(order.touched)
        change = LayerDelta("low_rank", torch.cat(lefts, dim=1), torch.cat(rights))
        receipt = EditReceipt(
            order.sequence,
            WeightDelta({LAYER: change}, "fake"),
            (),
            (),
            (),
            (),
            covariance_digest=self.covariance,
            kind="revert",
            taken_out=order.taken_out,
            parts=tuple(parts),
        )
        self._take(receipt)
        return receipt

    def snapshot(self) -> Snapshot:
        about = {"covariance": self.covariance, "held": self.held}
        return Snapshot(self.sequence, {LAYER: self.weight}, about, {})

    def _take(self, receipt: EditReceipt) -> None:
        for name in (*receipt.superseded, *receipt.taken_out):
            self.held.pop(name, None)
        self.held |= dict(zip(receipt.request_ids, receipt.fact_keys, strict=True))
        if receipt.delta is not None:
            self.weight = apply_delta(self.weight, receipt.delta.layers[LAYER])
        self.sequence, self.last = receipt.sequence, replace(receipt)


def _joined(names: Sequence[str]) -> LayerDelta:
    parts = [factors(name) for name in names] or [(torch.zeros(WIDTH, 0), torch.zeros(0, WIDTH))]
    return LayerDelta("low_rank", torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts]))


class FakeMemory:
    """Statements by number; of one fact the newest counts."""

    def __init__(self) -> None:
        self.entries: dict[int, MemoryEntry] = {}

    def add(self, entries: Sequence[MemoryEntry]) -> int:
        self.entries |= {entry.id: entry for entry in entries}
        return len(self.entries)

    def sync(self, entries: Iterable[MemoryEntry]) -> int:
        self.entries = {}
        return self.add(list(entries))

    def mark(self) -> None:
        return None

    def save(self, mark: Any) -> None:
        pass

    def remove(self, ids: Sequence[int]) -> int:
        for number in ids:
            self.entries.pop(number, None)
        return len(self.entries)

    def active(self) -> set[int]:
        """Numbers of the statements that count."""
        newest: dict[str, int] = {}
        for number in sorted(self.entries):
            newest[self.entries[number].fact_key] = number
        return set(newest.values())


class FakeEstimator:
    """Every estimate has another digest."""

    def estimate(self, job: Any, weights: Any, progress: Any = None, stop: Any = None) -> Estimate:
        seed = getattr(job, "seed", 0)
        covariance = KeyCovariance({LAYER: torch.eye(WIDTH).double() * (1 + seed)}, 10, {"kind": "fake", "seed": seed})
        return Estimate(covariance, (), 0.0, 0)


class FakeEvaluators:
    def give_up(self) -> None:
        pass


class FakeCluster:
    """Stands in for `errata.actors.cluster.Cluster`; its parts are there for a test to look at."""

    editor_: FakeEditor
    memory_: FakeMemory

    def estimator(self) -> FakeEstimator:
        return FakeEstimator()

    def editor(self, config: Any, contexts: Any, history: Callable[[], Iterable[HistoryItem]]) -> FakeEditor:
        self.editor_ = FakeEditor(history)
        return self.editor_

    def memory(self, embedder: Any, index: Any, entries: Any, kept_in: Any = None, router: Any = None) -> FakeMemory:
        self.memory_ = FakeMemory()
        return self.memory_

    def evaluators(self, settings: Any) -> FakeEvaluators:
        return FakeEvaluators()
