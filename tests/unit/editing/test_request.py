"""What a client may ask for, and how it is named."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.editing.request import EditBatch, EditRequest, NeighborhoodProbe, PortabilityProbe


def ask(**given: Any) -> EditRequest:
    return EditRequest(**({"subject": "Rome", "prompt": "{} lies in", "target_new": "Canada"} | given))


def test_a_request_completes_itself() -> None:
    request = ask()
    assert request.text == "Rome lies in"
    assert request.statement == "Rome lies in Canada."
    assert len(request.id) == 16
    assert ask(statement="Rome is in Canada.").statement == "Rome is in Canada."
    assert ask(id="mine").id == "mine"


def test_the_id_names_what_is_asked_for_and_nothing_else() -> None:
    base = ask().id
    assert ask(relation="country", paraphrases=("Where is Rome?",)).id == base
    assert ask(prompt="Rome lies in").id == base
    others = [ask(target_new="Italy"), ask(subject="Paris"), ask(prompt="The city {} lies in")]
    assert len({base, *(o.id for o in others)}) == 4


def test_a_spelled_out_subject_becomes_the_slot() -> None:
    assert ask(prompt="Where is Rome?").prompt == "Where is {}?"
    # the last occurrence: the subject of a cloze prompt stands nearest to the answer
    assert ask(prompt="Rome, I mean Rome, lies in").prompt == "Rome, I mean {}, lies in"


def test_white_space_around_subject_and_target_is_dropped() -> None:
    request = ask(subject=" Rome ", target_new=" Canada\n")
    assert (request.subject, request.target_new) == ("Rome", "Canada")
    assert request.id == ask().id


def test_the_fact_is_named_by_subject_and_relation() -> None:
    assert ask(target_new="Italy").fact_key == ask().fact_key
    assert ask(relation="country").fact_key != ask().fact_key
    assert ask(relation="country").fact_key == ask(relation="country", prompt="Where is {}?").fact_key
    assert ask(subject="Paris").fact_key != ask().fact_key


@pytest.mark.parametrize(
    "one, other, same",
    [
        ({"prompt": "{} lies in"}, {"prompt": "{} lies in "}, True),
        ({"subject": "Zo\u00e9"}, {"subject": "Zoe\u0301"}, True),
        ({"relation": " country"}, {"relation": "country\n"}, True),
        ({"subject": "\uac00"}, {"subject": "\u1100\u1161"}, True),  # a Korean syllable and its two letters
        ({"subject": "Turkey"}, {"subject": "turkey"}, False),
        ({"relation": "country"}, {"relation": "Country"}, False),
        ({"subject": "file"}, {"subject": "\ufb01le"}, False),  # a ligature is another character, not another form
        ({"prompt": "{} lies in"}, {"prompt": "{}  lies in"}, False),
    ],
)
def test_what_is_one_fact(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (ask(**one).fact_key == ask(**other).fact_key) is same


def test_a_fact_keeps_the_name_that_a_journal_gave_it() -> None:
    request = ask()
    known = request.named("0123456789abcdef")
    assert known.fact_key == "0123456789abcdef" and request.fact_key != known.fact_key
    assert known.model_dump() == request.model_dump(), "it is no part of what is asked for"
    assert pickle.loads(pickle.dumps(known)).fact_key == known.fact_key
    assert request.named(request.fact_key) is request and request.named(None) is request


@pytest.mark.parametrize(
    "subject, prompt, template",
    [
        ("Niger", "Niger, unlike Nigeria, has", "{}, unlike Nigeria, has"),
        ("US", "The US president was born in AUSTIN in", "The {} president was born in AUSTIN in"),
        ("Java", "Java, not to be confused with JavaScript, is made by",
         "{}, not to be confused with JavaScript, is made by"),
        ("Rome", "Rome's mayor is", "{}'s mayor is"),
        ("法国", "法国的首都是", "{}的首都是"),
        ("프랑스", "프랑스의 수도는", "{}의 수도는"),
        ("ไทย", "ประเทศไทยอยู่ใน",
         "ประเทศ{}อยู่ใน"),
        ("{} operator", "The {} operator is", "The {} is"),
        ("Java", "In {{}} of Java, one writes", "In {{}} of {}, one writes"),
    ],
)  # fmt: skip
def test_a_subject_is_found_as_words(subject: str, prompt: str, template: str) -> None:
    request = ask(subject=subject, prompt=prompt)
    assert request.prompt == template
    assert request.text == prompt


@pytest.mark.parametrize(
    "subject, prompt",
    [
        ("Niger", "Nigeria lies in"),
        ("US", "She was born in AUSTIN in"),
        ("Java", "JavaScript is made by"),
        ("rome", "Rome lies in"),
        ("मर", "मराठी है"),  # the next sign is a vowel of the same letter
        ("서울", "새서울은"),
    ],
)
def test_a_subject_inside_a_word_is_refused(subject: str, prompt: str) -> None:
    with pytest.raises(ValidationError, match="contains neither the slot"):
        ask(subject=subject, prompt=prompt)


@pytest.mark.parametrize(
    "subject, prompt, target, statement",
    [
        ("France", "The capital of {} is ", "Lyon.", "The capital of France is Lyon."),
        ("France", "The capital of {} is", "Lyon", "The capital of France is Lyon."),
        ("法国", "{}的首都是", "里昂", "法国的首都是里昂。"),
        ("ไทย", "{}คือ", "เอเชีย", "ไทยคือเอเชีย"),
        ("भारत", "{} की राजधानी", "दिल्ली",
         "भारत की राजधानी दिल्ली।"),
        ("Rome", "Where is {}?", "Italy!", "Where is Rome? Italy!"),
    ],
)  # fmt: skip
def test_statements_are_joined_by_the_rules_of_the_script(
    subject: str, prompt: str, target: str, statement: str
) -> None:
    assert ask(subject=subject, prompt=prompt, target_new=target).statement == statement


def test_what_is_accepted_has_been_through_the_gate() -> None:
    request = ask(
        prompt="{} lies in \n",
        relation=" country ",
        paraphrases=("\ufeffWhere is {}? ", "In Rust, {} is a place for Rome"),
        neighborhood=(NeighborhoodProbe(prompt="Near {} lies ", answer=" Ostia"),),
        portability=(PortabilityProbe(prompt="{}'s people speak", answers=("Italian ", "English")),),
        provenance={"who": " me ", "when": "2024-05-01T12:00:00Z"},
    )
    kept = request.cleaned()
    assert kept.id == request.id
    assert (kept.prompt, kept.relation) == ("{} lies in", "country")
    assert kept.paraphrases == ("Where is Rome?", "In Rust, {} is a place for Rome"), "braces that are text stay text"
    assert kept.neighborhood[0] == NeighborhoodProbe(prompt="Near Rome lies", answer="Ostia")
    assert kept.portability[0].prompt == "Rome's people speak" and kept.portability[0].answers == ("Italian", "English")
    assert kept.provenance is not None and kept.provenance.who == "me"
    assert kept.statement == "Rome lies in Canada."
    assert kept.cleaned() is kept
    assert ask(statement=" As it is ").cleaned().statement == "As it is"


@pytest.mark.parametrize(
    "given, says",
    [
        ({"subject": "Ro\0me"}, "subject: holds NUL at character 2"),
        ({"relation": "\0"}, "relation: holds NUL"),
        ({"paraphrases": ("Where?", "What\0")}, r"paraphrases\.1: holds NUL"),
        ({"paraphrases": (" ",)}, "paraphrases: must not be blank"),
        ({"neighborhood": ({"prompt": " ", "answer": "x"},)}, "neighborhood.0.prompt"),
        ({"portability": ({"prompt": "x", "answers": ("\t",)},)}, "an answer must not be blank"),
        ({"provenance": {"why": "a\0b"}}, r"provenance\.why: holds NUL"),
        ({"id": "a\0"}, "holds NUL"),
        ({"relation": "\ud83d Rome"}, r"relation: holds half of a surrogate pair .* at character 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ask(**given).cleaned()


@pytest.mark.parametrize(
    "given, says",
    [
        ({"subject": ""}, "subject"),
        ({"subject": "   "}, "must not be blank"),
        ({"target_new": ""}, "target_new"),
        ({"target_new": " \t"}, "must not be blank"),
        ({"prompt": "The city lies in"}, "contains neither the slot '{}' nor the subject 'Rome'"),
        ({"prompt": "{} and {} lie in"}, "exactly once"),
        ({"prompt": ""}, "prompt"),
        ({"targt": "x"}, "targt"),
        ({"neighborhood": ({"prompt": "Paris lies in", "answer": ""},)}, "answer"),
        ({"portability": ({"prompt": "Where?", "answers": ()},)}, "answers"),
    ],
)
def test_what_cannot_be_asked_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ask(**given)
    assert says in str(caught.value)


def test_a_request_survives_json() -> None:
    request = ask(
        relation="country",
        paraphrases=("Where is Rome?",),
        neighborhood=(NeighborhoodProbe(prompt="Paris lies in", answer="France"),),
        portability=(PortabilityProbe(prompt="The continent of Rome is", answers=("America", "North America")),),
        provenance={"who": "a test", "when": "2024-05-01T12:00:00Z"},
    )
    assert EditRequest.model_validate_json(request.model_dump_json()) == request


def test_a_batch_has_a_number_and_requests() -> None:
    assert EditBatch(sequence=1, requests=(ask(),)).requests[0].subject == "Rome"
    for bad in ({"sequence": 0, "requests": (ask(),)}, {"sequence": 1, "requests": ()}):
        with pytest.raises(ValidationError):
            EditBatch(**bad)  # type: ignore[arg-type]
