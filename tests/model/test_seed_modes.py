"""What a seed does to self-generated text, and keys of a text, on a model that has learned to speak."""

from __future__ import annotations

from pathlib import Path

import pytest

from editing.corpus import CorpusConfig, CorpusReader, run_corpus_unit, second_pass
from editing.diagnostics import opening_shares
from editing.model.adapter import EditableModel
from editing.model.load import load_model
from editing.selfgen import SelfGenerationConfig, run_unit, unit_of

LAYERS = (4, 8)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> EditableModel:
    return load_model(str(smollm2))


def test_the_beginning_alone_collapses_onto_few_openings_and_a_random_token_does_not(model: EditableModel) -> None:
    """MOIR, figure 10: there 52 % against 0.66 % of the sequences begin with the same word, on a 7B model."""
    top = {}
    for mode in ("bos", "rand"):
        config = SelfGenerationConfig(seed_mode=mode, max_new_tokens=6, slots=100)
        openings = run_unit(model, unit_of(0, seed=0, sequences=200), (), config).openings
        top[mode] = opening_shares(openings, 0)[0].share
    assert top["bos"] > 2 * top["rand"], top


def test_keys_taken_while_decoding_equal_a_packed_second_pass(model: EditableModel) -> None:
    config = SelfGenerationConfig(max_new_tokens=24, slots=4)
    fused = run_unit(model, unit_of(0, seed=0, sequences=6), LAYERS, config, keep_tokens=True)
    sums, count = second_pass(model, fused.sequences, LAYERS)
    assert count == fused.tokens > 50
    for layer in LAYERS:
        assert float((fused.sums[layer] - sums[layer]).norm()) <= 1e-4 * float(sums[layer].norm())


def test_packing_changes_no_key_of_a_text(model: EditableModel, shared_data: Path) -> None:
    path = shared_data / "wikitext" / "wiki_passages.jsonl"
    config = CorpusConfig(path=str(path), window=96, batch_tokens=384)
    texts = [text[:300] for text in CorpusReader(config).take(0, 6)]
    packed = run_corpus_unit(model, 0, 0, texts, LAYERS, config)
    alone = [run_corpus_unit(model, 0, 0, [text], LAYERS, config) for text in texts]
    assert packed.tokens == sum(one.tokens for one in alone) > 200
    for layer in LAYERS:
        want = sum(one.sums[layer] for one in alone[1:]) + alone[0].sums[layer]
        assert float((packed.sums[layer] - want).norm()) <= 1e-4 * float(want.norm())
