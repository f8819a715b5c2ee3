"""Self-generation by a real vLLM server: what it samples are the model's own sequences, base or edited,
and the covariance differs from one sampled here by no more than two of those from each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.actors.workers.covariance import BlockInfo, Estimate, EstimateJob
from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.estimation.diagnostics import effective_rank, eigenspectrum, jensen_shannon, per_token_nll
from errata.editing.estimation.sampling_server import SamplingServerConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig, UnitResult, run_unit, seed_sequences, unit_of
from errata.editing.estimation.served import run_served_unit
from errata.editing.model.adapter import EditableModel
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.history.export import edition
from errata.orchestrator.history.rebuild import open_base
from errata.orchestrator.history.receipts import load_covariance, open_store
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.sampling import EVENT, LiveSampling
from errata.orchestrator.publish.vllm import VllmServer
from tests.helpers.vllm_server import RANK, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LAYERS = (4, 6, 8)
SAMPLES = SelfGenerationConfig(max_new_tokens=48, sequences_per_unit=64, slots=64)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> EditableModel:
    return load_model(str(smollm2), dtype="float32")


def config(server: Server, name: str | None = None) -> SamplingServerConfig:
    return SamplingServerConfig(url=server.url, model=name or str(server.model))


@torch.no_grad()
def likelihoods(model: EditableModel, result: UnitResult) -> Tensor:
    """Sum of -log p of each sampled sequence as the model here finds it."""
    found = []
    for start, new in result.sequences:
        logits = model.hf(torch.tensor([[*start, *new]])).logits[0].float().log_softmax(-1)
        found.append(-sum(float(logits[len(start) - 1 + i, token]) for i, token in enumerate(new)))
    return torch.tensor(found, dtype=torch.float64)


def told(result: UnitResult) -> Tensor:
    """The same as the server told it."""
    return torch.tensor([nll for nll, _ in result.documents], dtype=torch.float64)


def test_what_the_server_sampled_is_the_models_own_in_likelihood_and_covariance(
    model: EditableModel, vllm: Server
) -> None:
    unit = unit_of(0, seed=0, sequences=64)
    served = run_served_unit(model, unit, LAYERS, SAMPLES, config(vllm), keep_tokens=True)
    # token ids went in and came out as they are: the same starts, and the likelihoods of exactly these tokens
    assert [list(start) for start, _ in served.sequences] == seed_sequences(model, unit, SAMPLES)
    assert served.tokens == sum(len(new) for _, new in served.sequences) > 1000
    off = float((told(served) - likelihoods(model, served)).abs().max())
    again = run_served_unit(model, unit, LAYERS, SAMPLES, config(vllm), keep_tokens=True)
    same = sum(a == b for a, b in zip(served.sequences, again.sequences, strict=True))
    print(f"\nlargest difference of a sequence's NLL {off:.2g} nats; {same} of 64 sequences equal when asked again")
    assert off < 0.01

    # in distribution: not further from what is sampled here than two of those are from each other
    here, other = (run_unit(model, unit_of(n, seed=9, sequences=64), LAYERS, SAMPLES) for n in (1, 2))
    nll = {name: per_token_nll(r.documents) for name, r in {"served": served, "here": here, "other": other}.items()}
    for layer in LAYERS:
        means = [result.sums[layer] / result.tokens for result in (served, here, other)]
        floor = float((means[1] - means[2]).norm() / means[1].norm())
        found = max(float((means[0] - mean).norm() / mean.norm()) for mean in means[1:])
        ranks = [effective_rank(eigenspectrum(mean)) for mean in means]
        print(f"layer {layer}: {found:.3f} from one sampled here, those two {floor:.3f} apart, effective ranks {ranks}")
        assert found <= 1.5 * floor
    divergence, floor = (jensen_shannon(nll[name], nll["here"]) for name in ("served", "other"))
    print(f"JSD of per-document NLL {divergence:.3f}, of two sampled here {floor:.3f}; tokens {served.tokens}")
    assert divergence < 0.1


def test_the_live_version_is_loaded_for_an_estimate_and_is_what_the_server_samples_from(
    model: EditableModel, vllm: Server, streamed: Path, smollm2: Path
) -> None:
    with Journal.open(streamed / "journal.sqlite") as journal:
        store, version = open_store(streamed), journal.versions()[4]
        weights = edition(journal, store, open_base(journal, None), version).weights
        results: list[UnitResult] = []

        class Here:
            def estimate(self, job: EstimateJob, weights: Any, progress: Any = None, stop: Any = None) -> Estimate:
                assert job.generation.server is not None
                with VllmServer(vllm.url) as client:
                    assert job.generation.server.model in client.served().adapters
                unit = unit_of(0, seed=job.seed, sequences=24)
                server = job.generation.server
                results.append(run_served_unit(edited, unit, LAYERS, job.generation, server, keep_tokens=True))
                info = BlockInfo(0, results[0].tokens, results[0].documents, 0.0)
                sums = {layer: results[0].sums[layer] for layer in LAYERS}
                return Estimate(KeyCovariance(sums, info.tokens, job.source("float32")), info.documents, 0.0, 0)

        edited = load_model(str(smollm2), dtype="float32")
        for layer, weight in weights.items():
            edited.set_weight(layer, weight)
        generation = SAMPLES.model_copy(update={"server": config(vllm)})
        job = EstimateJob(generation=generation, layers=LAYERS, tokens=500, version=version.digest)
        LiveSampling(Here(), PublishConfig(max_rank=RANK, timeout_seconds=300), journal, store).estimate(job, weights)

    own = float((told(results[0]) - likelihoods(edited, results[0])).abs().max())
    base = float((told(results[0]) - likelihoods(model, results[0])).abs().max())
    print(f"\nNLL of the server's sequences: {own:.2g} nats off by the edited weights, {base:.2g} by the base")
    assert own < 0.02 and base > 10 * own
    with VllmServer(vllm.url) as client:
        assert not [name for name in client.served().adapters if "sampling" in name]


def test_a_run_refreshes_from_its_live_version_through_the_server(streamed: Path) -> None:
    with Journal.open(streamed / "journal.sqlite", read_only=True) as journal:
        [done] = [row for row in journal.refreshes() if row.state == "swapped"]
        events = [event.data for event in journal.events(EVENT)]
        assert done.triggered_at == 10 and done.covariance is not None
        covariance = load_covariance(open_store(streamed), done.covariance)
        first = load_covariance(open_store(streamed), journal.swaps()[0].covariance)
        v2 = journal.versions()[2]
    assert [e["what"] for e in events if e["sequence"] == 2] == ["loading", "unloaded"]
    assert covariance.source["version"] == v2.digest
    assert covariance.source["server"] == {"model": f"errata-sampling-v2-{v2.digest[:8]}"}
    layer = covariance.layers[0]
    apart = float((covariance.mean(layer) - first.mean(layer)).norm() / first.mean(layer).norm())
    print(f"\n{covariance.tokens} tokens of v2; its covariance is {apart:.3f} from the base's, relative")
    assert covariance.tokens >= 1500 and 0 < apart < 1
