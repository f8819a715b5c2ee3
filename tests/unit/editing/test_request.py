"""What a client may ask for, and how it is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

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
    assert ask(subject="ROME").fact_key == ask().fact_key
    assert ask(relation="country").fact_key != ask().fact_key
    assert ask(relation="country").fact_key == ask(relation="Country", prompt="Where is {}?").fact_key
    assert ask(subject="Paris").fact_key != ask().fact_key


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
