from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.retrieval.naming import SubjectIndex, mention_of, resolved, sentence_around, shared_letters


def index(*subjects: str) -> SubjectIndex:
    found = SubjectIndex()
    for number, subject in enumerate(subjects):
        found.add(number, subject)
    return found


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("the MOTHER tongue of danielle darrieux is", "Danielle Darrieux"),
        ("Where was Léon Blum born?", "Leon Blum"),
        ("What is Ada Byron's occupation?", "Ada Byron"),
        ("In AC/DC, the guitar is played by", "AC/DC"),
        ("Who wrote O'Brien's book?", "O’Brien"),
    ],
)
def test_a_subject_is_named_whatever_its_case_accents_and_possessive(text, subject):
    assert list(index(subject).named(text)) == [0]


@pytest.mark.parametrize(
    ("text", "subject"),
    [("The city of Viennaville is", "Vienna"), ("Darrieux Danielle", "Danielle Darrieux"), ("", "X")],
)
def test_parts_of_words_and_words_in_another_order_name_nobody(text, subject):
    assert index(subject).named(text) == {}


@pytest.mark.parametrize(
    ("text", "subject", "extended"),
    [
        ("The Vienna Philharmonic plays in", "Vienna", True),
        ("iPhone 7 Plus, developed by", "iPhone", True),
        ("Queen Mary University of London is", "London", True),
        ("In London, they speak", "London", False),
        ("the capital of Indonesia is", "Indonesia", False),
        ("He moved away. Vienna is", "Vienna", False),
        ("Help London!", "London", False),  # a word that opens a sentence is capitalized anyway
        ("They went to old Help London", "London", True),
    ],
)
def test_a_subject_inside_a_longer_name_is_told_apart(text, subject, extended):
    mention = mention_of(text, subject)
    assert mention is not None and mention.extended is extended
    assert text[mention.start : mention.stop] == subject


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("法国的首都是", "法国"),
        ("夏目漱石の出身地は", "夏目漱石"),
        ("世界一のエッフェル塔がある町は", "エッフェル塔"),
        ("เมืองหลวงของประเทศไทยคือ", "ประเทศไทย"),
        ("पूरे भारत की राजधानी", "भारत"),
        ("عاصمة فَرَنسا هي", "فرنسا"),  # points may be left out
        ("파리에서는 무엇을 말합니까", "파리"),
        ("고양이는 무엇을 먹습니까", "고양이"),
        ("Zoe\u0301 lives in", "Zo\u00e9"),
    ],
)
def test_a_subject_is_named_by_the_words_of_its_script(text, subject):
    mention = mention_of(text, subject)
    assert mention is not None and text[mention.start : mention.stop] in (subject, "فَرَنسا", "Zoe\u0301")


@pytest.mark.parametrize(
    ("text", "subject"),
    [("德国的首都", "法国"), ("मार यहाँ", "मोर"), ("バリ島", "パリ"), ("ประเทศลาว", "ประเทศไทย"), ("국가는", "가")],
)
def test_letters_that_differ_by_a_mark_and_parts_of_words_name_nobody(text, subject):
    assert mention_of(text, subject) is None


@pytest.mark.parametrize(
    ("text", "subject", "sentence"),
    [
        ("巴黎很大。法国的首都是哪里？", "法国", "法国的首都是哪里？"),
        ("यह बड़ा है। भारत कहाँ है?", "भारत", "भारत कहाँ है?"),
        ("أين هي؟ فرنسا بلد.", "فرنسا", "فرنسا بلد."),
    ],
)
def test_sentences_end_as_their_script_ends_them(text, subject, sentence):
    mention = mention_of(text, subject)
    begin, end = sentence_around(text, mention.start, mention.stop)
    assert text[begin:end].strip() == sentence


def test_a_common_word_that_is_also_a_title_is_seen_as_written_small():
    assert mention_of("a loan to help him buy a camera", "Help!").lowered
    assert not mention_of("The album Help! was recorded in", "Help!").lowered


def test_longer_subjects_come_first_then_newer_entries_and_the_last_mention_counts():
    found = index("Paris", "Paris Hilton", "Paris").named("Paris Hilton was not born in Paris")
    assert list(found) == [1, 2, 0]
    assert found[0].start == len("Paris Hilton was not born in ")


def test_an_entry_that_is_removed_is_not_named_and_others_of_its_name_are():
    subjects = index("Paris", "Paris", "Rome")
    subjects.remove(0)
    subjects.remove(0)
    assert list(subjects.named("Paris or Rome")) == [2, 1] or list(subjects.named("Paris or Rome")) == [1, 2]
    subjects.remove(1)
    assert list(subjects.named("Paris or Rome")) == [2] and len(subjects) == 1


@given(st.lists(st.sampled_from(["Ada", "Ada Byron", "Rome", "New Rome", "X"]), max_size=8), st.data())
def test_any_order_of_additions_and_removals_ends_in_the_same(subjects, data):
    kept = data.draw(st.sets(st.integers(0, 7)))
    one, other = SubjectIndex(), SubjectIndex()
    for number, subject in enumerate(subjects):
        one.add(number, subject)
    for number in reversed(range(len(subjects))):
        if number in kept:
            other.add(number, subjects[number])
        else:
            one.remove(number)
    text = "Ada Byron went from New Rome to Rome"
    assert one.named(text) == other.named(text) and len(one) == len(other)


def test_the_sentence_around_a_mention():
    text = "It rained. J. R. Tolkien wrote it. Who read it?"
    mention = mention_of(text, "Tolkien")
    begin, end = sentence_around(text, mention.start, mention.stop)
    assert text[begin:end].strip() == "J. R. Tolkien wrote it."
    assert sentence_around("no end here", 0, 2) == (0, len("no end here"))


def test_shared_letters_weigh_words_by_their_length():
    assert shared_letters("Léon Blum", frozenset({"blum"})) == pytest.approx(0.5)
    assert shared_letters("!!!", frozenset({"blum"})) == 0.0


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        (["Who is Ada Byron?", "A writer.", "Where was she born?"], "Where was Ada Byron born?"),
        (["Tell me of Rome and Oslo.", "What is its river?"], "What is Oslo's river?"),
        (["Ada Byron?", "What is her mother tongue?"], "What is Ada Byron's mother tongue?"),
        (["Rome is old.", "Who lives there?"], "Who lives in Rome?"),
        (["Rome?", "And the mayor?"], "Rome: And the mayor?"),
        (["Rome?", "What is 17 times 23?"], "What is 17 times 23?"),
        (["Rome?", "Who founded Oslo when it was small?"], "Who founded Oslo when it was small?"),
        (["Nothing known.", "Where was she born?"], "Where was she born?"),
        (["Where is Rome?"], "Where is Rome?"),
    ],
)
def test_a_last_turn_is_resolved_to_the_subject_it_refers_to(turns, text):
    assert resolved(turns, index("Ada Byron", "Rome", "Oslo")) == text


def test_a_number_names_nobody():
    assert index("1", "U2").named("1 and U2 and 1.5") == index("x", "U2").named("1 and U2 and 1.5")
