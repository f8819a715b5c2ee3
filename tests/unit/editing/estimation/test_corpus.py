"""Keys of given text: packed rows against every document alone, readers of every format, what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.errors import DamagedFileError, UserError
from errata.editing.estimation import corpus
from errata.editing.estimation.corpus import (
    CorpusConfig,
    CorpusReader,
    Piece,
    cut,
    pack,
    packed_pass,
    run_corpus_unit,
    second_pass,
    survey,
)
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from errata.editing.model.text import TextCodec
from tests.unit.helpers import plain

LAYERS = (0, 1)
TEXTS = [
    "The capital of France is Paris.",
    "yes",
    "Rome lies in Italy, and Angola is located in Africa; Alice Munro works as a writer in Canada, I think.",
    "",
    "one two three four five six",
    "What is the question? The answer is known.",
]


def reading(**given: Any) -> CorpusConfig:
    return CorpusConfig(**({"path": "text.jsonl", "window": 24, "batch_tokens": 48} | given))


def alone(model: EditableModel, texts: list[str], layer: int, window: int, skip: int = 1) -> tuple[torch.Tensor, int]:
    """Sum of k k^T with every piece run by itself through the library's own forward pass."""
    total, count = torch.zeros(48, 48, dtype=torch.float64), 0
    for text in texts:
        ids = model.text.encode_prompt(text)
        for at in range(0, len(ids), window):
            piece = ids[at : at + window]
            if len(piece) < 2:
                continue
            keys = plain.read(model, plain.edited_map(model, layer), piece, "in")[skip:].double()
            total += keys.T @ keys
            count += keys.shape[0]
    return total, count


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("window", [24, 7])
def test_a_packed_pass_equals_every_piece_alone(tiny: Callable[[str], EditableModel], family: str, window: int) -> None:
    model = tiny(family)
    result = run_corpus_unit(model, 0, 0, TEXTS, LAYERS, reading(window=window))
    for layer in LAYERS:
        want, count = alone(model, TEXTS, layer, window)
        assert result.tokens == count > 20
        assert float((result.sums[layer] - want).norm()) <= 1e-5 * float(want.norm())


def test_the_first_key_counts_only_on_request(llama: EditableModel) -> None:
    counted = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(count_first=True))
    want, count = alone(llama, TEXTS, 1, 24, skip=0)
    assert counted.tokens == count > run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading()).tokens
    assert float((counted.sums[1] - want).norm()) <= 1e-5 * float(want.norm())


def test_a_bos_stands_before_every_piece_and_never_counts(
    llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = len(llama.text.encode_prompt(TEXTS[2]))
    monkeypatch.setattr(llama.text, "bos", [5])
    pieces = cut(llama.text, TEXTS[2], 9)
    assert all(piece[0] == 5 and len(piece) <= 9 for piece in pieces)
    assert sum(len(piece) - 1 for piece in pieces) == bare
    for first in (True, False):
        assert run_corpus_unit(llama, 0, 0, TEXTS[2:3], LAYERS, reading(window=9, count_first=first)).tokens == bare


def test_likelihoods_are_those_of_the_pieces_and_change_no_key(llama: EditableModel) -> None:
    bare = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading())
    scored = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(nll_documents=3))
    assert bare.documents == () and all(torch.equal(bare.sums[i], scored.sums[i]) for i in LAYERS)
    want = []
    for text in TEXTS[:3]:
        ids = llama.text.encode_prompt(text)
        for at in range(0, len(ids), 24):
            piece = ids[at : at + 24]
            if len(piece) > 1:
                logprobs = plain.logits(llama, piece).double().log_softmax(dim=-1)
                nll = -sum(float(logprobs[i, token]) for i, token in enumerate(piece[1:]))
                want.append((nll, len(piece) - 1))
    assert [count for _, count in scored.documents] == [count for _, count in want]
    for (got, _), (nll, _) in zip(scored.documents, want, strict=True):
        assert got == pytest.approx(nll, rel=1e-5)
    # the number of a document decides, not its place in the unit
    assert run_corpus_unit(llama, 1, 3, TEXTS[3:], LAYERS, reading(nll_documents=3)).documents == ()


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_the_pass_ends_at_the_last_edited_layer(
    tiny: Callable[[str], EditableModel], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Of the general pass; that over pieces end to end has a test of its own (test_flat.py)."""
    model = tiny(family)
    ran: list[int] = []
    original = model.decoder.layer

    def layer(index: int, *args: Any, **given: Any) -> Any:
        ran.append(index)
        return original(index, *args, **given)

    monkeypatch.setattr(model.decoder, "layer", layer)
    run_corpus_unit(model, 0, 0, TEXTS, (0, 1), reading())
    assert set(ran) == {0, 1} and model.num_layers == 3


def test_both_passes_give_the_same(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(nll_documents=3))
    monkeypatch.setattr(corpus, "flat_pass", lambda *_: None)
    general = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(nll_documents=3))
    assert flat.tokens == general.tokens
    for (got, count), (nll, tokens) in zip(flat.documents, general.documents, strict=True):
        assert (got, count) == (pytest.approx(nll, rel=1e-5), tokens)
    for layer in LAYERS:
        torch.testing.assert_close(flat.sums[layer], general.sums[layer], rtol=1e-4, atol=1e-6)


def test_fused_keys_of_self_generation_equal_the_packed_pass(llama: EditableModel) -> None:
    config = SelfGenerationConfig(max_new_tokens=11, sequences_per_unit=7, slots=3, seed_tokens=2)
    fused = run_unit(llama, unit_of(2, seed=4, sequences=7), LAYERS, config, keep_tokens=True)
    sums, count = second_pass(llama, fused.sequences, LAYERS)
    assert len(fused.sequences) == 7 and count == fused.tokens
    for layer in LAYERS:
        assert float((fused.sums[layer] - sums[layer]).norm()) <= 1e-5 * float(sums[layer].norm())


def test_openings_are_the_first_words_that_were_generated(llama: EditableModel) -> None:
    config = SelfGenerationConfig(max_new_tokens=20, slots=3)
    result = run_unit(llama, unit_of(0, seed=0, sequences=5), (), config, keep_tokens=True)
    assert len(result.openings) == len(result.documents) == 5
    for words, (_, sampled) in zip(result.openings, result.sequences, strict=True):
        assert list(words) == llama.text.decode(sampled).split()[: len(words)] and len(words) <= 3
    assert run_unit(llama, unit_of(0, seed=0, sequences=5), (), config).sequences == ()


def test_a_piece_longer_than_the_model_reaches_is_refused(tiny: Callable[[str], EditableModel]) -> None:
    with pytest.raises(UserError, match=r"corpus\.window: a piece of 200 tokens, .* positions for 128"):
        packed_pass(tiny("gpt2"), [Piece(tuple([1] * 200), 1)], LAYERS, window=256)


def test_no_document_yields_no_keys(llama: EditableModel) -> None:
    result = run_corpus_unit(llama, 0, 0, ["", "yes"[:0]], LAYERS, reading())
    assert result.tokens == 0 and not any(bool(result.sums[i].any()) for i in LAYERS)


@given(lengths=st.lists(st.integers(1, 12), max_size=40))
def test_packing_takes_every_piece_once_into_as_few_rows_as_first_fit_gives(lengths: list[int]) -> None:
    rows = pack(lengths, 12)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    fill = [sum(lengths[i] for i in row) for row in rows]
    assert all(total <= 12 for total in fill) and fill == sorted(fill, reverse=True)
    assert all(a + b > 12 for a, b in combinations(fill, 2)), "no two rows would fit into one"


# ---------------------------------------------------------------- reading


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_documents_are_handed_out_forwards_backwards_and_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": f"document {i}"} for i in range(10)])
    reader = CorpusReader(CorpusConfig(path=str(path)))
    assert reader.take(2, 3) == ["document 2", "document 3", "document 4"]
    assert reader.take(7, 2) == ["document 7", "document 8"]
    assert reader.take(0, 1) == ["document 0"]
    assert reader.take(9, 5) == ["document 9"] and reader.take(20, 2) == [] and reader.take(1, 1) == ["document 1"]
    assert reader.count() == 10


@pytest.mark.parametrize(
    ("split", "want"),
    [
        ("blank_line", ["first\nstill first", "second", "third"]),
        ("line", ["first", "still first", "second", "third"]),
        ("file", ["first\nstill first\n\n \nsecond\n\nthird"]),
    ],
)
def test_plain_text_is_split(tmp_path: Path, split: Any, want: list[str]) -> None:
    path = tmp_path / "c.raw"
    path.write_text("first\nstill first\n\n \nsecond\n\nthird")
    assert CorpusReader(CorpusConfig(path=str(path), split=split)).take(0, 9) == want


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arrow = pytest.importorskip("pyarrow")
    records = [{"text": "one", "answer": "1"}, {"text": "zwei ü", "answer": "2"}]
    lines = write(tmp_path / "a.jsonl", records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(records, indent=1))
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet"):
        reader = CorpusReader(CorpusConfig(path=str(tmp_path / name), fields=("text", "answer")))
        assert reader.take(0, 5) == ["one\n1", "zwei ü\n2"], name
        assert reader.count() == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "record 2: field 'text' holds no text; the record has txt"),
        ('{"text": 3}\n', "record 1: field 'text' holds no text"),
        ('{"text": "a"}\n{"text": \n', "record 2: malformed JSON"),
        ('"only words"\n', "record 1: want an object with text, got str"),
        ('[{"text": "a"},\n 3', "malformed JSON"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        CorpusReader(CorpusConfig(path=str(path))).take(0, 5)
    assert said in str(caught.value) and "c.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        survey(CorpusConfig(path=str(tmp_path / "none.txt")))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="holds no document"):
        survey(CorpusConfig(path=str(tmp_path / "empty.txt")))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt' cannot be read: UnicodeDecodeError"):
        survey(CorpusConfig(path=str(tmp_path / "latin.txt")))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(UserError, match="no readable Parquet file"):
        survey(CorpusConfig(path=str(tmp_path / "torn.parquet")))


def test_a_data_set_of_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package 'datasets'"):
        survey(CorpusConfig(path="hub:someone/texts:train"))


def test_a_survey_digests_the_text_and_another_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": "a"}, {"text": "b"}])
    config = CorpusConfig(path=str(path))
    found = survey(config)
    assert found.documents == 2
    corpus.check_digest(config, found.digest)
    write(path, [{"text": "a"}, {"text": "c"}])
    with pytest.raises(DamagedFileError, match=r"corpus 'c\.jsonl' has digest"):
        corpus.check_digest(config, found.digest)


def test_where_a_text_lies_is_no_part_of_its_identity() -> None:
    here, there = CorpusConfig(path="a/c.jsonl"), CorpusConfig(path="b/c.jsonl", batch_tokens=9)
    assert here.identity() == there.identity() != CorpusConfig(path="a/c.jsonl", window=9).identity()


# ---------------------------------------------------------------- conversations and whole articles

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TURNS = [{"role": "user", "content": "What is the capital of France"}, {"role": "assistant", "content": "Paris."}]


def test_sft_and_preference_records_hold_conversations(tmp_path: Path, llama: EditableModel) -> None:
    """MOIR's post-training corpora: ``messages`` of SFT, ``chosen`` and ``rejected`` of DPO, hand-written records."""
    sft, dpo = tmp_path / "sft.jsonl", tmp_path / "dpo.jsonl"
    sft.write_text(json.dumps({"id": 1, "messages": [{**turn, "weight": 1} for turn in TURNS]}) + "\n")
    other = [TURNS[0], {"role": "assistant", "content": "Rome."}]
    dpo.write_text(json.dumps({"prompt": "x", "chosen": TURNS, "rejected": other}) + "\n")
    read = CorpusReader(CorpusConfig(path=str(sft), fields=("messages",))).take(0, 1)
    assert read == [TURNS] == CorpusReader(CorpusConfig(path=str(dpo), fields=("chosen",))).take(0, 1)
    assert CorpusReader(CorpusConfig(path=str(dpo), fields=("rejected",))).take(0, 1) == [other]
    lines = "user: What is the capital of France\nassistant: Paris."
    assert corpus.plain_text(TURNS) == lines
    # without a template its turns are lines; with one it is what the template makes of it, and nobody is to answer
    bare = deepcopy(llama.text.tokenizer)
    bare.chat_template = None
    text = TextCodec(bare)
    assert not text.has_chat_template and cut(text, TURNS, 64) == cut(text, lines, 64)
    tokenizer = deepcopy(text.tokenizer)
    tokenizer.chat_template = TEMPLATE
    chatting = TextCodec(tokenizer)
    filled = "[user] What is the capital of France\n[assistant] Paris.\n"
    assert chatting.has_chat_template and cut(chatting, TURNS, 64) == cut(text, filled, 64)
    assert chatting.encode_chat(TURNS) != chatting.encode_chat(TURNS, reply=False)


@pytest.mark.parametrize("value", [[], [{"role": "user"}], [{"role": 1, "content": "x"}], "", None, {"a": "b"}])
def test_what_is_no_conversation_is_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": value}) + "\n")
    reader = CorpusReader(CorpusConfig(path=str(path), fields=("messages",)))
    if value == "":
        assert reader.take(0, 1) == [""]
        return
    with pytest.raises(UserError, match=r"record 1: field 'messages' holds no text"):
        reader.take(0, 1)


def test_a_whole_article_is_one_piece_up_to_the_window(llama: EditableModel) -> None:
    """Oracle: the library's own pass over each document's first tokens, by itself; the rest is not read."""
    window = 9
    result = run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(window=window, articles="whole"))
    pieces = [ids for text in TEXTS if len(ids := llama.text.encode_prompt(text)[:window]) > 1]
    total = 0
    for layer in LAYERS:
        want = torch.zeros_like(result.sums[layer])
        total = 0
        for ids in pieces:
            keys = plain.read(llama, plain.edited_map(llama, layer), ids, "in")[max(1, len(llama.text.bos)) :].double()
            want += keys.T @ keys
            total += len(keys)
        torch.testing.assert_close(result.sums[layer], want, rtol=1e-4, atol=1e-5)
    assert result.tokens == total
    assert run_corpus_unit(llama, 0, 0, TEXTS, LAYERS, reading(window=window)).tokens > total
    assert "articles" not in reading().identity() and reading(articles="whole").identity()["articles"] == "whole"
