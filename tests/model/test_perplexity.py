"""Perplexity of the small model on held-out Wikipedia text: a golden number, and what damage does to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.evaluation.perplexity import clean_wikitext, perplexity, windows_of

GOLDEN = 28.9551
"""SmolLM2-135M-Instruct in float32, first 1 000 tokens of WikiText-2's test articles as prose, window 256."""


@pytest.fixture(scope="module")
def windows(model: EditableModel, shared_data: Path) -> list[list[int]]:
    articles = clean_wikitext((shared_data / "wikitext/wiki.test.raw").read_text(encoding="utf-8"))
    return windows_of(model.text, articles, max_tokens=1000)


def test_golden_perplexity_and_damage(model: EditableModel, windows: list[list[int]]) -> None:
    engine = LanguageEngine(model)
    whole = perplexity(engine, windows)
    assert whole.value == pytest.approx(GOLDEN, rel=1e-3)
    assert whole.tokens == sum(len(window) - 1 for window in windows) == 1000 - len(windows)
    before = perplexity(engine, windows[:2]).value
    generator = torch.Generator().manual_seed(0)
    with model.patched((5, 6)):
        for layer in (5, 6):
            weight = model.weight(layer)
            model.set_weight(layer, weight + torch.randn(weight.shape, generator=generator) * weight.std())
        assert perplexity(engine, windows[:2]).value > 1.15 * before
    assert perplexity(engine, windows[:2]).value == before
