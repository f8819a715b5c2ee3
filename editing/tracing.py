"""Causal tracing: in which layers, and at which tokens, a model recalls a fact.

Meng et al. 2022, arXiv:2202.05262, section 2; the measure and the choice of layers as in the MOIR paper, appendix C.5.
A clean run gives P_clean, the probability of the answer's first token. Gaussian noise on the subject's embeddings
gives P_corrupt. Restoring what the clean run had at one (layer, token) of the corrupted run gives P_restored, and

    indirect effect = (P_restored - P_corrupt) / (P_clean - P_corrupt)

Probabilities are means over the draws of noise. Two facts make it fast and change nothing beyond rounding: a state
restored after layer l changes only layers above l, so a row enters the pass there, with the corrupted run's states;
and attention is causal, so positions before the restored token keep the corrupted run's keys and values.

Letters: D draws of noise, T tokens of a prompt, t the restored position, d hidden size, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import Layout, plain_layout
from errata.editing.model.kv import PrefixKV, RecordingKV
from errata.editing.model.text import TextCodec
from errata.editing.texts import fill, split_slot
from errata.editing.wording import counted

TokenClass = Literal["subject_first", "subject_middle", "subject_last", "first_after", "further", "last"]
CLASSES: tuple[TokenClass, ...] = (
    "subject_first",
    "subject_middle",
    "subject_last",
    "first_after",
    "further",
    "last",
)


class TracingConfig(Closed):
    """What is restored, and how the noise is drawn."""

    kind: Literal["hidden", "mlp"] = "hidden"
    """``hidden`` restores a layer's output; ``mlp`` the outputs of the MLPs of ``span`` layers around it."""
    span: int = Field(10, ge=1)
    """Layers whose MLP outputs are restored together under ``mlp``."""
    noise: float = Field(3.0, gt=0)
    """Standard deviation of the noise in those of the subjects' embeddings."""
    draws: int = Field(5, ge=1)
    """Draws of noise; probabilities are means over them."""
    min_drop: float = Field(0.01, ge=0, lt=1)
    """A prompt counts if the noise lowers the answer's probability by more than this."""
    window: int = Field(6, ge=1)
    """Layers that are chosen."""
    positions: Literal["all", "subject_last"] = "all"
    """Tokens that are restored; ``subject_last`` suffices for the choice of layers."""
    seed: int = Field(0, ge=0)
    """Seed of the noise; each prompt has noise of its own, whatever other prompts there are."""
    batch_tokens: int = Field(4096, ge=1)
    """Positions run at once; bounds the memory."""


@dataclass(frozen=True)
class TracePrompt:
    """A question with its true answer; ``template`` holds the slot ``{}`` for the subject."""

    id: str
    subject: str
    template: str
    answer: str


class PromptTrace(Closed):
    """One prompt. ``effects[i][l]`` is the indirect effect of layer l at ``positions[i]``; empty if excluded."""

    id: str
    prompt: str
    subject: str
    answer: str
    tokens: tuple[str, ...]
    first: int
    """Position of the subject's first token."""
    last: int
    """Position of the subject's last token."""
    p_clean: float
    p_corrupt: float
    excluded: str | None = None
    """Why the prompt does not count."""
    positions: tuple[int, ...] = ()
    effects: tuple[tuple[float, ...], ...] = ()


class ClassEffect(Closed):
    """Mean indirect effect by layer over the prompts that have such a token, and its standard error."""

    prompts: int
    mean: tuple[float, ...]
    error: tuple[float, ...] | None
    """None for a single prompt."""


class Trace(Closed):
    """A whole tracing, as it is kept in JSON."""

    format: Literal[1] = 1
    model: str
    digest: str
    """Of the model's files or weights."""
    layers: int
    """How many the model has."""
    config: TracingConfig
    noise_std: float
    """Standard deviation of the noise that was added."""
    valid: int
    effects: dict[TokenClass, ClassEffect]
    window: tuple[int, ...] | None
    """The chosen layers; None without a valid prompt."""
    window_sum: float | None
    """Sum of the mean indirect effects of the chosen layers at the subject's last token."""
    prompts: tuple[PromptTrace, ...]


def class_of(position: int, first: int, last: int, length: int) -> TokenClass:
    """Class of a token at or behind the subject's first one (positions first to last) in a prompt of ``length``."""
    if position <= last:
        if position == last:
            return "subject_last"
        return "subject_first" if position == first else "subject_middle"
    if position == length - 1:
        return "last"
    return "first_after" if position == last + 1 else "further"


def choose_window(effects: Sequence[float], width: int) -> tuple[tuple[int, ...], float]:
    """The ``width`` contiguous layers with the largest sum, and the sum; the lowest of equal ones.

    Raises:
        UserError: the model has fewer layers.
    """
    if width > len(effects):
        raise UserError(f"window {width} is wider than the model, which has {counted(len(effects), 'layer')}")
    sums = [math.fsum(effects[start : start + width]) for start in range(len(effects) - width + 1)]
    best = max(range(len(sums)), key=lambda start: sums[start])
    return tuple(range(best, best + width)), sums[best]


def class_effects(prompts: Sequence[PromptTrace]) -> dict[TokenClass, ClassEffect]:
    """Mean over each prompt's tokens of a class, then over the prompts that count and have one."""
    by_class: dict[TokenClass, ClassEffect] = {}
    for name in CLASSES:
        rows = []
        for prompt in prompts:
            chosen = [
                effects
                for position, effects in zip(prompt.positions, prompt.effects, strict=True)
                if class_of(position, prompt.first, prompt.last, len(prompt.tokens)) == name
            ]
            if chosen:
                rows.append(torch.tensor(chosen, dtype=torch.float64).mean(dim=0))
        if rows:
            stacked = torch.stack(rows)
            error = stacked.std(dim=0) / math.sqrt(len(rows)) if len(rows) > 1 else None
            by_class[name] = ClassEffect(
                prompts=len(rows),
                mean=tuple(stacked.mean(dim=0).tolist()),
                error=None if error is None else tuple(error.tolist()),
            )
    return by_class


def subject_span(codec: TextCodec, template: str, subject: str) -> tuple[list[int], int, int]:
    """Tokens of the filled template and the positions of the subject's first and last one."""
    ids, last = codec.encode_with_subject("", template, subject)
    before, after = split_slot(template)
    offsets = codec.offsets(before + subject + after)
    first = len(codec.bos) + next(i for i, (_, stop) in enumerate(offsets) if stop > len(before))
    return ids, min(first, last), last


def noise_std(model: EditableModel, config: TracingConfig, subjects: Sequence[Sequence[int]]) -> float:
    """``config.noise`` times the standard deviation of all entries of the embeddings of the subjects' tokens."""
    ids = torch.tensor([token for tokens in subjects for token in tokens], device=model.device)
    return config.noise * float(model.hf.get_input_embeddings()(ids).double().std())


def draw_noise(config: TracingConfig, prompt: TracePrompt, tokens: int, width: int) -> Tensor:
    """Standard normal noise (D, tokens, width), float32, from the seed and the prompt's text alone."""
    seed = digest_json([config.seed, prompt.template, prompt.subject])
    generator = torch.Generator().manual_seed(int(seed[:15], 16))
    return torch.randn(config.draws, tokens, width, generator=generator)


def restored_layers(config: TracingConfig, layer: int, num_layers: int) -> range:
    """Layers whose MLP outputs are restored for the effect of ``layer``; the window is cut at the model's ends."""
    return range(max(0, layer - config.span // 2), min(num_layers, layer + (config.span + 1) // 2))


@dataclass(frozen=True)
class _Run:
    """A pass over one prompt: input of each layer and output of the last (L + 1), MLP outputs, keys and values."""

    inputs: list[Tensor]
    mlp: dict[int, Tensor]
    past: dict[int, tuple[Tensor, Tensor]]


@torch.no_grad()
def trace(
    model: EditableModel,
    prompts: Sequence[TracePrompt],
    config: TracingConfig,
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """Trace all prompts and choose the layers.

    Args:
        progress: called with the number of prompts done.

    Raises:
        UserError: no prompts, a window wider than the model, or probabilities that are not finite.
    """
    if not prompts:
        raise UserError("causal tracing needs at least one prompt with a true answer, got none")
    if config.window > model.num_layers:
        raise UserError(
            f"window {config.window} is wider than {model.name!r}, which has {counted(model.num_layers, 'layer')}"
        )
    spans = [subject_span(model.text, p.template, p.subject) for p in prompts]
    std = noise_std(model, config, [ids[first : last + 1] for ids, first, last in spans])
    traced = []
    for prompt, span in zip(prompts, spans, strict=True):
        traced.append(_trace_prompt(model, prompt, span, std, config))
        if progress is not None:
            progress(len(traced))
    effects = class_effects(traced)
    chosen = choose_window(effects["subject_last"].mean, config.window) if "subject_last" in effects else None
    return Trace(
        model=model.name,
        digest=model.digest,
        layers=model.num_layers,
        config=config,
        noise_std=std,
        valid=sum(p.excluded is None for p in traced),
        effects=effects,
        window=None if chosen is None else chosen[0],
        window_sum=None if chosen is None else chosen[1],
        prompts=tuple(traced),
    )


def _trace_prompt(
    model: EditableModel, prompt: TracePrompt, span: tuple[list[int], int, int], std: float, config: TracingConfig
) -> PromptTrace:
    ids, first, last = span
    answer = model.text.encode_target(prompt.answer)[0]
    hidden = model.embed(model.rows([ids]))
    noise = draw_noise(config, prompt, last + 1 - first, model.hidden_size).to(model.device) * std
    noised = hidden.repeat(config.draws, 1, 1)
    noised[:, first : last + 1] += noise.to(hidden.dtype)
    clean, corrupt = _run(model, hidden), _run(model, noised)
    p_clean = float(_probability(model, clean.inputs[-1], answer).mean())
    p_corrupt = float(_probability(model, corrupt.inputs[-1], answer).mean())
    drop = p_clean - p_corrupt
    if not math.isfinite(drop):
        raise UserError(
            f"{model.name!r} in {str(model.dtype).removeprefix('torch.')} gives no finite probability for prompt "
            f"{prompt.id!r}; set model.dtype to bfloat16 or float32"
        )
    excluded = None
    if last == len(ids) - 1:
        # restoring the position that predicts the answer says nothing about recall at the subject
        excluded = "the prompt ends with its subject"
    elif not drop > config.min_drop:
        excluded = f"the noise lowers the answer's probability by {drop:.2g}, not by more than {config.min_drop:g}"
    positions: tuple[int, ...] = ()
    effects: list[tuple[float, ...]] = []
    if excluded is None:
        # tokens before the subject are the same in both runs: nothing to restore
        positions = tuple(range(first, len(ids))) if config.positions == "all" else (last,)
        for position in positions:
            restored = _restored(model, clean, corrupt, position, answer, config)
            effects.append(tuple((p - p_corrupt) / drop for p in restored))
    return PromptTrace(
        id=prompt.id,
        prompt=fill(prompt.template, prompt.subject),
        subject=prompt.subject,
        answer=prompt.answer,
        tokens=tuple(str(model.text.tokenizer.decode([i])) for i in ids),
        first=first,
        last=last,
        p_clean=p_clean,
        p_corrupt=p_corrupt,
        excluded=excluded,
        positions=positions,
        effects=tuple(effects),
    )


def _run(model: EditableModel, hidden: Tensor) -> _Run:
    length, layers = hidden.shape[1], range(model.num_layers)
    positional = model.positional(_one_row(length, 0, model.device))
    cache, inputs = RecordingKV(0), [hidden]
    with model.map_outputs(layers) as mlp:
        for layer in layers:
            inputs.append(model.run(inputs[-1], layer, layer + 1, positional, cache))
    return _Run(inputs, dict(mlp), cache.layers)


def _one_row(length: int, start: int, device: torch.device) -> Layout:
    """Layout of positions ``start`` to ``length - 1`` of a single row, which serves every row of a batch."""
    whole = plain_layout(torch.tensor([length], device=device), length)
    return Layout(whole.positions[:, start:], whole.segments[:, start:])


def _probability(model: EditableModel, hidden: Tensor, answer: int) -> Tensor:
    """Probability (rows,), float64, of a token after each row of (rows, T, d)."""
    return torch.log_softmax(model.logits(hidden[:, -1]).double(), dim=-1)[:, answer].exp()


def _restored(
    model: EditableModel, clean: _Run, corrupt: _Run, position: int, answer: int, config: TracingConfig
) -> list[float]:
    """P_restored of every layer at one position."""
    rows, length, _ = corrupt.inputs[0].shape
    at_once = max(1, config.batch_tokens // (rows * (length - position)))
    probabilities: list[float] = []
    for start in range(0, model.num_layers, at_once):
        layers = range(start, min(start + at_once, model.num_layers))
        hidden = _restored_states(model, clean, corrupt, position, layers, config)
        probabilities += _probability(model, hidden, answer).view(len(layers), rows).mean(dim=1).tolist()
    return probabilities


def _restored_states(
    model: EditableModel, clean: _Run, corrupt: _Run, position: int, layers: range, config: TracingConfig
) -> Tensor:
    """Last layer's outputs (layers * D, T - t, d) of the restored runs, D rows for each of ``layers`` in turn."""
    rows, length, width = corrupt.inputs[0].shape
    depth = model.num_layers
    positional = model.positional(_one_row(length, position, model.device), _one_row(length, 0, model.device))
    spans = {layer: restored_layers(config, layer, depth) for layer in layers}

    def entry(layer: int) -> int:
        return layer + 1 if config.kind == "hidden" else spans[layer].start

    hidden = corrupt.inputs[0].new_empty(0, length - position, width)
    inside: list[int] = []
    for index in range(entry(layers[0]), depth + 1):
        for layer in layers:
            if entry(layer) == index:
                state = corrupt.inputs[index][:, position:].clone()
                if config.kind == "hidden":
                    state[:, 0] = clean.inputs[index][0, position]
                hidden = torch.cat([hidden, state])
                inside.append(layer)
        if index == depth:
            break
        keys, values = (part[:, :, :position].repeat(len(inside), 1, 1, 1) for part in corrupt.past[index])
        cache = PrefixKV({index: (keys, values)})
        if config.kind == "hidden":
            hidden = model.run(hidden, index, index + 1, positional, cache)
            continue
        here = torch.tensor([index in spans[layer] for layer in inside], device=model.device)
        with _first_output(model, index, here.repeat_interleave(rows), clean.mlp[index][0, position]):
            hidden = model.run(hidden, index, index + 1, positional, cache)
    return hidden


@contextmanager
def _first_output(model: EditableModel, layer: int, rows: Tensor, value: Tensor) -> Iterator[None]:
    """Within the context, the MLP's output at the first position of the marked rows is ``value`` (d,)."""

    def replace(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 0] = torch.where(rows[:, None], value, output[:, 0])
        return output

    handle = model.decoder.edited_map(layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def usual_layers(count: int) -> list[int]:
    """Five layers from a seventh of the depth on, of a model with ``count``."""
    first = max(0, min(round(count / 7), count - 5))
    return list(range(first, min(first + 5, count)))
