"""The processes that add the sums of blocks may die: the tree holds no state that goes with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import errata.actors.reduction
from errata.actors.covariance import CovarianceEstimator
from errata.actors.reduction import BlockTree, Piece, add_pieces, cut, fetch_repairing
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.covariance import EstimateJob, Sums
from errata.editing.estimation.selfgen import SelfGenerationConfig
from tests.integration.harness import PlainEstimator, tree_sum

DEATHS = 3


def blocks(count: int) -> list[Sums]:
    rng = np.random.default_rng(0)
    drawn = [{1: rng.standard_normal((6, 6)), 2: rng.standard_normal((3, 3))} for _ in range(count)]
    return [{layer: one + one.T for layer, one in sums.items()} for sums in drawn]


def test_a_sum_is_the_same_bytes_after_the_processes_that_add_were_killed(local_ray, tmp_path, monkeypatch):
    def adding(left: Piece, right: Piece) -> Piece:
        for number in range(DEATHS):
            try:
                os.close(os.open(tmp_path / f"death{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return add_pieces(left, right)

    monkeypatch.setattr(errata.actors.reduction, "_add_remote", ray.remote(num_cpus=0)(adding))

    def never(numbers: Sequence[int]) -> Sequence[Any]:
        raise AssertionError(f"blocks {list(numbers)} were not lost")

    given = blocks(7)
    tree = BlockTree()
    for sums in given:
        tree.push(tuple(map(ray.put, cut(sums, piece_bytes=200))))
    found = fetch_repairing(tree, never, 0)
    assert len(list(tmp_path.glob("death*"))) == DEATHS
    wanted = tree_sum(given)
    assert found is not None and {k: v.tobytes() for k, v in found.items()} == {
        k: v.tobytes() for k, v in wanted.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_bytes(local_ray, tiny_checkpoint: Path, workers: int):
    spec = ModelSpec(name=str(tiny_checkpoint))
    generation = SelfGenerationConfig(max_new_tokens=12, sequences_per_unit=4, slots=4)
    job = EstimateJob(generation=generation, layers=(1, 2), seed=3, tokens=400, version="base")
    wanted = PlainEstimator(RayConfig(), spec).estimate(job, {}).covariance
    estimator = CovarianceEstimator(RayConfig(generation_workers=workers), spec)
    try:
        found = estimator.estimate(job, {}).covariance
    finally:
        estimator.close()
    assert found.digest == wanted.digest and found.tokens == wanted.tokens
