"""Sharded covariance estimation: blocks of units, any number of workers, one fixed order of addition.

A unit is a share of sequences to sample, with a seed of its own, or a run of documents of a corpus.

A *block* is a fixed run of consecutive units. A worker computes a block's units in order and hands over one sum; the
sums are added by pairs in a binary tree whose shape depends only on how many blocks count. A block that dies with its
worker is done again and yields the same bytes. With a token budget the blocks that count are the shortest prefix that
reaches it; what was computed beyond is dropped. So workers may come and go in the middle: see `errata.actors.crew`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from torch import Tensor

from errata.actors.connection import LOST, unwrap
from errata.actors.crew import Crew, Member
from errata.actors.placement import unreserved
from errata.actors.reduction import MOST_PIECES, BlockTree, Piece, Pieces, cut, fetch_repairing
from errata.actors.runtime import WorkerGroup, make_actor
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.workers.covariance import (
    BlockInfo,
    Estimate,
    EstimateJob,
    EstimateProgress,
    KeyCheck,
    Sums,
    UnitWorker,
)
from errata.actors.workers.model import yield_to_others
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError
from errata.editing.wording import counted

logger = logging.getLogger(__name__)

_REPAIRS = 3
"""Attempts to do again what was lost with a machine after it had been handed over."""
_SAY_WAITING_SECONDS = 60.0
"""How often it is said that no worker is there yet."""


BLOCK_RETURNS = 1 + MOST_PIECES
"""What a worker's ``block`` returns as a Ray method: `handed_over`, whose number is fixed."""


def handed_over(info: BlockInfo, sums: Sums) -> tuple[BlockInfo | Piece | None, ...]:
    """A finished block as a worker returns it: what is known of it, its pieces, and None where there could be more."""
    pieces = cut(sums)
    return replace(info, pieces=len(pieces)), *pieces, *[None] * (MOST_PIECES - len(pieces))


@ray.remote
class UnitActor:
    """Shell of `UnitWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig) -> None:
        yield_to_others(role)
        self._worker = UnitWorker(spec, role)

    def ready(self) -> str:
        """The node this is on; answered once the model is loaded."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(num_returns=BLOCK_RETURNS)
    def block(
        self, job: EstimateJob, index: int, sequences: int, weights: Mapping[int, Tensor]
    ) -> tuple[BlockInfo | Piece | None, ...]:
        return handed_over(*self._worker.block(job, index, sequences, weights))

    def check(self, job: EstimateJob, sequences: int, weights: Mapping[int, Tensor]) -> KeyCheck:
        return self._worker.check(job, sequences, weights)


@dataclass(frozen=True)
class _Outstanding:
    """A block that a worker is at."""

    block: int
    member: Member
    sums: Pieces


@dataclass
class _Run:
    """State of one estimate in the scheduler."""

    job: EstimateJob
    weights: Any
    outstanding: dict[Any, _Outstanding] = field(default_factory=dict)
    finished: dict[int, tuple[BlockInfo, Pieces]] = field(default_factory=dict)
    redo: list[int] = field(default_factory=list)
    next_block: int = 0
    released: int = 0
    tokens: int = 0
    repeated: int = 0
    say_waiting_at: float = field(default_factory=lambda: time.monotonic() + _SAY_WAITING_SECONDS)

    def total_blocks(self) -> int | None:
        most = self.job.most
        return None if most is None else -(-most // (self.job.per_unit * self.job.units_per_block))

    def sequences_for(self, block: int) -> int:
        per_block, most = self.job.per_unit * self.job.units_per_block, self.job.most
        return per_block if most is None else min(per_block, most - block * per_block)

    def complete(self) -> bool:
        if self.job.tokens is not None and self.tokens >= self.job.tokens:
            return True
        return self.released == self.total_blocks()

    def wants_more(self) -> bool:
        """Whether a further block is likely to count."""
        total = self.total_blocks()
        if total is not None and self.next_block >= total:
            return False
        if self.job.tokens is None:
            return True
        ahead = self.next_block - self.released
        return self.tokens + ahead * self._tokens_per_block() < self.job.tokens

    def unclaimed(self) -> int:
        """About how many blocks nobody is at that will count; rather too few than too many."""
        total = self.total_blocks()
        left = None if total is None else total - self.next_block
        if self.job.tokens is not None:
            most = self._tokens_per_block() or self._most_tokens_per_block()
            missing = self.job.tokens - self.tokens
            likely = 0 if most is None else math.ceil(missing / most) - (self.next_block - self.released)
            left = likely if left is None else min(left, likely)
        return max(left or 0, 0) + len(self.redo)

    def _tokens_per_block(self) -> float:
        """Mean of those that are finished; 0 before the first is."""
        known = [info.tokens for info, _ in self.finished.values()]
        return (sum(known) / len(known)) if known else 0.0

    def _most_tokens_per_block(self) -> float | None:
        """Before anything is known: what sampled sequences can come to at most. Documents may be of any length."""
        if self.job.corpus is not None:
            return None
        generation = self.job.generation
        longest = generation.seed_tokens + generation.max_new_tokens
        return float(self.job.per_unit * self.job.units_per_block * longest)


class CovarianceEstimator:
    """Runs one estimate at a time over its unit workers."""

    def __init__(self, config: RayConfig, spec: ModelSpec, workers: WorkerGroup | None = None) -> None:
        """``workers`` are actors with the methods of `UnitActor`; own ones by default."""
        self._spec = spec
        role = config.generation
        self._workers = workers or WorkerGroup(
            lambda: make_actor(UnitActor, role, spec, role),
            config.generation_workers,
            most_revivals=config.max_revivals,
            within=config.revival_seconds,
            what="covariance workers",
        )
        # those beyond are for one estimate: they have no reserved place, and nothing else is asked of them
        further = unreserved(role)
        self._make_extra: Callable[[], Any] = lambda: make_actor(UnitActor, further, spec, further)
        self._most_extra = config.most_generation_workers - config.generation_workers
        self._most_losses = config.max_revivals
        self._lock = threading.Lock()

    def start(self) -> None:
        """Make the workers (they load their model in the background)."""
        self._workers.start()

    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    def actors(self) -> Sequence[Any]:
        """Handles of the workers, for fault tests."""
        return self._workers.actors

    def estimate(
        self,
        job: EstimateJob,
        weights: Any,
        progress: Callable[[EstimateProgress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Estimate:
        """Run a job to its end; call from any thread.

        Args:
            weights: edited maps by layer, or a reference to such; empty for the base.
            progress: called after each block.
            stop: set it to give up.

        Raises:
            ErrataError: given up, or workers died more often than the settings allow.
        """
        with self._lock:
            self.start()
            started = time.perf_counter()
            reference = weights if isinstance(weights, ray.ObjectRef) else ray.put(dict(weights))
            run, tree = _Run(job, reference), BlockTree()
            crew = Crew(self._workers, self._make_extra, self._most_extra, self._most_losses)
            documents: list[tuple[float, int]] = []
            openings: list[tuple[str, ...]] = []
            try:
                while not run.complete():
                    took = self._step(run, crew, stop)
                    while not run.complete() and run.released in run.finished:
                        info, sums = run.finished[run.released]
                        # the tree holds it from here; what is added up is freed
                        run.finished[run.released] = (info, ())
                        tree.push(sums)
                        run.released += 1
                        run.tokens += info.tokens
                        documents += info.documents
                        openings += info.openings
                    if took and progress is not None:
                        progress(_progress(run, time.perf_counter() - started))
                totals = fetch_repairing(tree, lambda blocks: self._again(run, crew, blocks, stop), _REPAIRS)
            finally:
                crew.close()
            if totals is None:
                raise ErrataError(
                    f"sums of finished blocks were lost with their machines {counted(_REPAIRS + 1, 'time')}"
                )
            tensors = {layer: torch.from_numpy(value) for layer, value in totals.items()}
            covariance = KeyCovariance(tensors, run.tokens, job.source(self._spec.dtype))
            if job.tokens is not None and run.tokens < job.tokens:
                logger.warning("the corpus ended at %d of %d tokens", run.tokens, job.tokens)
            seconds = time.perf_counter() - started
            nodes = crew.blocks_by_node
            logger.info(
                "%s finished on %s%s",
                counted(sum(nodes.values()), "block"),
                counted(len(nodes), "node"),
                f"; {counted(run.repeated, 'block')} repeated after a worker was lost" if run.repeated else "",
            )
            return Estimate(covariance, tuple(documents), seconds, run.repeated, tuple(openings), nodes)

    def check(self, job: EstimateJob, weights: Any) -> KeyCheck:
        """Compare the keys of the first unit with a packed second pass over the same tokens, on one worker.

        Raises:
            ErrataError: the job runs a corpus, which has no decoding pass.
        """
        if job.corpus is not None:
            raise ErrataError("only self-generated keys are taken while decoding; a corpus has nothing to check")
        with self._lock:
            self.start()
            try:
                sequences = min(job.per_unit, job.most or job.per_unit)
                verdict: KeyCheck = ray.get(self._workers.actors[0].check.remote(job, sequences, weights))
            except ray.exceptions.RayTaskError as error:
                raise unwrap(error) from error
            return verdict

    def _step(self, run: _Run, crew: Crew, stop: threading.Event | None) -> bool:
        """Keep the workers busy and take in what is ready; whether a block was."""
        if stop is not None and stop.is_set():
            raise ErrataError("the covariance estimate was given up")
        self._hand_out(run, crew)
        if not run.outstanding and time.monotonic() >= run.say_waiting_at:
            run.say_waiting_at = time.monotonic() + _SAY_WAITING_SECONDS
            logger.info("waiting for a worker; %s requested", counted(len(crew.coming), "worker"))
        ready, _ = ray.wait([*run.outstanding, *crew.coming], num_returns=1, timeout=0.5)
        took = False
        for reference in ready:
            if reference in run.outstanding:
                took = True
                self._collect(run, crew, reference)
            else:
                crew.arrived(reference)
        return took

    def _again(self, run: _Run, crew: Crew, blocks: Sequence[int], stop: threading.Event | None) -> list[Pieces]:
        """Do blocks again whose sums were lost after they had been handed over; references in their order."""
        run.repeated += len(blocks)
        run.redo += blocks
        for block in blocks:
            del run.finished[block]
        while any(block not in run.finished for block in blocks):
            self._step(run, crew, stop)
        sums = [run.finished[block][1] for block in blocks]
        for block in blocks:
            run.finished[block] = (run.finished[block][0], ())
        return sums

    def _hand_out(self, run: _Run, crew: Crew) -> None:
        for member in crew.idle([call.member for call in run.outstanding.values()]):
            if run.redo:
                block = run.redo.pop(0)
            elif run.wants_more():
                block, run.next_block = run.next_block, run.next_block + 1
            else:
                break
            info, *sums = member.actor.block.remote(run.job, block, run.sequences_for(block), run.weights)
            run.outstanding[info] = _Outstanding(block, member, tuple(sums))
        crew.ask_for(run.unclaimed())

    def _collect(self, run: _Run, crew: Crew, reference: Any) -> None:
        """Take in a finished block, or plan it again."""
        call = run.outstanding.pop(reference)
        try:
            info: BlockInfo = ray.get(reference)
            run.finished[call.block] = (info, call.sums[: info.pieces])
            crew.finished(call.member)
        except LOST as error:
            run.repeated += 1
            run.redo.append(call.block)
            crew.lost(call.member, error)
            logger.warning("a covariance worker died; another one repeats block %d", call.block)
        except ray.exceptions.RayTaskError as error:
            raise unwrap(error) from error


def _progress(run: _Run, seconds: float) -> EstimateProgress:
    done = sum(info.tokens for info, _ in run.finished.values())
    rate = done / max(seconds, 1e-9)
    total = run.total_blocks()
    share = done / run.job.tokens if run.job.tokens is not None else len(run.finished) / max(total or 1, 1)
    left = None if share <= 0 else seconds * (1 - min(share, 1.0)) / share
    each = done / max(sum(info.seconds for info, _ in run.finished.values()), 1e-9)
    return EstimateProgress(done, min(share, 1.0), rate, left, run.repeated, each)
