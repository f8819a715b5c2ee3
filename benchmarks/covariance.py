"""Key covariances: tokens per CPU second of the text pass and of self-generation, and how both grow with workers.

    python -m benchmarks.covariance [--text wiki.test.raw]     # SmolLM2, five layers, one thread
    python -m benchmarks.covariance --only-sampling --model DIR # self-generation of another model
    python -m benchmarks.covariance --workers 1 2              # and wall-clock rates of an estimate on a local Ray

Text: one packed pass that ends at the last edited layer, against one pass per layer, each up to its layer, documents
one by one without padding, as published code makes it. The floor is the dense products of the layers that are run and
the symmetric half of the rank-k updates, at the core's measured rate. Self-generation: the same units with keys of five
layers and with none, with each way of sampling, beside the dense products of the same steps alone.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import context, gemm_rate, one_thread, store, timed
from benchmarks.records import LAYERS, MODEL, ROOT
from errata.editing.checkpoint.load import load_model
from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, CorpusReading, cut, run_corpus_unit
from errata.editing.estimation.sampler import default_sampler
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel


@torch.no_grad()
def layer_by_layer(
    model: EditableModel, pieces: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], int]:
    """The published way: for each layer a pass of its own, up to that layer, over the pieces, each alone; float32."""
    sums: dict[int, Tensor] = {}
    skip = max(1, len(model.text.bos))
    for layer in layers:
        width = int(model.weight(layer).shape[1])
        total = torch.zeros(width, width)
        for piece in pieces:
            rows = model.rows([piece])
            with model.map_inputs([layer]) as inputs:
                model.run(model.embed(rows), 0, layer + 1, model.positional(rows.layout))
            keys = inputs[layer][0, skip:]
            total += keys.T @ keys
        sums[layer] = total.double()
    return sums, sum(len(piece) - skip for piece in pieces)


def floor_operations(model: EditableModel, layers: Sequence[int]) -> float:
    """Floating-point operations per token that the pass cannot avoid, attention's own products left out."""
    below = sum(p.numel() for i in range(max(layers)) for p in model.decoder.layers[i].parameters() if p.ndim == 2)
    last = sum(p.numel() for p in model.decoder.layers[max(layers)].parameters() if p.ndim == 2)
    last -= model.parameter(max(layers)).numel()  # its output is not needed
    return 2.0 * (below + last) + sum(float(model.weight(layer).shape[1]) ** 2 for layer in layers)


def text_pass(
    model: EditableModel,
    documents: Sequence[str],
    layers: Sequence[int],
    *,
    plain: int,
    repeats: int,
    rate: float,
    window: int = 257,
) -> dict[str, Any]:
    """Tokens per CPU second of the packed pass, and of the published way on the first ``plain`` documents."""
    config = CorpusReading(window=window)
    first = [piece for text in documents[:plain] for piece in cut(model.text, text, window)]
    plain_s, (want, count) = timed(lambda: layer_by_layer(model, first, layers))
    small = run_corpus_unit(model, 0, 0, documents[:plain], layers, config)
    worst = max(float((small.sums[i] - want[i]).norm() / want[i].norm()) for i in layers)
    if small.tokens != count or not worst < 1e-5:
        raise AssertionError(f"{small.tokens} keys, want {count}; sums differ by {worst:.2g}")
    tokens, times = 0, []
    for _ in range(repeats):
        seconds, unit = timed(lambda: run_corpus_unit(model, 0, 0, documents, layers, config))
        tokens = unit.tokens
        times.append(seconds)
    fast = tokens / min(times)
    floor = rate / floor_operations(model, layers)
    return {
        "tokens": tokens,
        "tokens_per_cpu_s": fast,
        "published_tokens": count,
        "published_tokens_per_cpu_s": count / plain_s,
        "ratio": fast * plain_s / count,
        "largest_difference_of_sums": worst,
        "floor_tokens_per_cpu_s": floor,
        "share_of_floor_rate": fast / floor,
    }


def self_generation(
    model: EditableModel, layers: Sequence[int], config: SelfGenerationConfig, *, repeats: int
) -> dict[str, Any]:
    """Throughput of generation with fused keys as a share of that of generation alone, in turns."""
    unit = unit_of(0, seed=0, sequences=config.sequences_per_unit)
    alone, fused = [], []
    tokens = 0
    for _ in range(repeats):
        seconds, plain = timed(lambda: run_unit(model, unit, (), config))
        alone.append(seconds)
        seconds, keyed = timed(lambda: run_unit(model, unit, layers, config))
        fused.append(seconds)
        tokens = keyed.tokens
        if [d[1] for d in plain.documents] != [d[1] for d in keyed.documents]:
            raise AssertionError("taking keys changed what was sampled")
    return {
        "sequences": config.sequences_per_unit,
        "slots": config.slots,
        "tokens": tokens,
        "alone_tokens_per_cpu_s": tokens / min(alone),
        "fused_tokens_per_cpu_s": tokens / min(fused),
        "share": min(alone) / min(fused),
    }


def products_of_a_step(model: EditableModel, rows: int) -> Callable[[], None]:
    """The dense products of decoding one token in each of ``rows`` rows and nothing else: every matrix of the model."""
    matrices = [p for layer in model.decoder.layers for p in layer.parameters() if p.ndim == 2]
    matrices = [p.T if model.decoder.transposed else p for p in matrices]
    matrices.append(model.hf.get_output_embeddings().weight)
    inputs = {p.shape[1]: torch.randn(rows, p.shape[1], dtype=p.dtype) for p in matrices}

    def step() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(inputs[matrix.shape[1]], matrix)

    return step


@torch.no_grad()
def sampling_cost(model: EditableModel, config: SelfGenerationConfig, *, repeats: int) -> dict[str, Any]:
    """CPU milliseconds per sampled token of generation without keys, by sampler, and of the products alone, in turns.

    No sequence ends before its limit, so that every step has all rows and takes the same products.
    """
    unit = unit_of(0, seed=0, sequences=config.slots)
    steps = config.max_new_tokens + config.seed_tokens + len(model.text.bos)
    step = products_of_a_step(model, config.slots)
    spent: dict[str, list[float]] = {"products": [], "inversion": [], "blocks": []}
    tokens = config.slots * config.max_new_tokens
    ends, model.text.eos_ids = model.text.eos_ids, frozenset()
    try:
        for _ in range(repeats):
            spent["products"].append(timed(lambda: [step() for _ in range(steps)])[0])
            for sampler in ("inversion", "blocks"):
                chosen = config.model_copy(update={"sampler": sampler, "sequences_per_unit": config.slots})
                seconds, unit_result = timed(functools.partial(run_unit, model, unit, (), chosen))
                if unit_result.tokens != tokens:
                    raise AssertionError(f"{unit_result.tokens} tokens were sampled, want {tokens}")
                spent[sampler].append(seconds)
    finally:
        model.text.eos_ids = ends
    least = {name: min(times) for name, times in spent.items()}
    return {
        "vocabulary": int(model.hf.config.vocab_size),
        "slots": config.slots,
        "tokens": tokens,
        "default": default_sampler(int(model.hf.config.vocab_size)),
        "ms_per_token": {name: 1000 * seconds / tokens for name, seconds in least.items()},
        "times_the_products": {name: least[name] / least["products"] for name in ("inversion", "blocks")},
    }


def scaling(model_name: str, layers: tuple[int, ...], counts: Sequence[int], *, sequences: int) -> dict[str, Any]:
    """Wall-clock tokens/s of one self-generated estimate by number of workers, models loaded beforehand."""
    import ray

    from errata.actors.covariance import CovarianceEstimator
    from errata.actors.settings import ModelSpec, RayConfig
    from errata.actors.workers.covariance import EstimateJob

    result: dict[str, Any] = {}
    digests = set()
    for count in counts:
        ray.init(address="local", num_cpus=max(counts), include_dashboard=False, log_to_driver=False)
        try:
            estimator = CovarianceEstimator(RayConfig(generation_workers=count), ModelSpec(name=model_name))
            generation = SelfGenerationConfig(max_new_tokens=128)
            first = EstimateJob(generation=generation, layers=layers, sequences=16 * count, version="base", seed=1)
            estimator.estimate(first, {})
            job = EstimateJob(generation=generation, layers=layers, sequences=sequences, version="base")
            start = time.perf_counter()
            estimate = estimator.estimate(job, {})
            seconds = time.perf_counter() - start
            digests.add(estimate.covariance.digest)
            result[str(count)] = {
                "tokens": estimate.covariance.tokens,
                "wall_s": seconds,
                "tokens_per_s": estimate.covariance.tokens / seconds,
            }
            estimator.close()
        finally:
            ray.shutdown()
    if len(digests) != 1:
        raise AssertionError("the number of workers changed the result")
    least = min(counts)
    for count in counts:
        ideal = result[str(least)]["tokens_per_s"] * count / least
        result[str(count)]["efficiency"] = result[str(count)]["tokens_per_s"] / ideal
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", help="plain text; by default WikiText beside the papers' data")
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128, help="length of a generated sequence")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="also the rates with so many workers")
    parser.add_argument("--sequences", type=int, default=128, help="of the estimate with so many workers")
    parser.add_argument("--model", default=MODEL, help="a directory or a name; layers are those of SmolLM2")
    parser.add_argument("--only-sampling", action="store_true", help="the cost of sampling alone")
    parser.add_argument("--slots", type=int, default=16, help="sequences decoded side by side for the cost of sampling")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = load_model(options.model)
    short = SelfGenerationConfig(max_new_tokens=min(options.new_tokens, 32), slots=options.slots)
    sampling = sampling_cost(model, short, repeats=options.repeats)
    print(sampling, flush=True)
    if options.only_sampling:
        print(store("sampling", {"context": context(model=options.model), "sampling": sampling}, options.json))
        return
    path = options.text or str(ROOT.parent / "shared" / "data" / "wikitext" / "wiki.test.raw")
    documents = CorpusReader(CorpusConfig(path=path, split="line")).take(0, 10 * options.documents)
    documents = [text for text in documents if len(text) > 200][: options.documents]
    rate = gemm_rate(1024, 576, 1536)
    result: dict[str, Any] = {
        "context": context(model=model.name, gemm_Gflops=rate / 1e9),
        "layers": list(LAYERS),
        "sampling": sampling,
        "text": text_pass(model, documents, LAYERS, plain=12, repeats=options.repeats, rate=rate),
        "self_generation": self_generation(
            model, LAYERS, SelfGenerationConfig(max_new_tokens=options.new_tokens), repeats=options.repeats
        ),
    }
    print(result, flush=True)
    if options.workers:
        del model
        result["scaling"] = scaling(options.model, LAYERS, options.workers, sequences=options.sequences)
        print(result["scaling"])
    print(store("covariance", result, options.json))


if __name__ == "__main__":
    main()
