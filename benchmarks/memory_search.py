"""Search times of the external memory: a single query by size, against plain NumPy, and lists against exact.

    python -m benchmarks.memory_search            # 100, 10 000 and 100 000 vectors
    python -m benchmarks.memory_search --large    # and 1 000 000 (about 5 GB of memory, minutes)

Vectors are clustered as sentences are (many about one relation), not uniform on the sphere, where no index
works. Every timed search is first compared with brute force. Ratios travel between machines, times do not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import context, store
from errata.retrieval.embedder import unit_rows
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, MemoryEntry

DIM, K, QUERIES = 384, 3, 50
PER_CLUSTER, SPREAD = 50, 0.8
Vectors = NDArray[np.float32]


def sentence_like(count: int, rng: np.random.Generator) -> Vectors:
    """(count, DIM) unit vectors around one center per ``PER_CLUSTER`` of them."""
    centers = unit_rows(rng.standard_normal((max(1, count // PER_CLUSTER), DIM), dtype=np.float32))
    owner = rng.integers(len(centers), size=count)
    noise = rng.standard_normal((count, DIM), dtype=np.float32)
    noise *= SPREAD / np.sqrt(DIM)
    noise += centers[owner]
    return unit_rows(noise)


def times_ms(call: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Median and minimum milliseconds of ``call(0..repeats-1)`` after one warm-up."""
    call(0)
    times = []
    for turn in range(repeats):
        start = time.perf_counter()
        call(turn)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)), 1e3 * min(times)


class _Fixed:
    """Stands for an embedder: the vectors are given."""

    name, dim, digest, unit = "fixed", DIM, "fixed", True

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise NotImplementedError


def _filled(vectors: Vectors, limit: int) -> tuple[FactMemory, float]:
    """A memory of these vectors, and the seconds it took to fill it."""
    entries = [
        MemoryEntry(id=i, request_id="", subject="", fact_key=str(i), statement="x") for i in range(len(vectors))
    ]
    memory = FactMemory(_Fixed(), IndexConfig(exact_limit=limit))
    start = time.perf_counter()
    memory.add(entries, vectors)
    return memory, time.perf_counter() - start


def measure(count: int, seed: int = 0) -> dict[str, Any]:
    """Times, ratios and recall at one size; a search includes scoring the candidates again and making hits."""
    rng = np.random.default_rng(seed)
    vectors = sentence_like(count, rng)
    queries = unit_rows(vectors[rng.integers(count, size=QUERIES)] + 0.02 * rng.standard_normal((QUERIES, DIM)))
    exact, fill_seconds = _filled(vectors, count)

    def brute(turn: int) -> list[int]:
        scores = vectors @ queries[turn]
        top = np.argpartition(-scores, K - 1)[:K]
        return [int(i) for i in top[np.argsort(-scores[top])]]

    def ids_of(memory: FactMemory) -> list[list[int]]:
        return [[hit.id for hit in hits] for hits in memory.search_vectors(queries, K)]

    truth = ids_of(exact)
    for turn in range(min(QUERIES, 10)):  # a fast wrong answer is no result
        assert brute(turn) == truth[turn], f"query {turn} of {count} vectors"
    single, single_min = times_ms(lambda turn: exact.search_vectors(queries[turn : turn + 1], K), QUERIES)
    batch = times_ms(lambda _: exact.search_vectors(queries, K), 5)[0] / QUERIES
    numpy_ms, _ = times_ms(brute, min(QUERIES, 20))
    row: dict[str, Any] = {
        "vectors": count,
        "fill_s": round(fill_seconds, 2),
        "exact_ms": round(single, 3),
        "exact_min_ms": round(single_min, 3),
        "exact_batched_ms": round(batch, 3),
        "numpy_ms": round(numpy_ms, 3),
        "numpy_over_exact": round(numpy_ms / single, 2),
    }
    if count >= 10_000:
        lists, row["lists_fill_s"] = _filled(vectors, count // 2)
        row["lists_ms"] = times_ms(lambda turn: lists.search_vectors(queries[turn : turn + 1], K), QUERIES)[0]
        row["exact_over_lists"] = round(single / row["lists_ms"], 2)
        shared = sum(len(set(a) & set(b)) for a, b in zip(ids_of(lists), truth, strict=True))
        row["lists_recall"] = round(shared / (K * QUERIES), 4)
        row["lists_ms"], row["lists_fill_s"] = round(row["lists_ms"], 3), round(row["lists_fill_s"], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also one million vectors")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    rows = []
    for count in (100, 10_000, 100_000, *((1_000_000,) if options.large else ())):
        rows.append(measure(count))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if options.json:
        store("memory_search", {"rows": rows, "context": context()}, options.json)


if __name__ == "__main__":
    main()
