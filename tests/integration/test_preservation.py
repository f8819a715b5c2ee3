"""Benchmarks shared out over Ray workers: the same outcomes as in one process, whoever dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from errata.actors.preservation import PreservationPool, PreservationWorker
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.editing.checkpoint.load import load_model
from errata.editing.request import EditRequest
from errata.evaluation.preservation.suites import BatteryConfig
from errata.evaluation.sampling import SamplingConfig
from errata.evaluation.uncertainty import SpuqConfig
from errata.retrieval.embedder import HashEmbedderConfig

pytestmark = pytest.mark.usefixtures("local_ray")

REQUESTS = tuple(
    EditRequest(id=name, subject=name, prompt="{} lies in", target_new="France")
    for name in ("Rome", "Paris", "Angola", "Canada", "Italy")
)


def test_shares_give_what_one_worker_gives_and_a_death_changes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "prose.txt"
    text.write_text("\n\n".join(f"The capital of {r.subject} is known, therefore yes." for r in REQUESTS))
    spuq = SpuqConfig(paraphrases=2, samples=2, sampling=SamplingConfig(max_new_tokens=4))
    battery = BatteryConfig(tasks=("perplexity", "uncertainty"), texts={"prose": text}, spuq=spuq, seed=3)
    settings = (battery, REQUESTS, HashEmbedderConfig(dim=16))
    spec, role = ModelSpec(name=str(tiny_checkpoint)), RoleConfig(num_cpus=0.5)
    weight = load_model(str(tiny_checkpoint)).weight(1)
    edited = {1: weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std()}
    one = PreservationWorker(spec, role, *settings)
    pool = PreservationPool(RayConfig(evaluation=role, evaluation_workers=2), spec, *settings)
    try:
        ray.kill(pool.actors[0])
        for name, suite in one.suites.items():
            wanted = one.ask(name, suite.items, "edited", edited)
            found = pool.ask(name, suite.items, "edited", edited)
            assert found.keys() == wanted.keys()
            for metric, values in wanted.items():
                assert torch.allclose(torch.tensor(found[metric]), torch.tensor(values), atol=1e-3), metric
            base = one.ask(name, suite.items, "base", {})
            assert base != wanted and pool.ask(name, suite.items[:2], "base", {}).keys() == base.keys()
    finally:
        pool.close()
