"""What a step of one edit's target value spends its time on: products, attention, elementwise work, by shape alone.

    python -m benchmarks.value_parts [--rows 35] [--past 110]       # the shapes of SmolLM2; no model is loaded

Rows are the positions of one edit from the subject's last token on in all its contexts, past those before them. Each
part is timed forward and back on one thread with as many copies as there are layers above the value layer, so that
weights come from memory as they do in a step. Products are timed as the library makes them (`plain`), with weights
packed for the way forward (what `editing.values` does), and packed both ways; `pack` is what packing costs, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measuring import best, context, gemm_rate, one_thread, store

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, VOCABULARY, LAYERS_ABOVE = 576, 1536, 9, 3, 64, 49152, 21
PER_LAYER = (3 * HIDDEN * INNER + 2 * HIDDEN * HEADS * WIDTH + 2 * HIDDEN * KV_HEADS * WIDTH) / (HIDDEN * INNER)
"""Weights of a layer in units of one MLP map."""


def products(rows: int, copies: int) -> dict[str, float]:
    """CPU seconds of one MLP map's product for so many rows, forward and back."""
    weights = [torch.randn(INNER, HIDDEN) for _ in range(copies)]
    turned = [weight.t().contiguous() for weight in weights]
    x, g = torch.randn(rows, HIDDEN), torch.randn(rows, INNER)
    pack, product = torch.ops.mkl._mkl_reorder_linear_weight, torch.ops.mkl._mkl_linear
    forward, back = [pack(w, rows) for w in weights], [pack(w, rows) for w in turned]

    def each(call: Callable[[], object]) -> float:
        return best(call, 3) / copies

    return {
        "plain": each(lambda: [functional.linear(x, w) for w in weights]),
        "packed": each(lambda: [product(x, p, w, None, rows) for p, w in zip(forward, weights, strict=True)]),
        "back": each(lambda: [g @ w for w in weights]),
        "back_packed": each(lambda: [product(g, p, w, None, rows) for p, w in zip(back, turned, strict=True)]),
        "pack": each(lambda: [pack(w, rows) for w in weights]),
        "turn": each(lambda: [w.t().contiguous() for w in weights]),
    }


def attention(rows: int, past: int, repeats: int = 8) -> float:
    """CPU seconds of one layer's attention of one edit, forward and back."""
    q = torch.randn(1, HEADS, rows, WIDTH, requires_grad=True)
    k, v = (torch.randn(1, KV_HEADS, past + rows, WIDTH, requires_grad=True) for _ in range(2))
    mask, g = torch.zeros(1, 1, rows, past + rows), torch.randn(1, HEADS, rows, WIDTH)

    def shared(x: Tensor) -> Tensor:
        return x.repeat_interleave(HEADS // KV_HEADS, dim=1)

    def call() -> None:
        for _ in range(repeats):
            out = functional.scaled_dot_product_attention(q, shared(k), shared(v), attn_mask=mask)
            torch.autograd.grad(out, (q, k, v), g)

    return best(call, 2) / repeats


def elementwise(rows: int, repeats: int = 8) -> float:
    """CPU seconds of one layer's two norms, two rotations and the gate, forward and back."""
    x = torch.randn(1, rows, HIDDEN, requires_grad=True)
    q = torch.randn(1, HEADS, rows, WIDTH, requires_grad=True)
    u = torch.randn(1, rows, INNER, requires_grad=True)
    gain, angle = torch.ones(HIDDEN), torch.randn(1, 1, rows, WIDTH)

    def call() -> None:
        for _ in range(repeats):
            for _ in range(2):
                y = gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
                torch.autograd.grad(y.sum(), x)
                one, two = q.chunk(2, dim=-1)
                torch.autograd.grad((q * angle + torch.cat((-two, one), dim=-1) * angle).sum(), q)
            torch.autograd.grad((functional.silu(u) * u).sum(), u)

    return best(call, 2) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=35)
    parser.add_argument("--past", type=int, default=110)
    parser.add_argument("--predicted", type=int, default=13, help="rows that the head sees")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    rate = gemm_rate(1024, HIDDEN, INNER, seconds=0.2)
    map_s, head_s = products(options.rows, 16), products(options.predicted, 16)
    maps, head = LAYERS_ABOVE * PER_LAYER, VOCABULARY / INNER
    step: dict[str, Any] = {
        "products": maps * (map_s["packed"] + map_s["back"]),
        "head": head * (head_s["packed"] + head_s["back"]),
        "attention": LAYERS_ABOVE * attention(options.rows, options.past),
        "elementwise": LAYERS_ABOVE * elementwise(options.rows),
    }
    step["sum"] = sum(step.values())
    unpacked = maps * (map_s["plain"] + map_s["back"]) + head * (head_s["plain"] + head_s["back"])
    both = maps * (map_s["packed"] + map_s["back_packed"]) + head * (head_s["packed"] + head_s["back_packed"])
    operations = 4.0 * HIDDEN * INNER * (maps * options.rows + head * options.predicted)
    result = {
        "context": context(gemm_Gflops=rate / 1e9),
        "rows": options.rows,
        "past": options.past,
        "seconds_of_a_step": step,
        "products_and_head_unpacked": unpacked,
        "products_and_head_packed_both_ways": both,
        "products_and_head_at_the_core's_rate": operations / rate,
        "packing_once": {
            "forward": (maps + head) * map_s["pack"],
            "back": (maps + head) * (map_s["turn"] + map_s["pack"]),
        },
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    print(store("value_parts", result, options.json))


if __name__ == "__main__":
    main()
