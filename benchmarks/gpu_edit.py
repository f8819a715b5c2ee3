"""Seconds per edit on one accelerator, split, with an 8B-shaped Llama of random weights in bfloat16.

    python -m benchmarks.gpu_edit                        # Llama-3-8B's shape, batches of 1, 10, 100: four minutes
    python -m benchmarks.gpu_edit --device cpu --layers 2 --hidden 64 --inner 128 --vocabulary 512 --batches 1 2

The time does not depend on the values of the weights; with random ones no edit converges, so all 25 steps are made. The
prompts have the lengths of CounterFact's on Llama. AlphaEdit's lifelong state is used with a random basis of 40 leading
directions: what is done once per covariance is no part of an edit.

The roofline is the larger of two times, summed over the steps: the dense products over the chip's rate, and the weights
above the value layer, read forward and back once per micro-batch, over its memory bandwidth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.linear_algebra import L2, LEADING
from benchmarks.measuring import context, store
from benchmarks.values import floor_operations
from benchmarks.whole_edit import PARTS, Clock, split
from errata.editing.covariance import KeyCovariance
from errata.editing.editors.closed_form.alphaedit import AlphaEdit, AlphaEditConfig
from errata.editing.linalg import Base, ProjectedIdentity
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import ValueConfig, edit_segments

WORDS = tuple(f"c{i}" for i in range(20))
"""What the prefixes are made of."""
CONTEXTS = ("", *(" ".join(WORDS[i : i + 10]) + ". " for i in range(5)))
PROMPT = "{} was born in the city of"
CHIPS = {"h200": (989e12, 4.8e12), "h100": (989e12, 3.35e12), "a100": (312e12, 2.0e12)}
"""Dense bfloat16 operations per second, and bytes per second of memory, as their maker states them."""


def word_tokenizer(vocabulary: int) -> Any:
    """A fast tokenizer of one token a word, so that lengths are what they are written as."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "a", "is", ".", *WORDS, *PROMPT.replace("{}", "").split()]
    names = {word: i for i, word in enumerate(dict.fromkeys(words))}
    names |= {f"w{i}": i for i in range(len(names), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")


def random_llama(
    *, layers: int, hidden: int, inner: int, vocabulary: int, device: str, dtype: torch.dtype
) -> EditableModel:
    """A Llama of the given shape, heads of 128 (or fewer where it is narrow) and four queries a key."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    heads = max(4, hidden // 128)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4, vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return EditableModel(model, word_tokenizer(vocabulary), name="random-llama", digest="random")


def some_requests(count: int, vocabulary: int) -> list[EditRequest]:
    """Edits with subjects of three tokens and targets of two."""
    span = vocabulary - 100
    return [
        EditRequest(
            subject=" ".join(f"w{50 + (7 * i + j) % span}" for j in range(3)),
            prompt=PROMPT,
            target_new=f"w{50 + i % span} w{51 + i % span}",
        )
        for i in range(count)
    ]


def random_state(model: EditableModel, layers: Sequence[int], past: int) -> LifelongState:
    """AlphaEdit's state after ``past`` edits with random keys."""

    def base(_: KeyCovariance, layer: int) -> Base:
        generator = torch.Generator().manual_seed(layer)
        width = int(model.weight(layer).shape[1])
        shape = (width, min(LEADING, width // 2))
        basis = torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=torch.float64))[0]
        return ProjectedIdentity(L2, basis, complement=True)

    sizes = {layer: int(model.weight(layer).shape[1]) for layer in layers}
    state = LifelongState.start(sizes, None, base)
    keys = {layer: torch.randn(width, past) / width**0.5 for layer, width in sizes.items()}
    names = [f"past {i}" for i in range(past)]
    return state.appended(keys, names, names) if past else state


def roofline(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, config: ValueConfig, chip: tuple[float, float]
) -> dict[str, float]:
    """Least seconds per edit of the value optimization: by operations, by memory, and the larger of the two."""
    rate, bandwidth = chip
    operations = floor_operations(model, requests, layer=layer, contexts=CONTEXTS) * config.steps / rate
    widest = max(sum(len(s.tokens) - s.subject for s in edit_segments(model, r, CONTEXTS)) for r in requests)
    batches = -(-len(requests) // max(1, config.batch_tokens // widest))
    above = sum(p.numel() for i in range(layer + 1, model.num_layers) for p in model.decoder.layers[i].parameters())
    above += model.hf.get_output_embeddings().weight.numel()
    size = torch.finfo(model.dtype).bits // 8
    memory = 2.0 * above * size * batches * config.steps / bandwidth
    count = len(requests)
    return {
        "floor_operations_s": operations / count,
        "floor_memory_s": memory / count,
        "floor_s": max(operations, memory) / count,
    }


def wall_clock(device: torch.device) -> Clock:
    """Wall-clock seconds until the device has finished."""

    def clock(call: Callable[[], Any]) -> tuple[float, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start, result

    return clock


def measure(
    model: EditableModel,
    layers: tuple[int, ...],
    batches: Sequence[int],
    config: ValueConfig,
    chip: tuple[float, float],
    *,
    past: int,
) -> list[dict[str, Any]]:
    """One row per batch size, after a batch of one that does not count."""
    editor = AlphaEdit(AlphaEditConfig(layers=layers, values=config))
    state = random_state(model, layers, past)
    requests = some_requests(max(batches), int(model.hf.config.vocab_size))
    clock = wall_clock(model.device)
    split(model, editor, requests[:1], state, CONTEXTS, clock)
    rows = []
    for size in batches:
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spent, _ = split(model, editor, requests[:size], state, CONTEXTS, clock)
        row: dict[str, Any] = {"batch": size, "s_per_edit": sum(spent.values()) / size}
        row |= {f"{part}_s": spent[part] / size for part in PARTS}
        row |= roofline(model, requests[:size], layers[-1], config, chip)
        row["times_the_floor"] = row["values_s"] / row["floor_s"]
        if model.device.type == "cuda":
            row["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chip", default="h200", choices=sorted(CHIPS))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14_336)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--past", type=int, default=1000, help="edits made before")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    model = random_llama(
        layers=options.layers, hidden=options.hidden, inner=options.inner, vocabulary=options.vocabulary,
        device=options.device, dtype=torch.bfloat16,
    )  # fmt: skip
    edited = tuple(i for i in (3, 4, 5, 6, 7, 8) if i < options.layers - 1) or (0,)
    config = ValueConfig(lr=0.1, stop_loss=0.0, batch_tokens=options.batch_tokens)
    rows = measure(model, edited, options.batches, config, CHIPS[options.chip], past=options.past)
    for row in rows:
        print({key: round(value, 5) for key, value in row.items()})
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
    result = {"context": context(device=name, chip=options.chip), "layers": list(edited), "rows": rows}
    print(store("gpu_edit", result, options.json))


if __name__ == "__main__":
    main()
