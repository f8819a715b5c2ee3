"""Causal tracing against its plain form: whole passes of the library's own model, one hook per restored state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.tracing import (
    PromptTrace,
    Trace,
    TracePrompt,
    TracingConfig,
    choose_window,
    class_effects,
    class_of,
    draw_noise,
    noise_std,
    restored_layers,
    subject_span,
    trace,
)
from tests.helpers.tiny import tiny_hf, tiny_tokenizer

TEMPLATES = [
    ("a", "Danielle Darrieux", "The mother tongue of {} is"),
    ("b", "Rome", "{} lies in"),
    ("c", "São Tomé", "What is {}'s question"),
]
WORDS = ["French", "Paris", "Italy", "France", "right", "Alice", "writer", "Canada", "football", "Africa", "yes", "six"]


def prompts_for(model: EditableModel) -> list[TracePrompt]:
    """Prompts whose answer is the likeliest of some words: of a random model, noise lowers that one's probability."""
    firsts = [model.text.encode_target(word)[0] for word in WORDS]
    found = []
    for name, subject, template in TEMPLATES:
        ids, _, _ = subject_span(model.text, template, subject)
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
        found.append(TracePrompt(name, subject, template, WORDS[int(logits[firsts].argmax())]))
    return found


@pytest.fixture
def prompts(llama: EditableModel) -> list[TracePrompt]:
    return prompts_for(llama)


def plain_effects(
    model: EditableModel, prompt: TracePrompt, config: TracingConfig, std: float
) -> tuple[float, float, dict[tuple[int, int], float]]:
    """P_clean, P_corrupt and P_restored by (position, layer): every run a whole one, one noise draw at a time."""
    ids, first, last = subject_span(model.text, prompt.template, prompt.subject)
    answer = model.text.encode_target(prompt.answer)[0]
    noise = draw_noise(config, prompt, last + 1 - first, model.hidden_size) * std
    decoder, tokens = model.decoder, torch.tensor([ids])

    def probability(hooks: list[tuple[torch.nn.Module, Any]]) -> float:
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        try:
            with torch.no_grad():
                return float(model.hf(input_ids=tokens, use_cache=False).logits[0, -1].double().softmax(-1)[answer])
        finally:
            for handle in handles:
                handle.remove()

    def record(into: dict[int, Tensor], key: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            into[key] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def corrupting(draw: int) -> tuple[torch.nn.Module, Any]:
        def hook(_: Any, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, first : last + 1] += noise[draw]
            return output

        return model.hf.get_input_embeddings(), hook

    def put(value: Tensor, position: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            state[0, position] = value
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return hook

    states: dict[int, Tensor] = {}
    mlps: dict[int, Tensor] = {}
    depth = model.num_layers
    p_clean = probability(
        [(decoder.layers[i], record(states, i)) for i in range(depth)]
        + [(decoder.edited_map(i), record(mlps, i)) for i in range(depth)]
    )
    p_corrupt = sum(probability([corrupting(d)]) for d in range(config.draws)) / config.draws
    restored = {}
    for position in range(first, len(ids)):
        for layer in range(depth):
            if config.kind == "hidden":
                puts = [(decoder.layers[layer], put(states[layer][0, position], position))]
            else:
                puts = [
                    (decoder.edited_map(i), put(mlps[i][0, position], position))
                    for i in restored_layers(config, layer, depth)
                ]
            total = sum(probability([corrupting(d), *puts]) for d in range(config.draws))
            restored[position, layer] = total / config.draws
    return p_clean, p_corrupt, restored


@pytest.mark.parametrize(
    ("family", "kind", "batch_tokens"),
    [
        ("llama", "hidden", 4096),
        ("llama", "hidden", 10),  # less than one layer's rows at once, so layers enter in several passes
        ("llama", "mlp", 4096),
        ("llama", "mlp", 30),
        ("gpt2", "hidden", 4096),
        ("gptj", "mlp", 4096),
        ("gpt_neox", "hidden", 4096),
        ("olmo2", "mlp", 4096),
        ("mistral", "hidden", 4096),  # a sliding window shorter than the prompts
        ("gemma3_text", "hidden", 4096),
        ("phi3", "hidden", 4096),
    ],
)
def test_all_effects_are_those_of_whole_runs_with_hooks(family, kind, batch_tokens):
    # in float64: an effect divides by a drop that may be tiny on a random model
    model = EditableModel(tiny_hf(family, layers=3).double(), tiny_tokenizer(), name=family)
    prompts = prompts_for(model)
    config = TracingConfig(kind=kind, span=2, draws=2, min_drop=0.0, window=2, seed=3, batch_tokens=batch_tokens)
    found = trace(model, prompts, config)
    spans = [subject_span(model.text, p.template, p.subject) for p in prompts]
    std = noise_std(model, config, [ids[first : last + 1] for ids, first, last in spans])
    assert found.noise_std == std and found.valid > 0
    for prompt, traced in zip(prompts, found.prompts, strict=True):
        p_clean, p_corrupt, restored = plain_effects(model, prompt, config, std)
        assert traced.p_clean == pytest.approx(p_clean, rel=1e-4)
        assert traced.p_corrupt == pytest.approx(p_corrupt, rel=1e-4)
        assert (traced.excluded is None) == (p_clean > p_corrupt)
        if traced.excluded is not None:
            continue
        assert traced.positions == tuple(range(traced.first, len(traced.tokens)))
        for position, effects in zip(traced.positions, traced.effects, strict=True):
            for layer, effect in enumerate(effects):
                want = (restored[position, layer] - p_corrupt) / (p_clean - p_corrupt)
                assert effect == pytest.approx(want, abs=1e-4)


def test_restoring_the_last_state_restores_the_answer(llama, prompts):
    config = TracingConfig(draws=2, min_drop=0.0, window=1)
    traced = [p for p in trace(llama, prompts, config).prompts if p.excluded is None]
    assert traced
    for prompt in traced:
        assert prompt.effects[-1][-1] == pytest.approx(1.0, abs=1e-3)  # last token, last layer: the clean run
        assert prompt.effects[0][-1] == pytest.approx(0.0, abs=1e-3)  # the last layer's other tokens are not read


def test_the_last_subject_token_alone_gives_the_same_window(llama, prompts):
    whole = trace(llama, prompts, TracingConfig(draws=2, min_drop=0.0, window=2))
    short = trace(llama, prompts, TracingConfig(draws=2, min_drop=0.0, window=2, positions="subject_last"))
    assert set(short.effects) == {"subject_last"}
    assert short.effects["subject_last"].mean == pytest.approx(whole.effects["subject_last"].mean, rel=1e-6)
    assert short.window == whole.window and short.window_sum == pytest.approx(whole.window_sum)


def test_noise_depends_on_the_seed_and_the_prompt_and_on_nothing_else(llama, prompts):
    config = TracingConfig(draws=2)
    noise = draw_noise(config, prompts[0], 3, 8)
    assert torch.equal(noise, draw_noise(config, prompts[0], 3, 8))
    assert not torch.equal(noise, draw_noise(config, prompts[1], 3, 8))
    assert not torch.equal(noise, draw_noise(TracingConfig(draws=2, seed=1), prompts[0], 3, 8))
    assert trace(llama, prompts, TracingConfig(window=1)) == trace(llama, prompts, TracingConfig(window=1))


def test_noise_has_the_scale_of_the_subjects_embeddings(llama):
    tokens = [5, 9, 9]
    entries = llama.hf.get_input_embeddings().weight[tokens].double()
    assert noise_std(llama, TracingConfig(noise=3.0), [[5], [9, 9]]) == pytest.approx(3 * float(entries.std()))


@pytest.mark.parametrize(
    ("template", "subject", "first", "last"),
    [("{} lies in", "Rome", "Rome", "Rome"), ("The capital of {} is", "France", " France", " France")],
)
def test_the_span_covers_the_subject(llama, template, subject, first, last):
    ids, start, stop = subject_span(llama.text, template, subject)
    text = llama.text.decode(ids[start : stop + 1])
    assert text.strip() == subject
    assert llama.text.decode(ids[:start]) + text == template.split("{}")[0] + subject


# ---------------------------------------------------------------- what counts


def test_prompts_that_the_noise_does_not_hurt_are_excluded_and_leave_the_means_alone(llama, prompts):
    found = trace(llama, prompts, TracingConfig(draws=2, min_drop=0.0, window=2))
    drops = {p.id: p.p_clean - p.p_corrupt for p in found.prompts}
    limit = sorted(drops.values())[-2]  # leaves exactly the prompt with the largest drop
    strict = trace(llama, prompts, TracingConfig(draws=2, min_drop=max(limit, 0.0), window=2))
    kept = [p for p in strict.prompts if p.excluded is None]
    assert [p.id for p in kept] == [max(drops, key=lambda k: drops[k])] and strict.valid == 1
    assert all(not p.effects and "the noise lowers" in (p.excluded or "") for p in strict.prompts if p not in kept)
    at_last = kept[0].positions.index(kept[0].last)
    assert strict.effects["subject_last"].mean == pytest.approx(kept[0].effects[at_last])
    assert strict.effects["subject_last"].error is None


def test_a_prompt_that_ends_with_its_subject_is_excluded(llama):
    found = trace(llama, [TracePrompt("x", "Rome", "The city of {}", "Italy")], TracingConfig(min_drop=0.0, window=1))
    assert found.prompts[0].excluded == "the prompt ends with its subject"
    assert found.valid == 0 and found.window is None and found.effects == {}


def test_no_prompts_and_too_wide_a_window_are_the_users_mistakes(llama, prompts):
    with pytest.raises(UserError, match="at least one prompt"):
        trace(llama, [], TracingConfig())
    with pytest.raises(UserError, match="window 6 is wider than 'tiny-llama', which has 3 layers"):
        trace(llama, prompts, TracingConfig(window=6))


# ---------------------------------------------------------------- numbers by hand


def test_the_window_is_the_contiguous_one_with_the_largest_sum():
    effects = [0.1, 0.9, 0.0, 0.5, 0.6, 0.2]
    assert choose_window(effects, 1) == ((1,), 0.9)
    layers, total = choose_window(effects, 3)
    assert layers == (1, 2, 3) and total == pytest.approx(1.4)
    layers, total = choose_window(effects, 2)
    assert layers == (3, 4) and total == pytest.approx(1.1)
    assert choose_window([0.5, 0.5, 0.5], 2)[0] == (0, 1)
    assert choose_window([-0.3, -0.1, -0.2], 1)[0] == (1,)
    with pytest.raises(UserError, match="window 7 is wider than the model, which has 6 layers"):
        choose_window(effects, 7)


def test_the_papers_window_for_llama_3_1():
    """MOIR, table 5, Llama-3.1-8B-Instruct: its ten largest effects choose layers 3-8 in table 6."""
    by_layer = {4: 0.338, 5: 0.334, 3: 0.318, 6: 0.223, 7: 0.157, 8: 0.123, 0: 0.132, 1: 0.113, 2: 0.102, 9: 0.094}
    assert choose_window([by_layer.get(i, 0.0) for i in range(32)], 6)[0] == (3, 4, 5, 6, 7, 8)


def test_classes_of_tokens():
    classes = [class_of(position, 2, 5, 10) for position in range(2, 10)]
    middle, further = ["subject_middle"] * 2, ["further"] * 2
    assert classes == ["subject_first", *middle, "subject_last", "first_after", *further, "last"]
    assert class_of(2, 2, 2, 4) == "subject_last"  # a subject of one token
    assert class_of(3, 2, 2, 4) == "last"  # one token after the subject


def traced(first: int, last: int, length: int, effects: dict[int, tuple[float, ...]]) -> PromptTrace:
    return PromptTrace(
        id="x",
        prompt="p",
        subject="s",
        answer="a",
        tokens=("t",) * length,
        first=first,
        last=last,
        p_clean=0.5,
        p_corrupt=0.1,
        positions=tuple(effects),
        effects=tuple(effects.values()),
    )


def test_means_are_over_a_prompts_tokens_first_and_then_over_prompts():
    one = traced(0, 3, 5, {0: (1.0,), 1: (0.2,), 2: (0.4,), 3: (0.8,), 4: (0.0,)})
    two = traced(0, 2, 4, {0: (0.0,), 1: (0.9,), 2: (0.6,), 3: (0.0,)})
    effects = class_effects([one, two])
    assert effects["subject_middle"].mean == pytest.approx(((0.3 + 0.9) / 2,))
    assert effects["subject_last"].mean == pytest.approx((0.7,)) and effects["subject_last"].prompts == 2
    assert effects["subject_last"].error == pytest.approx((math.sqrt(0.02) / math.sqrt(2),))
    assert "first_after" not in effects


def test_json_keeps_everything(llama, prompts):
    found = trace(llama, prompts, TracingConfig(draws=2, min_drop=0.0, window=2))
    again = Trace.model_validate_json(found.model_dump_json())
    assert again == found and again.digest == llama.digest and again.config.seed == 0
