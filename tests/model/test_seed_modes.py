"""What a seed does to self-generated text, and keys of a text, on a model that has learned to speak."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, run_corpus_unit, second_pass
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel

LAYERS = (4, 8)


def test_on_this_model_a_lone_first_token_hardly_says_what_follows(model: EditableModel) -> None:
    """MOIR, figure 10, finds 52 % (bos) against 0.66 % (rand) of the openings alike on OLMo-2-7B-Instruct.

    SmolLM2-135M shows no such contrast: whatever token stands at position 0, it predicts nearly the same ("-" with
    about a third of the probability), as its state there is an attention sink's. So both seed modes open alike.
    """
    top = {}
    for mode in ("bos", "rand"):
        config = SelfGenerationConfig(seed_mode=mode, max_new_tokens=1, slots=100)
        sequences = run_unit(model, unit_of(0, seed=0, sequences=200), (), config, keep_tokens=True).sequences
        first = Counter(sampled[0] for _, sampled in sequences if sampled)
        top[mode] = first.most_common(1)[0][1] / len(sequences)
    assert 0.2 < top["bos"] < 0.5 and abs(top["bos"] - top["rand"]) < 0.12, top


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
