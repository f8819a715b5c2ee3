"""Tokens of prompts, continuations and subjects."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from errata.editing.errors import UserError
from errata.editing.model.text import TextCodec
from tests.helpers.tiny import tiny_tokenizer


def with_bos() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a BOS that its post-processor puts in front, as Llama's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


@pytest.fixture(params=["plain", "bos"])
def codec(request: pytest.FixtureRequest) -> TextCodec:
    return TextCodec(tiny_tokenizer() if request.param == "plain" else with_bos())


def byte_end(codec: TextCodec, ids: list[int], index: int) -> tuple[int, int]:
    """First and last byte (exclusive) of a token within the text; BOS counts for nothing."""
    names = codec.tokenizer.convert_ids_to_tokens(ids)
    sizes = [0 if name == "<s>" else len(name) for name in names]
    return sum(sizes[:index]), sum(sizes[: index + 1])


def holds_last_byte(codec: TextCodec, prefix: str, template: str, subject: str) -> None:
    ids, at = codec.encode_with_subject(prefix, template, subject)
    end = len((prefix + template.split("{}")[0] + subject).encode())
    start, stop = byte_end(codec, ids, at)
    assert start < end <= stop, (ids, at)
    assert ids == codec.encode_prompt(prefix + template.replace("{}", subject))


CASES = [
    ("The mother tongue of {} is", "Danielle Darrieux"),
    ("{} lies in", "Rome"),
    ("{}", "Rome"),
    ("Where is {}? The answer is", "Angola"),
    ("What is {}'s question", "Thierry Henry"),
    ("({}) is", "St. Moritz"),
    ("{}, the writer,", "Alice Munro"),
    ("The city {} is", "São Tomé"),
    ("The city {} is", "東京"),
    ("The emoji {} is", "👩‍🚀"),
    ("{}東 is", "👩‍🚀"),
    ("{}ome lies in", "R"),  # the tokenizer merges across the subject's end
    ("a{} is", "  spaced  out "),
]


@pytest.mark.parametrize("prefix", ["", "Therefore I think. ", "東京 yes. "])
@pytest.mark.parametrize("template, subject", CASES)
def test_subject_position_holds_the_subjects_last_byte(
    codec: TextCodec, prefix: str, template: str, subject: str
) -> None:
    holds_last_byte(codec, prefix, template, subject)


_TEXT = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=12)
_PLAIN, _BOS = TextCodec(tiny_tokenizer()), TextCodec(with_bos())


@settings(max_examples=150, deadline=None)
@given(prefix=_TEXT, before=_TEXT, subject=_TEXT.filter(bool), after=_TEXT, bos=st.booleans())
def test_subject_position_of_any_text(prefix: str, before: str, subject: str, after: str, bos: bool) -> None:
    if any(special in prefix + before + subject + after for special in ("<s>", "<|end|>")):
        return
    holds_last_byte(_BOS if bos else _PLAIN, prefix, before + "{}" + after, subject)


def test_the_last_of_several_subject_tokens_is_taken() -> None:
    codec = TextCodec(tiny_tokenizer())
    ids, at = codec.encode_with_subject("", "The sport that {} plays is", "Thierry Henry")
    assert codec.decode(ids[: at + 1]) == "The sport that Thierry Henry"
    assert codec.decode(ids[at + 1 :]) == " plays is"
    _, first = codec.encode_with_subject("", "The sport that {} plays is", "Thierry")
    assert at > first


@pytest.mark.parametrize(
    "prefix, template, subject, moved",
    [
        ("", "{} lies in", "R", True),
        ("", "{}'s mayor is", "R", True),
        ("", "{}の首都は", "R", True),
        ("I think. ", "{} lies in", "R", False),
        ("", "The city {} is", "Rome", False),
        ("", "{} plays", "Thierry Henry", False),
        ("", "{} lies in", "Rome", False),
    ],
)
def test_an_edit_is_never_made_at_the_first_token(prefix: str, template: str, subject: str, moved: bool) -> None:
    """Its state is alike for all words where no BOS stands in front (an attention sink)."""
    codec = TextCodec(tiny_tokenizer())
    tokens, last = codec.encode_with_subject(prefix, template, subject)
    assert codec.encode_for_edit(prefix, template, subject) == (tokens, 1 if moved else last)
    assert moved == (last == 0)
    behind = TextCodec(with_bos())
    assert behind.encode_for_edit(prefix, template, subject) == behind.encode_with_subject(prefix, template, subject)


def test_prompts_start_as_the_tokenizer_starts_them() -> None:
    text = "Rome lies in Italy"
    for tokenizer in (tiny_tokenizer(), with_bos()):
        assert TextCodec(tokenizer).encode_prompt(text) == tokenizer(text)["input_ids"]
    assert TextCodec(tiny_tokenizer()).bos == []
    assert TextCodec(with_bos()).bos == [with_bos().convert_tokens_to_ids("<s>")]


@pytest.mark.parametrize("target", ["French", " French", "French ", "a football", "Ünïcode 東京", "7", ".", "é"])
def test_targets_continue_a_prompt(codec: TextCodec, target: str) -> None:
    ids = codec.encode_target(target)
    assert codec.decode(ids) == " " + target.strip()
    assert not set(ids) & set(codec.bos)
    # what follows the prompt when prompt and target are tokenized as one text
    prompt = codec.encode_prompt("Rome lies in")
    assert prompt + ids == codec.encode_prompt(f"Rome lies in {target.strip()}")


def test_a_target_without_tokens_is_refused() -> None:
    only_a = Tokenizer(models.BPE({"a": 0, "<e>": 1}, []))  # it drops what it does not know
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=only_a, eos_token="<e>"))
    with pytest.raises(UserError, match="target '☃' has no tokens"):
        codec.encode_target("☃")


def test_chat_prompts_use_the_template_and_do_not_double_the_beginning() -> None:
    tokenizer = with_bos()
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    codec = TextCodec(tokenizer)
    ids = codec.encode_chat([{"role": "user", "content": "Where is Rome?"}])
    assert tokenizer.decode(ids) == "<s>user: Where is Rome?\nassistant:"
    assert ids.count(codec.bos[0]) == 1


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    codec = TextCodec(tokenizer)
    assert not codec.has_chat_template
    with pytest.raises(UserError, match="no chat template"):
        codec.encode_chat([{"role": "user", "content": "yes"}])


def test_end_tokens_include_the_chat_models_turn_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    codec = TextCodec(tokenizer)
    assert codec.eos_ids == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert TextCodec(tiny_tokenizer()).eos_ids == {tiny_tokenizer().eos_token_id}


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="SimpleNamespace is not a fast one"):
        TextCodec(SimpleNamespace(is_fast=False))


def test_decode_leaves_special_tokens_out() -> None:
    codec = TextCodec(with_bos())
    assert codec.decode([*codec.encode_prompt("Rome lies"), codec.tokenizer.eos_token_id]) == "Rome lies"


_MIXED = st.lists(st.sampled_from(["Rome", " ", "<s>", "<|end|>", "東京", "👩‍🚀", "\n", "é", "a"]) | _TEXT, max_size=6)


@settings(max_examples=150, deadline=None)
@given(parts=_MIXED, bos=st.booleans())
def test_tokens_are_those_of_the_librarys_own_call(parts: list[str], bos: bool) -> None:
    codec, text = _BOS if bos else _PLAIN, "".join(parts)
    for as_text, ours in ((True, codec.encode_prompt(text)[len(codec.bos) :]), (False, codec.encode_marked(text))):
        theirs = codec.tokenizer(
            text, add_special_tokens=False, split_special_tokens=as_text, return_offsets_mapping=True
        )
        assert ours == theirs["input_ids"]
        if as_text:
            assert codec.offsets(text) == [tuple(pair) for pair in theirs["offset_mapping"]]


def test_a_tokenizer_that_was_told_to_cut_and_to_pad_does_neither() -> None:
    tokenizer = tiny_tokenizer()
    text = "Rome lies in Italy, and Paris does not."
    whole = TextCodec(tiny_tokenizer()).encode_prompt(text)
    codec = TextCodec(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert codec.encode_prompt(text) == whole


def test_threads_that_read_marked_texts_do_not_turn_what_others_wrote_into_control_tokens() -> None:
    codec = TextCodec(with_bos())
    text = "<s>Rome<s>"
    wanted = {"text": codec.encode_prompt(text), "marked": codec.encode_marked(text)}
    assert wanted["text"] != codec.bos + wanted["marked"]
    together, wrong = threading.Barrier(4), []

    def read(kind: str) -> None:
        together.wait()
        for _ in range(2000):
            found = codec.encode_prompt(text) if kind == "text" else codec.encode_marked(text)
            if found != wanted[kind]:
                wrong.append((kind, found))

    threads = [threading.Thread(target=read, args=(kind,)) for kind in ("text", "marked") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
