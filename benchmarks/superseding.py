"""A batch of ten edits, five of them overwriting known facts, on one layer's lifelong system, against starting afresh.

    python -m benchmarks.superseding                 # both forms; the width and the numbers of keys are below
    python -m benchmarks.linear_algebra --superseding

What is timed: five keys leave, the right factor of the update for ten new keys is computed, the ten join. Starting
afresh is what releases before 0.2 did for every such batch: the system of all remaining keys is computed anew, then
the same factor. Work that is done now and then (a factor computed afresh after so many columns) is timed apart and
added in shares: ``amortized``. Of few keys half as many have left before as may, as a batch costs more by then. A
layer's matrices at d_in 14 336 take 1.6 GB each in float64; past d_in keys two of them are
held, and up to four while a factor is computed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.linear_algebra import L2, LEADING, MIB, some_keys
from benchmarks.measuring import context, one_thread, peak, reset_peak, store, timed
from errata.editing.forms import CapacitanceForm, GramForm
from errata.editing.linalg import Base, GrowingSystem, ProjectedIdentity, update_factor

NEW, OLD = 10, 5
SIZES = ((1536, 1000), (1536, 1700), (8192, 11_400), (14_336, 5_000), (14_336, 10_000), (14_336, 20_000))


def base_of(width: int, generator: torch.Generator) -> Base:
    """AlphaEdit's: a ridge outside the leading directions."""
    basis = torch.linalg.qr(torch.randn(width, LEADING, generator=generator, dtype=torch.float64))[0]
    return ProjectedIdentity(L2, basis, complement=True)


def batches(system: GrowingSystem, held: torch.Tensor, generator: torch.Generator, repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of a batch, and the system after the last one."""
    seconds = []
    for number in range(repeats + 1):
        keys = some_keys(held.shape[0], NEW, generator)
        gone = held[:, number * OLD : (number + 1) * OLD]

        def batch(now: GrowingSystem = system, keys: Any = keys, gone: Any = gone) -> GrowingSystem:
            columns = list(range(OLD)) if isinstance(now.form, CapacitanceForm) else gone
            left = now.without(columns)
            update_factor(left, keys)
            return left.append(keys)

        took, system = timed(batch)
        seconds.append(took)
    return min(seconds[1:]), system


def started_over(
    base: Base, held: torch.Tensor, past: int, generator: torch.Generator
) -> tuple[float, float, GrowingSystem]:
    """CPU seconds of the system of ``past`` keys, the ``held`` ones first, computed afresh; of these, seconds of its
    factor; and it."""
    # `GrowingSystem.over` block by block: all keys at once would take a third as much room as everything else
    width, count, block, seconds = held.shape[0], 0, held, 0.0
    form = CapacitanceForm.start(base, torch.zeros(width, 0, dtype=torch.float64))
    gram = torch.zeros(width, width, dtype=torch.float64) if past >= width else None
    while count < past:
        part = block.double()
        if gram is None:
            took, form = timed(lambda form=form, part=part: form.append(base.restrict(part)))  # type: ignore[misc]
        else:
            took = timed(lambda part=part: gram.addmm_(part, part.T))[0]  # type: ignore[misc]
        seconds, count = seconds + took, count + block.shape[1]
        block = some_keys(width, min(512, past - count), generator) if count < past else block
    if gram is None:
        return seconds, seconds, GrowingSystem(form, None)
    took, dense = timed(lambda: GramForm.start(base, gram))
    return seconds + took, took, GrowingSystem(dense, None)


def measure(width: int, past: int, *, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """One width and number of past keys."""
    generator = torch.Generator().manual_seed(seed)
    base = base_of(width, generator)
    held = some_keys(width, (repeats + 1) * OLD, generator)
    started, factored, system = started_over(base, held, past, generator)
    gone = 0
    if isinstance(system.form, CapacitanceForm):
        # half of what may have left before a factor is computed afresh, so that a batch is an average one
        gone = past // 8
        for at in range(0, gone, 512):
            system = system.append(some_keys(width, min(512, gone - at), generator))
        system = system.without(list(range(held.shape[1], held.shape[1] + gone)))
    before = reset_peak()
    seconds, system = batches(system, held, generator, repeats)
    row: dict[str, Any] = {
        "d_in": width,
        "past": past,
        "form": type(system.form).__name__,
        "gone": gone,
        "batch_s": seconds,
        "peak_MiB": peak() / MIB,
        "peak_over_state_MiB": max(0, peak() - before) / MIB,
    }
    # what an earlier release did in such a batch: everything anew, then the factor
    keys = some_keys(width, NEW, generator)
    row["afresh_s"] = started + timed(lambda: update_factor(system, keys))[0]
    row["ratio"] = row["afresh_s"] / seconds
    if isinstance(system.form, GramForm):
        form = system.form
        again = factored + timed(form.current_gram)[0]
        share = (NEW + OLD) / form.fold_at
    else:
        again, share = started, OLD / max(64, past // 4)
    row["now_and_then_s"], row["amortized_s"] = again, seconds + share * again
    row["amortized_ratio"] = row["afresh_s"] / row["amortized_s"]
    probe = some_keys(width, 2, generator)
    row["residual_error"] = system.drift(probe)
    return row


def append_and_without(width: int, past: int, *, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """CPU seconds of `GrowingSystem.append(keys)` and `.without(keys)`, ten keys each."""
    generator = torch.Generator().manual_seed(seed)
    base, held = base_of(width, generator), some_keys(width, past, generator)
    system = GrowingSystem.start(base, held, width)
    system = replace(system, form=system.form.folded()) if isinstance(system.form, GramForm) else system
    times: dict[str, list[float]] = {"append_s": [], "without_s": []}
    for number in range(repeats):
        keys = some_keys(width, NEW, generator)
        times["append_s"].append(timed(lambda keys=keys: system.append(keys))[0])  # type: ignore[misc]
        gone = held[:, number * NEW : (number + 1) * NEW]
        times["without_s"].append(timed(lambda gone=gone: system.without(gone))[0])  # type: ignore[misc]
    least = {name: min(values) for name, values in times.items()}
    return {"d_in": width, "past": past, **least, "ratio": least["without_s"] / least["append_s"]}


def measure_all(given: Sequence[tuple[int, int]] | None = None, *, small: bool = False) -> dict[str, Any]:
    """Everything, or batches at some widths and numbers of past keys; ``small`` for the tests."""
    if small:
        return {"batches": [measure(96, 40), measure(96, 120)], "one_change": [append_and_without(96, 60)]}
    result: dict[str, Any] = {"batches": [], "one_change": []}
    for width, past in ((1536, 1400), (1536, 1700)) if not given else ():
        result["one_change"].append(append_and_without(width, past))
        print(json.dumps(result["one_change"][-1]), flush=True)
    for width, past in (*(given or ()),) or SIZES:
        result["batches"].append(measure(width, past, repeats=2))
        print(json.dumps(result["batches"][-1]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    parser.add_argument("--sizes", nargs="*", metavar="D_IN:PAST", help="instead of all: such as 14336:10000")
    options = parser.parse_args()
    one_thread()
    sizes = [(int(width), int(past)) for width, past in (size.split(":") for size in options.sizes or ())]
    result = {"context": context(), **measure_all(sizes)}
    print(store("superseding", result, options.json))


if __name__ == "__main__":
    main()
