"""Drawing tokens: the distribution is the model's, whichever way it is inverted, and both ways agree token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.editing.estimation.sampler import LARGE_VOCABULARY, Sampler, default_sampler, draw
from errata.editing.estimation.sampling_server import SamplingServerConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel

WAYS: tuple[Sampler, ...] = ("inversion", "blocks")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(words: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(words, generator=generator(seed)) * spread


@pytest.mark.parametrize("way", WAYS)
def test_sampled_tokens_follow_the_distribution(way: Sampler) -> None:
    """Chi-square of 40 000 draws against the probabilities; a token of probability 0 is never drawn."""
    logits = torch.tensor([0.3, -1.0, 2.0, -math.inf, 0.0, 1.1, -2.5, 0.7, -0.2, 1.9, -math.inf])
    drawn, logprobs = draw(logits.expand(40_000, -1), generator(), way)
    seen = torch.bincount(drawn, minlength=11).double()
    expected = 40_000 * logits.log_softmax(dim=0).double().exp()
    possible = expected > 0
    assert not bool(seen[~possible].any())
    statistic = float(((seen - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < 26.1  # 99.9 % of the chi-square distribution with 8 degrees of freedom
    torch.testing.assert_close(logprobs, logits.log_softmax(dim=0)[drawn], rtol=0, atol=1e-5)


def test_a_large_vocabulary_is_sampled_by_its_own_distribution() -> None:
    """Chi-square over 40 bins of equal probability, ragged last block included; nothing is built into memory twice."""
    words, draws, bins = 3 * 512 + 77, 40_000, 40
    logits = logits_of(words)
    drawn, _ = draw(logits.expand(draws, -1), generator(), "blocks")
    p = np.exp(logits.double().numpy() - np.logaddexp.reduce(logits.double().numpy()))
    bin_of = np.minimum((np.cumsum(p) * bins).astype(int), bins - 1)
    expected = draws * np.bincount(bin_of, weights=p, minlength=bins)
    seen = np.bincount(bin_of[drawn.numpy()], minlength=bins)
    possible = expected > 0
    statistic = float(((seen - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < 72.1  # 99.9 % of the chi-square distribution with 39 degrees of freedom


@settings(deadline=None)
@given(words=st.integers(1, 2000), rows=st.integers(1, 9), seed=st.integers(0, 10_000), spread=st.floats(0.0, 20.0))
def test_both_ways_turn_a_uniform_number_into_the_same_token(words: int, rows: int, seed: int, spread: float) -> None:
    """Against the distribution function in float64 NumPy: the token's share of the unit interval holds the number."""
    logits = torch.randn(rows, words, generator=generator(seed)) * spread
    uniform = torch.rand(rows, 1, generator=generator(seed), dtype=torch.float64).numpy()[:, 0]
    x = logits.double().numpy()
    cumulative = np.cumsum(np.exp(x - np.logaddexp.reduce(x, axis=1, keepdims=True)), axis=1)
    for way in WAYS:
        drawn, logprobs = draw(logits, generator(seed), way)
        for row, token in enumerate(drawn.tolist()):
            below = 0.0 if token == 0 else cumulative[row, token - 1]
            assert below - 1e-6 <= uniform[row] <= cumulative[row, token] + 1e-6
        want = logits.log_softmax(dim=1).gather(1, drawn[:, None])[:, 0]
        torch.testing.assert_close(logprobs, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [5, 512, 1100])
def test_rows_are_drawn_by_their_own_distribution(way: Sampler, words: int) -> None:
    certain = torch.full((3, words), -math.inf)
    for row, token in enumerate((words - 1, 0, 2)):
        certain[row, token] = 0.0
    drawn, logprobs = draw(certain, generator(1), way)
    assert drawn.tolist() == [words - 1, 0, 2] and logprobs.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("way", WAYS)
def test_a_number_next_to_one_never_draws_what_cannot_be(way: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the uniform number rounds to the end of the distribution function, the last possible token is drawn."""
    logits = torch.full((2, 1200), -math.inf)
    logits[:, :700] = logits_of(700)
    edge = torch.tensor([[1.0 - 2.0**-53], [0.0]], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: edge)
    drawn, _ = draw(logits, generator(), way)
    assert drawn.tolist() == [699, 0]


def test_the_default_is_by_the_number_of_words(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_sampler(LARGE_VOCABULARY) == "inversion" and default_sampler(LARGE_VOCABULARY + 1) == "blocks"
    used: list[str] = []

    def noted(logits: torch.Tensor, generator: torch.Generator, sampler: Sampler) -> Any:
        used.append(sampler)
        return draw(logits, generator, sampler)

    monkeypatch.setattr("errata.editing.estimation.selfgen.draw", noted)
    for sampler in (None, "blocks"):
        config = SelfGenerationConfig(max_new_tokens=2, sequences_per_unit=2, slots=2, sampler=sampler)
        run_unit(llama, unit_of(0, seed=0, sequences=2), (), config)
    assert used[0] == "inversion" and used[-1] == "blocks"


def test_the_name_of_the_sampler_is_part_of_what_an_estimate_is_made_from() -> None:
    """Estimates of before there was a choice keep what they are known by; a server's words are sampled elsewhere."""
    plain = SelfGenerationConfig()
    assert "sampler" not in plain.identity()
    assert SelfGenerationConfig(sampler="inversion").identity() == plain.identity()
    assert SelfGenerationConfig(sampler="blocks").identity() == {**plain.identity(), "sampler": "blocks"}
    server = SamplingServerConfig(url="http://localhost:1", model="m")
    assert "sampler" not in SelfGenerationConfig(sampler="blocks", server=server).identity()
