from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.editing.model.engine import Answer, Continuation
from errata.editing.model.text import TextCodec
from errata.retrieval.choosing import explained_share, read_number
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.scr import Choice, ScrConfig, SelectiveReasoner, retrieve
from tests.helpers.tiny import tiny_tokenizer


class CopyingEngine:
    """Finds a text likely where the prompt's last "Text:" holds it; answers what it is told to."""

    def __init__(self, text: TextCodec, answers: Sequence[str] = ()) -> None:
        self.text, self.answers = text, list(answers)
        self.scored: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.prompts: list[list[int]] = []

    def score(self, rows):
        self.scored += [(tuple(p), tuple(c)) for p, c in rows]
        return [self._one(self.text.decode(p), c) for p, c in rows]

    def _one(self, prompt: str, continuation: Sequence[int]) -> Continuation:
        named = self.text.decode(continuation).strip() in prompt.rsplit("Text:", 1)[-1]
        count = len(continuation)
        return Continuation((-0.1 if named else -2.0,) * count, (named,) * count)

    def generate(self, prompts, *, max_new_tokens=12, stop_at_newline=True):
        self.prompts += [list(p) for p in prompts]
        return [Answer(self.answers.pop(0) if self.answers else "x", (1,)) for _ in prompts]


@pytest.fixture(scope="module")
def text() -> TextCodec:
    return TextCodec(tiny_tokenizer())


def hit(id: int, subject: str, score: float = 0.8) -> Hit:
    return Hit(id, score, f"The mother tongue of {subject} is Welsh.", subject, None, f"r{id}", f"f{id}")


def test_the_statement_whose_subject_the_question_names_is_chosen(text):
    reasoner = SelectiveReasoner(CopyingEngine(text), text)
    hits = [hit(1, "Victor Hugo", 0.9), hit(2, "Alice Munro", 0.5)]
    (choice,) = reasoner.choose(["Alice Munro speaks"], [hits])
    assert choice.hit is hits[1] and "'Alice Munro'" in choice.reason
    assert [c.id for c in choice.scores] == [1, 2]
    assert choice.scores[1].gain == pytest.approx(0.95) and choice.scores[0].gain == pytest.approx(0.0)
    assert choice.scores[1].logprob == pytest.approx(-0.1)


def test_none_is_chosen_where_no_subject_is_explained_and_the_prompt_is_then_the_plain_one(text):
    reasoner = SelectiveReasoner(CopyingEngine(text), text)
    (choice,) = reasoner.choose(["Emile Zola speaks"], [[hit(1, "Victor Hugo")]])
    assert choice.hit is None and "below 0.60" in choice.reason and len(choice.scores) == 1
    assert reasoner.prompt_ids("Emile Zola speaks", choice) == text.encode_prompt("Emile Zola speaks")


def test_dissimilar_or_absent_statements_cost_no_run_of_the_model(text):
    engine = CopyingEngine(text)
    choices = SelectiveReasoner(engine, text).choose(["a", "b"], [[], [hit(1, "b", 0.1)]])
    assert engine.scored == [] and [c.hit for c in choices] == [None, None]
    assert choices[0].reason == "the memory found nothing"
    assert choices[1].reason == "similarity 0.10 is below 0.20"


def test_questions_share_one_batch_and_no_row_is_scored_twice(text):
    engine = CopyingEngine(text)
    questions = ["Alice Munro speaks", "Nothing", "Victor Hugo speaks", "Alice Munro speaks"]
    pool = [hit(1, "Alice Munro"), hit(2, "Victor Hugo")]
    together = SelectiveReasoner(engine, text).choose(questions, [pool, [], pool, pool])
    assert [c.hit.id if c.hit else None for c in together] == [1, None, 2, 1]
    assert len(engine.scored) == len(set(engine.scored)) == 2 * 2 + 2  # two questions and the bare prompt
    for question, found, choice in zip(questions, [pool, [], pool, pool], together, strict=True):
        assert SelectiveReasoner(CopyingEngine(text), text).choose([question], [found]) == [choice]


def test_only_k_statements_are_considered(text):
    hits = [hit(1, "Victor Hugo"), hit(2, "Alice Munro")]
    (choice,) = SelectiveReasoner(CopyingEngine(text), text, ScrConfig(k=1)).choose(["Alice Munro speaks"], [hits])
    assert choice.hit is None and [c.id for c in choice.scores] == [1]


def test_a_statement_without_a_known_subject_is_scored_whole(text):
    class Bare:
        id, score, statement = 4, 0.9, "Rome lies in Italy."

    (choice,) = SelectiveReasoner(CopyingEngine(text), text).choose(["Rome lies in Italy. So"], [[Bare()]])
    assert isinstance(choice.hit, Bare)


@pytest.mark.parametrize("subject", ["Rome", "法国", "ประเทศไทย"])
def test_a_subject_is_scored_as_it_stands_behind_the_colon_of_the_worked_examples(text, subject):
    """Without the space after "Subject:" a model gives every Chinese or Thai name little, named or not; a space that is
    a token by itself is not scored: no English text leads to it, any Chinese question does."""
    engine = CopyingEngine(text)
    SelectiveReasoner(engine, text).choose([f"{subject}?"], [[hit(1, subject)]])
    assert engine.scored and all(
        text.decode([*prompt, *continuation]).endswith(f"\nSubject: {subject}")
        and not text.decode(continuation[:1]).isspace()
        for prompt, continuation in engine.scored
    )


@pytest.mark.parametrize(
    "said, index",
    [
        ("2", 1), ("Statement 2.", 1), (" **2**: because 1 is wrong", 1), ("1. The mother", 0), ("none", None),
        ("None of 1 or 2", None), ("2, none other", 1), ("3", None), ("0", None), ("", None), ("the second", None),
        ("12", None), ("v1.2", None), ("no statement helps", None), ("\n\n1\n", 0),
    ],
)  # fmt: skip
def test_numbers_are_read_out_of_whatever_a_model_says(said, index):
    found, reason = read_number(said, 2)
    assert found == index and reason


def test_the_instructed_chooser_lists_the_statements_and_follows_the_answer(text):
    engine = CopyingEngine(text, ["2", "none"])
    reasoner = SelectiveReasoner(engine, text, ScrConfig(chooser="instruct"))
    pool = [hit(1, "Alice Munro"), hit(2, "Victor Hugo")]
    choices = reasoner.choose(["Who?", "What?"], [pool, pool])
    assert [c.hit for c in choices] == [pool[1], None] and engine.scored == []
    asked = text.decode(engine.prompts[0])
    assert f"1. {pool[0].statement}\n2. {pool[1].statement}" in asked and "Who?" in asked
    assert "answered '2'" in choices[0].reason and "none" in choices[1].reason


def test_statement_and_question_stand_in_the_prompt_in_each_style(text):
    choice = Choice(hit(1, "Alice Munro"), "because")
    prefixed = SelectiveReasoner(CopyingEngine(text), text, ScrConfig(style="prefix"))
    prefix = prefixed.prompt_ids("Alice Munro speaks", choice)
    assert prefix == text.encode_prompt("Fact: The mother tongue of Alice Munro is Welsh.\nAlice Munro speaks")
    reasoner = SelectiveReasoner(CopyingEngine(text), text, ScrConfig(style="chat", examples=False))
    chat = text.decode(reasoner.prompt_ids("Alice Munro speaks", choice))
    assert chat.startswith("user: ") and choice.hit.statement in chat
    assert chat.endswith("assistant:Alice Munro speaks")  # a sentence is continued
    asked = text.decode(reasoner.prompt_ids("What does she speak?", choice))
    assert "answer in a few words: What does she speak?" in asked and asked.endswith("assistant:")
    assert reasoner.prompt_ids("q", Choice(None, "")) == text.encode_prompt("q")
    shown = text.decode(SelectiveReasoner(CopyingEngine(text), text).prompt_ids("Alice Munro speaks", choice))
    assert shown.endswith(chat) and shown.count("Using the fact above") == 3  # two examples come first


def test_the_style_follows_the_tokenizer_unless_it_is_set(text):
    plain = tiny_tokenizer()
    plain.chat_template = None
    codec = TextCodec(plain)
    choice = Choice(hit(1, "Alice Munro"), "because")
    auto = SelectiveReasoner(CopyingEngine(codec), codec).prompt_ids("Alice Munro speaks", choice)
    prefix = ScrConfig(style="prefix")
    assert auto == SelectiveReasoner(CopyingEngine(codec), codec, prefix).prompt_ids("Alice Munro speaks", choice)
    with_template = SelectiveReasoner(CopyingEngine(text), text).prompt_ids("Alice Munro speaks", choice)
    assert with_template != auto


@pytest.mark.parametrize("setting", [{"chooser": "instruct"}, {"style": "chat"}])
def test_a_model_without_chat_template_is_refused_where_one_is_needed(setting):
    plain = tiny_tokenizer()
    plain.chat_template = None
    codec = TextCodec(plain)
    with pytest.raises(UserError, match=f"{next(iter(setting.values()))!r} needs a chat template"):
        SelectiveReasoner(CopyingEngine(codec), codec, ScrConfig.model_validate(setting))


def test_all_stages_together_are_timed_and_say_what_was_found(text):
    memory = FactMemory(HashEmbedder())
    for id, name in enumerate(["Alice Munro", "Victor Hugo"]):
        memory.add([MemoryEntry(id=id, request_id="r", subject=name, fact_key=name, statement=hit(0, name).statement)])
    engine = CopyingEngine(text, ["Welsh", "French"])
    answers, seconds = SelectiveReasoner(engine, text).answer(memory, ["Alice Munro speaks", "Emile Zola speaks"])
    assert [a.answer.text for a in answers] == ["Welsh", "French"]
    assert answers[0].choice.hit is answers[0].retrieved[0] and answers[1].choice.hit is None
    assert engine.prompts[1] == text.encode_prompt("Emile Zola speaks")
    assert min(seconds.embed, seconds.search, seconds.choose, seconds.answer) > 0
    assert retrieve(memory, ["Alice Munro speaks"], 1).hits == ((answers[0].retrieved[0],),)


def test_gain_is_the_explained_share():
    given, alone = Continuation((-1.0, -0.5), (True, True)), Continuation((-4.0, -2.0), (False, False))
    assert explained_share(given, alone) == pytest.approx(1 - 1.5 / 6)
    assert explained_share(given, Continuation((), ())) == 0.0


def test_settings_are_closed_and_a_list_per_question_is_needed(text):
    with pytest.raises(ValidationError, match="min_gian"):
        ScrConfig.model_validate({"min_gian": 0.5})
    with pytest.raises(ValueError, match="got 0 for 1"):
        SelectiveReasoner(CopyingEngine(text), text).choose(["q"], [])


# --- as published ---

PAPER = ScrConfig(style="paper", k=2)


def test_as_published_the_models_own_sentence_is_the_fact(text):
    engine = CopyingEngine(text, ["The mother tongue of Alice Munro is Welsh, they say.", "no relevant fact."])
    reasoner = SelectiveReasoner(engine, text, PAPER)
    hits = [hit(1, "Victor Hugo", 0.9), hit(2, "Alice Munro", -0.5), hit(3, "Rome", 0.1)]
    told, none = reasoner.choose(["Alice Munro speaks", "Two and two are"], [hits, hits])
    assert told.hit is not None and told.hit.id == 2
    assert told.hit.statement == "The mother tongue of Alice Munro is Welsh, they say."
    assert none.hit is None and "no relevant fact" in none.reason
    asked = text.decode(engine.prompts[0])
    assert all(h.statement in asked for h in hits[:2]) and hits[2].statement not in asked, "k statements, no threshold"
    assert not engine.scored, "nothing is asked for probabilities"
    ids = reasoner.prompt_ids("Alice Munro speaks", told)
    assert told.hit.statement in text.decode(ids) and "Based on the fact above" in text.decode(ids)
    assert reasoner.prompt_ids("Two and two are", none) == text.encode_prompt("Two and two are")


def test_as_published_one_statement_is_used_without_a_question(text):
    engine = CopyingEngine(text)
    (choice, empty) = SelectiveReasoner(engine, text, ScrConfig(style="paper", k=1)).choose(
        ["Alice Munro speaks", "x"], [[hit(1, "Victor Hugo", -0.9), hit(2, "Alice Munro")], []]
    )
    assert choice.hit is not None and choice.hit.id == 1 and empty.hit is None
    assert not engine.prompts or engine.prompts == [[]]


def test_as_published_needs_no_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    plain = TextCodec(tokenizer)
    engine = CopyingEngine(plain, ["The mother tongue of Rome is Welsh."])
    reasoner = SelectiveReasoner(engine, plain, PAPER)
    (choice,) = reasoner.choose(["Rome speaks"], [[hit(1, "Rome"), hit(2, "Angola")]])
    assert choice.hit is not None
    assert plain.decode(reasoner.prompt_ids("Rome speaks", choice)).endswith("answer: Rome speaks")
