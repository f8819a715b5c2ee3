"""Target values: the batched form of ``errata.editing.values`` against the way of published code, on one thread.

    python -m benchmarks.values [--data counterfact.json]     # SmolLM2, six contexts, 25 steps

The published way (MEMIT, EasyEdit) takes one edit at a time and runs, in every step, the padded batch of all its
contexts and the KL prompt, whole sequences through all layers, with logits and log-probabilities at every position.
It is written here with the library's own pass. Both forms have the same settings and the same rule for stopping, and
their results are compared before any ratio is taken.

The arithmetic floor is what the fast form cannot avoid: positions from the subject's last token on, times the layers
above the value layer, forward and back, and the head where a token is predicted, at the core's measured rate of dense
products of many rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import context, gemm_rate, one_thread, store, timed
from benchmarks.records import CONTEXT_LENGTH, CONTEXTS, LAYERS, counterfact, smollm2
from errata.editing.contexts import sample_contexts
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import KL_TEMPLATE, TargetValue, ValueConfig, edit_segments, optimize_values


def published(
    model: EditableModel, request: EditRequest, *, layer: int, contexts: Sequence[str], config: ValueConfig
) -> tuple[Tensor, float, int]:
    """One edit the published way: its delta (d,), the last loss, the number of steps."""
    target = model.text.encode_target(request.target_new)
    runs = [model.text.encode_for_edit(c, request.prompt, request.subject) for c in contexts]
    kl_ids, kl_at = model.text.encode_for_edit("", KL_TEMPLATE, request.subject)
    sequences = [tokens + target[:-1] for tokens, _ in runs] + [kl_ids]
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), model.text.pad_id, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)], seen[row, : len(tokens)] = torch.tensor(tokens), 1
    rows = torch.arange(len(sequences))
    subjects = torch.tensor([at for _, at in runs] + [kl_at])
    places = torch.tensor([[len(s) - len(target) + i for i in range(len(target))] for s in sequences[:-1]])
    block = model.decoder.layers[layer]
    delta = torch.zeros(model.hidden_size, requires_grad=True)
    h: Tensor | None = None
    kl_base: Tensor | None = None

    def hook(_: Any, __: Any, out: Any) -> Any:
        nonlocal h
        state = out[0] if isinstance(out, tuple) else out
        if h is None:
            h = state[0, subjects[0]].detach().clone()
        moved = state.clone()
        moved[rows, subjects] += delta
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    adam = torch.optim.Adam([delta], lr=config.lr)
    loss = float("nan")
    for step in range(config.steps):
        handle = block.register_forward_hook(hook)
        try:
            scores = model.hf(input_ids=ids, attention_mask=seen, use_cache=False).logits.log_softmax(dim=-1)
        finally:
            handle.remove()
        assert h is not None
        now = scores[-1, kl_at]
        if kl_base is None:
            kl_base = now.detach().clone()
        picked = scores[rows[:-1, None], places, torch.tensor(target)]
        total = -picked.mean() + config.kl_factor * (now.exp() * (now - kl_base)).sum()
        if bool(delta.any()):  # |delta| has no gradient at 0
            total = total + config.weight_decay * delta.norm() / h.norm() ** 2
        loss = float(total.detach())
        if loss < config.stop_loss or step == config.steps - 1:
            return delta.detach(), loss, step + 1
        adam.zero_grad()
        total.backward()
        adam.step()
        if config.clamp is not None:
            with torch.no_grad():
                delta *= min(1.0, config.clamp * float(h.norm()) / float(delta.norm()))
    raise AssertionError("the loop returns")


def same(got: TargetValue, delta: Tensor, loss: float, steps: int, stop_loss: float) -> float:
    """Relative difference of the deltas; a fast wrong answer is none, so other losses or steps raise AssertionError."""
    near_stop = abs(loss - stop_loss) < 1e-3
    if abs(got.loss - loss) > 1e-4 or (got.steps != steps and not near_stop):
        raise AssertionError(f"loss {got.loss:.6f} after {got.steps} steps, want {loss:.6f} after {steps}")
    return float((got.delta - delta).norm() / delta.norm().clamp_min(1e-12))


def floor_operations(
    model: EditableModel, requests: Sequence[EditRequest], *, layer: int, contexts: Sequence[str], kl: bool = True
) -> float:
    """Floating-point operations per step of these edits that no exact form avoids: dense products alone."""
    inner = sum(p.numel() for p in model.decoder.layers[layer].parameters() if p.ndim == 2)
    head = model.hf.get_output_embeddings().weight.numel()
    total = 0.0
    for request in requests:
        segments = edit_segments(model, request, contexts)
        positions = sum(len(s.tokens) - s.subject for s in segments)
        predicted = sum(len(s.targets) for s in segments) + int(kl)
        # forward and the gradient of the inputs are a product each; weights have no gradient
        total += 2 * 2 * (positions * inner * (model.num_layers - layer - 1) + predicted * head)
    return total


def measure(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    contexts: Sequence[str],
    config: ValueConfig,
    plain: int,
    batches: Sequence[int],
    repeats: int,
    rate: float,
) -> dict[str, Any]:
    """CPU seconds per edit of both forms; the published one on the first ``plain`` edits, once per repeat."""
    published_s: list[list[float]] = [[] for _ in range(plain)]
    fast_s: dict[int, list[float]] = {size: [] for size in batches}
    alone: list[TargetValue] = []
    worst, steps_plain, steps_fast = 0.0, 0, {}
    for _ in range(repeats):  # in turns, so that both meet the same neighbors
        for i in range(plain):
            seconds, (delta, loss, steps) = timed(
                lambda: published(model, requests[i], layer=layer, contexts=contexts, config=config)  # noqa: B023
            )
            published_s[i].append(seconds)
            (value,) = alone[i : i + 1] or optimize_values(
                model, requests[i : i + 1], layer=layer, contexts=contexts, config=config
            )
            alone[i:] = [value]
            worst = max(worst, same(value, delta, loss, steps, config.stop_loss))
        for size in batches:
            chosen = requests[: max(size, plain)]
            groups = [chosen[at : at + size] for at in range(0, len(chosen), size)]
            seconds, values = timed(
                lambda: [
                    value
                    for group in groups  # noqa: B023
                    for value in optimize_values(model, group, layer=layer, contexts=contexts, config=config)
                ]
            )
            fast_s[size].append(seconds)
            steps_fast[size] = sum(value.steps for value in values)
    steps_plain = sum(value.steps for value in alone)
    plain_step = sum(map(min, published_s)) / steps_plain
    result: dict[str, Any] = {
        "layer": layer,
        "settings": config.model_dump(),
        "contexts": len(contexts),
        "published_edits": plain,
        "published_s_per_edit": sum(map(min, published_s)) / plain,
        "published_s_per_edit_step": plain_step,
        "largest_difference_of_delta": worst,
        "gemm_Gflops": rate / 1e9,
    }
    for size in batches:
        chosen = requests[: max(size, plain)]
        per_step = min(fast_s[size]) / steps_fast[size]
        floor = floor_operations(model, chosen, layer=layer, contexts=contexts) / len(chosen) / rate
        result[f"batch_{size}"] = {
            "edits": len(chosen),
            "s_per_edit": min(fast_s[size]) / len(chosen),
            "steps_per_edit": steps_fast[size] / len(chosen),
            "s_per_edit_step": per_step,
            "ratio": plain_step / per_step,
            "floor_s_per_edit_step": floor,
            "share_of_floor_rate": floor / per_step,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CounterFact as JSON")
    parser.add_argument("--plain", type=int, default=3, help="edits that the published form is timed on")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--fast", action="store_true", help="the `fast` profile beside the exact form")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = smollm2()
    requests = counterfact(options.data, 16)
    contexts = sample_contexts(model, count=CONTEXTS, length=CONTEXT_LENGTH, seed=0)
    rate = gemm_rate(1024, 576, 1536)
    result = {"context": context(model=model.name)} | measure(
        model, requests, layer=LAYERS[-1], contexts=contexts, config=ValueConfig(),
        plain=options.plain, batches=(1, 16), repeats=options.repeats, rate=rate,
    )  # fmt: skip
    for name, value in result.items():
        print(f"{name}: {value}")
    print(store("values", result, options.json))


if __name__ == "__main__":
    main()
