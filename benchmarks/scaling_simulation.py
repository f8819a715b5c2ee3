"""How an estimate scales to more workers than this machine has: measured transfer and addition, simulated blocks.

    python -m benchmarks.scaling_simulation --measure      # Ray on this machine: put, fetch and add a sum
    python -m benchmarks.scaling_simulation                # the stored measurement

The papers' budget: 100 000 sequences, two hours of generation on one accelerator, maps of 14 336 inputs in six layers,
1.6 GB a layer in float64. The simulation has the scheduler of ``errata.actors.covariance`` and the trees of
``errata.actors.reduction``: a worker computes a block, hands the lower halves of its sums to the object store of its
node in pieces (flush) and takes the next block; each piece has a tree of its own, whose sums are added by pairs, where
one of the two lies, as soon as both are there and all blocks before them have come. Adding runs beside the workers: a
node adds two pieces at once per worker (``--adders`` in all), each at the rate measured here for one of two
at once. What comes from other nodes shares the network of the node it comes to. ``--whole`` has one tree for whole sums
instead.

*Reduction share* is the part of all workers' time that is not computing: flushes, and what the last additions take
after the last block. Blocks vary in length (a coefficient of variation of 5 %), which costs at the end; this waiting is
stated apart, in the efficiency.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, context, median, store
from errata.actors.reduction import MOST_PIECES

GB = 1e9
_WORKERS_PER_NODE = 8


@dataclass(frozen=True)
class Machine:
    """Rates of moving and adding sums, in bytes per second of one sum."""

    flush: float
    """From a worker into the object store of its node, cutting included."""
    add: float
    """Adding two pieces there, per byte of the result, while others are added."""
    network: float
    """Into a node from others."""
    adders: int = 1
    """Pieces that a node adds at once."""


@dataclass(frozen=True)
class Job:
    """An estimate: its compute on one worker, and its size."""

    seconds: float
    blocks: int
    bytes: float
    """Of what is handed over of a block."""
    variation: float = 0.05
    pieces: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a simulated estimate came to."""

    seconds: float
    efficiency: float
    """Compute alone over (workers x seconds)."""
    reduction_share: float
    waiting_share: float
    """Workers that had no block left while others computed."""


_Held = tuple[float, int]
"""When a piece is there, and on which node."""


class _Additions:
    """The additions of pieces, on nodes that add so many at once and take in so much."""

    def __init__(self, machine: Machine, size: float) -> None:
        self._machine, self._size = machine, size
        self._adders: dict[int, list[float]] = {}
        self._network: dict[int, float] = {}

    def of(self, left: Sequence[_Held], right: Sequence[_Held]) -> list[_Held]:
        """Pieces of two sums, each added where its left one lies."""
        return [self._one(one, other) for one, other in zip(left, right, strict=True)]

    def _one(self, left: _Held, right: _Held) -> _Held:
        at, node = max(left[0], right[0]), left[1]
        if node != right[1]:
            at = max(at, self._network.get(node, 0.0)) + self._size / self._machine.network
            self._network[node] = at
        free = self._adders.setdefault(node, [0.0] * self._machine.adders)
        at = max(at, heapq.heappop(free)) + self._size / self._machine.add
        heapq.heappush(free, at)
        return at, node


def simulate(job: Job, workers: int, machine: Machine, *, per_node: int = _WORKERS_PER_NODE, seed: int = 0) -> Outcome:
    """Run the blocks of a job through workers and the pairwise tree."""
    rng = np.random.default_rng(seed)
    lengths = job.seconds / job.blocks * np.clip(rng.normal(1.0, job.variation, job.blocks), 0.2, 5.0)
    flush = job.bytes / machine.flush
    free = [(0.0, worker) for worker in range(workers)]
    heapq.heapify(free)
    ready, node = np.zeros(job.blocks), np.zeros(job.blocks, dtype=int)
    for block in range(job.blocks):
        start, worker = heapq.heappop(free)
        ready[block], node[block] = start + lengths[block] + flush, worker // per_node
        heapq.heappush(free, (ready[block], worker))
    last = float(ready.max())
    idle = float(sum(last - at for at, _ in free))
    additions = _Additions(machine, job.bytes / job.pieces)
    # sums reach the trees in the order of the blocks
    nodes: dict[int, list[_Held]] = {}
    for at, where in zip(np.maximum.accumulate(ready).tolist(), node.tolist(), strict=True):
        size, current = 1, [(at, where)] * job.pieces
        while (other := nodes.pop(size, None)) is not None:
            size, current = 2 * size, additions.of(other, current)
        nodes[size] = current
    sizes = sorted(nodes, reverse=True)
    total = nodes[sizes[0]]
    for size in sizes[1:]:
        total = additions.of(total, nodes[size])
    seconds = max(at for at, _ in total)
    compute = float(lengths.sum())
    reducing = job.blocks * flush + workers * (seconds - last)
    return Outcome(seconds, compute / (workers * seconds), reducing / (workers * seconds), idle / (workers * seconds))


def measure(width: int, layers: int, repeats: int) -> dict[str, float]:
    """Wall-clock rates of handing over and adding sums through Ray on this machine, in bytes per second.

    Whole sums as before they were cut, and pieces: cut and put, and two of them added at the same time.
    """
    import ray

    from errata.actors.reduction import add_pieces, cut

    whole = {(layer, 0): np.ones((width, width)) for layer in range(layers)}
    sums = {layer: array for (layer, _), array in whole.items()}
    size = float(sum(array.nbytes for array in sums.values()))
    half = float(sum(rows.nbytes for piece in cut(sums) for rows in piece.values()))
    timings: dict[str, list[float]] = {name: [] for name in ("put", "add_whole", "flush", "add_one", "add_two")}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        add = ray.remote(num_cpus=1)(add_pieces)

        def adding(*pairs: tuple[Any, Any]) -> float:
            def added() -> Any:
                made = [add.remote(left, right) for left, right in pairs]
                return ray.wait(made, num_returns=len(made), fetch_local=False)

            return _seconds(added)

        def put() -> Any:
            return ray.put(whole)

        def flush() -> list[Any]:
            return [ray.put(piece) for piece in cut(sums, most=2)]

        first, one = put(), flush()
        adding((one[0], one[0]), (one[1], one[1]))  # starts two workers
        for _ in range(repeats):
            timings["put"].append(_seconds(put))
            timings["add_whole"].append(adding((first, first)))
            timings["flush"].append(_seconds(flush))
            timings["add_one"].append(adding((one[0], one[0])))
            timings["add_two"].append(adding((one[0], one[0]), (one[1], one[1])))
    finally:
        ray.shutdown()
    best = {name: min(values) for name, values in timings.items()}
    return {
        "sum_bytes": size, "cut_bytes": half,
        "flush_Bps": half / best["flush"], "add_Bps": half / 2 / best["add_two"],
        "add_alone_Bps": half / 2 / best["add_one"],
        "whole_flush_Bps": size / best["put"], "whole_add_Bps": size / best["add_whole"],
        **{f"{name}_median_s": median(values) for name, values in timings.items()},
    }  # fmt: skip


def _seconds(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def table(
    machine: Machine, workers: Sequence[int], blocks_per_worker: int, size: float, pieces: int
) -> list[dict[str, Any]]:
    """The papers' budget on so many workers, each with so many blocks of ``size`` bytes."""
    rows = []
    for count in workers:
        job = Job(seconds=7200.0, blocks=count * blocks_per_worker, bytes=size, pieces=pieces)
        rows.append({"workers": count, "blocks": job.blocks, **asdict(simulate(job, count, machine))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure flush and addition with Ray here")
    parser.add_argument("--whole", action="store_true", help="one tree for whole sums, as it was; nothing is stored")
    parser.add_argument("--network", type=float, default=12.5, help="GB/s between nodes (12.5 is 100 Gbit/s)")
    parser.add_argument("--adders", type=int, default=2 * _WORKERS_PER_NODE, help="pieces that a node adds at once")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    path = options.json or RESULTS / "scaling_simulation.json"
    if options.measure or not path.is_file():
        rates: dict[str, Any] = {"context": context(), **measure(4096, 4, 8)}
    else:
        rates = json.loads(path.read_text())["measured"]
    whole, part = 6 * 14_336**2 * 8.0, rates["cut_bytes"] / rates["sum_bytes"]
    if options.whole:
        machine, size, pieces = (
            Machine(rates["whole_flush_Bps"], rates["whole_add_Bps"], options.network * GB),
            whole,
            1,
        )
    else:
        machine = Machine(rates["flush_Bps"], rates["add_Bps"], options.network * GB, options.adders)
        size, pieces = whole * part, MOST_PIECES
    result: dict[str, Any] = {
        "measured": rates, "network_GBps": options.network, "workers_per_node": _WORKERS_PER_NODE,
        "adders_per_node": options.adders, "bytes": size, "pieces": pieces,
    }  # fmt: skip
    for per_worker in (1, 2, 4):
        result[f"blocks_per_worker_{per_worker}"] = table(machine, (1, 2, 8, 64), per_worker, size, pieces)
        for row in result[f"blocks_per_worker_{per_worker}"]:
            print(per_worker, {key: round(value, 4) for key, value in row.items()})
    if options.whole:
        return
    print(store("scaling_simulation", result, path))


if __name__ == "__main__":
    main()
