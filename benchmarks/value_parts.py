"""What a step of the value optimization spends its time on, and what writing the layers out and packing weights save.

    python -m benchmarks.value_parts [--data counterfact.json] [--edits 1 4]      # SmolLM2, six contexts

The upper layers of one step, forward and back, in four ways: the library's layers under autograd (``general``), the
same with packed weights, written out (``span``), and written out with packed weights, which is what an optimization
does for few rows. All four must give the same losses and gradients before their times count. Beside them, by shape
alone: the products that a step consists of, plain and packed, each way, and at the core's rate for many rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import best, context, gemm_rate, one_thread, store
from benchmarks.records import CONTEXT_LENGTH, CONTEXTS, LAYERS, counterfact, smollm2
from errata.editing.contexts import sample_contexts
from errata.editing.model.adapter import EditableModel
from errata.editing.model.packed import Packed, PackedWeights, multiplying
from errata.editing.request import EditRequest
from errata.editing.value_problem import Problem
from errata.editing.values import PLAIN, ValueConfig, edit_segments

WAYS = (("general", False, False), ("general_packed", False, True), ("span", True, False), ("span_packed", True, True))


def problem_of(model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Problem:
    """What does not change from step to step."""
    edits = [edit_segments(model, request, contexts) for request in requests]
    return Problem(model, edits, LAYERS[-1], ValueConfig(), "block", PLAIN)


def ways(model: EditableModel, problem: Problem, repeats: int) -> dict[str, float]:
    """CPU seconds of a step in each of the four ways.

    Raises:
        AssertionError: one of them gives other losses or gradients.
    """
    torch.manual_seed(0)
    delta = 0.1 * problem.h.norm(dim=1, keepdim=True) * torch.randn_like(problem.h) / problem.h.shape[1] ** 0.5
    wanted: tuple[Tensor, Tensor] | None = None
    seconds = {}
    _, baseline = problem.losses(torch.zeros_like(delta), problem.h, None)
    for name, span, packed in WAYS:
        model.packed = PackedWeights()
        prepared = problem.prepare(pack=packed)
        if not span:
            problem.span = None

        def step() -> tuple[Tensor, Tensor]:
            at = delta.clone().requires_grad_()
            losses, _ = problem.losses(at, problem.h, baseline)
            losses.sum().backward()
            assert at.grad is not None
            return losses.detach(), at.grad

        with multiplying(prepared):
            got = step()
            wanted = got if wanted is None else wanted
            apart = max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))
            if not apart < 1e-4:
                raise AssertionError(f"{name}: losses or gradients differ by {apart:.2g} from the general way's")
            seconds[name] = best(step, repeats)
    return seconds


def products(model: EditableModel, problem: Problem, repeats: int) -> dict[str, float]:
    """CPU seconds of a step's products by shape, each weight read from memory; ``pack`` is what packing costs once,
    both ways."""
    sums = dict.fromkeys(("plain", "packed", "back", "packed_back", "pack"), 0.0)
    shapes: dict[tuple[int, int, int], int] = {}
    for module, rows in problem.rows_of_maps(problem.first, model.num_layers).items():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2:
            shape = (rows, *weight.shape)
            shapes[shape] = shapes.get(shape, 0) + 1
    for shape, count in shapes.items():
        for name, seconds in of_shape(*shape, min(count, 8), repeats).items():
            sums[name] += count * seconds
    return sums


def of_shape(rows: int, outputs: int, inputs: int, copies: int, repeats: int) -> dict[str, float]:
    """CPU seconds of one product for so many rows; ``copies`` of the weight take turns."""
    maps = [nn.Linear(inputs, outputs, bias=False).requires_grad_(False) for _ in range(copies)]
    weights = [module.weight for module in maps]
    agreed: dict[tuple[int, int, int], bool] = {}

    def pack() -> list[Packed]:
        return [Packed([module], agreed) for module in maps]

    ready = pack()
    x, g = torch.randn(rows, inputs), torch.randn(rows, outputs)
    return {
        "plain": best(lambda: [functional.linear(x, w) for w in weights], repeats) / copies,
        "packed": best(lambda: [p.forward(x) for p in ready], repeats) / copies,
        "back": best(lambda: [g @ w for w in weights], repeats) / copies,
        "packed_back": best(lambda: [p.backward(g) for p in ready], repeats) / copies,
        "pack": best(pack, repeats) / copies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CounterFact as JSON")
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 4], help="edits in one batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = smollm2()
    contexts = sample_contexts(model, count=CONTEXTS, length=CONTEXT_LENGTH, seed=0)
    requests = counterfact(options.data, max(options.edits))
    rate = gemm_rate(1024, 576, 1536, seconds=0.2)
    result: dict[str, Any] = {"context": context(model=model.name, gemm_Gflops=rate / 1e9)}
    for count in options.edits:
        problem = problem_of(model, requests[:count], contexts)
        rows = problem.hidden.shape[0] * problem.hidden.shape[1]
        operations = 4.0 * sum(
            rows * module.weight.numel()
            for module, rows in problem.rows_of_maps(problem.first, model.num_layers).items()
            if getattr(module, "weight", None) is not None and module.weight.ndim == 2
        )
        result[f"edits_{count}"] = {
            "rows": rows,
            "past": problem.past_layout.segments.shape[1],
            "step_s": ways(model, problem, options.repeats),
            "products_s": products(model, problem, options.repeats),
            "products_at_the_cores_rate_s": operations / rate,
        }
    for name, value in result.items():
        print(f"{name}: {value}")
    print(store("value_parts", result, options.json))


if __name__ == "__main__":
    main()
