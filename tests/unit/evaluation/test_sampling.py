"""Sampling: the right distribution, from the right random numbers, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from errata.editing.model.engine import LanguageEngine
from errata.evaluation.sampling import SamplingConfig, SamplingEngine, seed_of
from tests.helpers.tiny import tiny_model


@pytest.fixture(scope="module")
def engine() -> SamplingEngine:
    return SamplingEngine(tiny_model(layers=2))


def ids(engine: SamplingEngine, text: str) -> list[int]:
    return engine.model.text.encode_prompt(text)


PROMPTS = ("The capital of France is", "Rome", "The sport that Thierry Henry plays is", "Rome")


def test_without_temperature_it_is_the_greedy_answer(engine: SamplingEngine) -> None:
    prompts = [ids(engine, p) for p in PROMPTS]
    wanted = LanguageEngine(engine.model).generate(prompts, max_new_tokens=9, stop_at_newline=False)
    for config in (
        SamplingConfig(temperature=0, max_new_tokens=9),
        SamplingConfig(top_k=1, max_new_tokens=9),
        SamplingConfig(top_p=1e-9, max_new_tokens=9),
    ):
        found = engine.sample(prompts, config, seeds=[1, 2, 3, 4])
        assert [(s.text, s.ids) for s in found] == [(a.text, a.ids) for a in wanted]


def test_a_row_depends_on_its_prompt_and_seed_only(engine: SamplingEngine) -> None:
    prompts, config = [ids(engine, p) for p in PROMPTS], SamplingConfig(top_p=0.95, max_new_tokens=12)
    together = engine.sample(prompts, config, seeds=[5, 6, 7, 8])
    small = SamplingEngine(engine.model, batch_tokens=8)
    assert [s.ids for s in small.sample(prompts[::-1], config, seeds=[8, 7, 6, 5])] == [s.ids for s in together[::-1]]
    assert [engine.sample([p], config, seeds=[s])[0].ids for p, s in zip(prompts, (5, 6, 7, 8), strict=True)] == [
        s.ids for s in together
    ]
    assert together[1].ids != together[3].ids  # the same prompt, another seed


def test_the_first_token_follows_the_truncated_distribution(engine: SamplingEngine) -> None:
    prompt, draws = ids(engine, "Rome lies in"), 1500
    rows = engine.model.rows([prompt])
    with torch.no_grad():
        layout = engine.model.positional(rows.layout)
        hidden = engine.model.run(engine.model.embed(rows), 0, engine.model.num_layers, layout)
        logits = engine.model.logits(hidden[0, -1]).double()
    temperature, top_p = 0.7, 0.6
    probabilities = (logits / temperature).softmax(0)
    kept: dict[int, float] = {}
    for token in probabilities.argsort(descending=True).tolist():  # the nucleus, as it is defined
        kept[token] = float(probabilities[token])
        if sum(kept.values()) >= top_p:
            break
    assert 2 <= len(kept) < len(logits) // 4
    config = SamplingConfig(temperature=temperature, top_p=top_p, max_new_tokens=1)
    found = engine.sample([prompt] * draws, config, seeds=list(range(draws)))
    counts = Counter(s.ids[0] if s.ids else 0 for s in found)
    assert set(counts) <= set(kept)
    for token, weight in kept.items():
        share = weight / sum(kept.values())
        assert abs(counts[token] / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5 + 1e-3
    limited = engine.sample([prompt] * 200, config.model_copy(update={"top_k": 2}), seeds=list(range(200)))
    assert {s.ids[0] if s.ids else 0 for s in limited} == set(list(kept)[:2])


def test_logprobs_are_the_models_own(engine: SamplingEngine) -> None:
    prompt = ids(engine, "What is the")
    sample = engine.sample([prompt], SamplingConfig(temperature=1.7, top_k=9, max_new_tokens=6), seeds=[3])[0]
    assert sample.logprobs == pytest.approx(engine.score([(prompt, sample.ids)])[0].logprobs, abs=1e-4)


def test_a_stop_string_ends_the_text_before_it(engine: SamplingEngine) -> None:
    prompt, config = ids(engine, "The"), SamplingConfig(max_new_tokens=40)
    whole = engine.sample([prompt], config, seeds=[11])[0]
    stop = whole.text[5:8]  # across tokens
    cut = engine.sample([prompt] * 2, config, seeds=[11, 12], until=["never", stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)] and len(cut.ids) < len(whole.ids)


def test_what_cannot_be_sampled_is_refused(engine: SamplingEngine) -> None:
    with pytest.raises(ValueError, match="one seed per prompt: got 1 prompts, 2 seeds"):
        engine.sample([[1]], SamplingConfig(), seeds=[1, 2])
    with pytest.raises(ValueError, match="no tokens"):
        engine.sample([[]], SamplingConfig(), seeds=[1])
    assert engine.sample([], SamplingConfig(), seeds=[]) == []


def test_seeds_are_stable() -> None:
    assert seed_of("a", 1) == seed_of("a", 1) != seed_of("a", 2)
    assert 0 <= seed_of("a", 1) < 2**63
