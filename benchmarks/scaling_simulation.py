"""How an estimate scales to more workers than this machine has: measured transfer and addition, simulated blocks.

    python -m benchmarks.scaling_simulation --measure      # Ray on this machine: put, fetch and add a sum
    python -m benchmarks.scaling_simulation                # the stored measurement

The papers' budget: 100 000 sequences, two hours of generation on one accelerator, maps of 14 336 inputs in six layers,
1.6 GB a layer in float64. The simulation has the scheduler of ``actors.covariance`` and the tree of
``actors.reduction``: a worker computes a block, hands its sum to the object store of its node (flush) and takes the
next; sums are added by pairs, where one of the two lies, as soon as both are there and all blocks before them have
come. Adding runs beside the workers, as there is a free core for it, but sums from another node cross the network.

*Reduction share* is the part of all workers' time that is not computing: flushes, and what the last additions take
after the last block. Blocks vary in length (a coefficient of variation of 5 %), which costs at the end; this waiting is
stated apart, in the efficiency.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, context, median, store

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """Rates of moving and adding sums, in bytes per second of one sum."""

    flush: float
    """From a worker into the object store of its node."""
    add: float
    """Adding two sums there, per byte of the result."""
    network: float
    """Between nodes."""


@dataclass(frozen=True)
class Job:
    """An estimate: its compute on one worker, and its size."""

    seconds: float
    blocks: int
    bytes: float
    variation: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """What a simulated estimate came to."""

    seconds: float
    efficiency: float
    """Compute alone over (workers x seconds)."""
    reduction_share: float
    waiting_share: float
    """Workers that had no block left while others computed."""


def simulate(job: Job, workers: int, machine: Machine, *, per_node: int = 8, seed: int = 0) -> Outcome:
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
    # sums reach the tree in the order of the blocks
    nodes: dict[int, tuple[float, int]] = {}

    def added(left: tuple[float, int], right: tuple[float, int]) -> tuple[float, int]:
        moved = job.bytes / machine.network if left[1] != right[1] else 0.0
        return max(left[0], right[0]) + moved + job.bytes / machine.add, left[1]

    for at, where in zip(np.maximum.accumulate(ready).tolist(), node.tolist(), strict=True):
        size, current = 1, (at, where)
        while (other := nodes.pop(size, None)) is not None:
            size, current = 2 * size, added(other, current)
        nodes[size] = current
    sizes = sorted(nodes, reverse=True)
    total = nodes[sizes[0]]
    for size in sizes[1:]:
        total = added(total, nodes[size])
    seconds = total[0]
    compute = float(lengths.sum())
    reducing = job.blocks * flush + workers * (seconds - last)
    return Outcome(seconds, compute / (workers * seconds), reducing / (workers * seconds), idle / (workers * seconds))


def measure(width: int, layers: int, repeats: int) -> dict[str, float]:
    """Wall-clock rates of putting, fetching and adding sums through Ray on this machine, in bytes per second."""
    import time

    import ray

    from actors.reduction import add_sums

    sums = {layer: np.ones((width, width)) for layer in range(layers)}
    size = float(sum(array.nbytes for array in sums.values()))
    flushes, adds = [], []
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        add = ray.remote(num_cpus=0)(add_sums)
        reference = ray.put(sums)
        ray.get(add.remote(reference, reference))  # starts a worker
        for _ in range(repeats):
            start = time.perf_counter()
            other = ray.put(sums)
            flushes.append(time.perf_counter() - start)
            start = time.perf_counter()
            ray.wait([add.remote(reference, other)], fetch_local=False)
            adds.append(time.perf_counter() - start)
            del other
    finally:
        ray.shutdown()
    return {"sum_bytes": size, "flush_Bps": size / min(flushes), "add_Bps": size / min(adds),
            "flush_median_s": median(flushes), "add_median_s": median(adds)}  # fmt: skip


def table(machine: Machine, workers: Sequence[int], blocks_per_worker: int) -> list[dict[str, Any]]:
    """The papers' budget on so many workers, each with so many blocks."""
    size = 6 * 14_336**2 * 8.0
    rows = []
    for count in workers:
        job = Job(seconds=7200.0, blocks=count * blocks_per_worker, bytes=size)
        rows.append({"workers": count, "blocks": job.blocks, **asdict(simulate(job, count, machine))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure flush and addition with Ray here")
    parser.add_argument("--network", type=float, default=12.5, help="GB/s between nodes (12.5 is 100 Gbit/s)")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    path = options.json or RESULTS / "scaling_simulation.json"
    if options.measure or not path.is_file():
        rates: dict[str, Any] = {"context": context(), **measure(2048, 6, 8)}
    else:
        rates = json.loads(path.read_text())["measured"]
    machine = Machine(rates["flush_Bps"], rates["add_Bps"], options.network * GB)
    result: dict[str, Any] = {"measured": rates, "network_GBps": options.network, "workers_per_node": 8}
    for per_worker in (1, 2, 4):
        result[f"blocks_per_worker_{per_worker}"] = table(machine, (1, 2, 8, 64), per_worker)
        for row in result[f"blocks_per_worker_{per_worker}"]:
            print(per_worker, {key: round(value, 4) for key, value in row.items()})
    print(store("scaling_simulation", result, path))


if __name__ == "__main__":
    main()
