from __future__ import annotations

import pytest
from pydantic import ValidationError

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.retrieval.statements import StatementConfig, declarative, from_template, statement_of


def request(**more: object) -> EditRequest:
    return EditRequest.model_validate({"subject": "Ada", "prompt": "{} was born in", "target_new": "Rome", **more})


def test_the_requests_own_statement_is_the_default():
    assert statement_of(request()) == "Ada was born in Rome."
    assert statement_of(request(statement="Rome is where Ada was born.")) == "Rome is where Ada was born."


@pytest.mark.parametrize(
    "question, sentence",
    [
        ("What is the capital of France?", "The capital of France is Rome."),
        ("Who was the author of Emma?", "The author of Emma was Rome."),
        ("What is the name of the river of Wales?", "The river of Wales is Rome."),
        ("Where was Ada Byron born?", "Ada Byron was born in Rome."),
        ("Who wrote  Emma?", "Rome wrote Emma."),
        ("What is Ada known for?", 'The answer to "What is Ada known for?" is Rome.'),
        ("Which company made the Beetle?", 'The answer to "Which company made the Beetle?" is Rome.'),
        ("The capital of France is", "The capital of France is Rome."),
    ],
)
def test_questions_are_turned_into_sentences(question, sentence):
    assert declarative(question, "Rome.") == sentence


def test_declarative_style_leaves_what_is_no_question():
    config = StatementConfig(style="declarative")
    assert statement_of(request(), config) == "Ada was born in Rome."
    assert statement_of(request(prompt="Where was {} born?"), config) == "Ada was born in Rome."


def test_templates_by_relation_with_a_common_one_and_the_requests_own_as_the_last_resort():
    config = StatementConfig(style="template", templates={"birthplace": "{subject} comes from {target}."})
    assert statement_of(request(relation="birthplace"), config) == "Ada comes from Rome."
    assert statement_of(request(relation="other"), config) == "Ada was born in Rome."
    common = StatementConfig(style="template", templates={"*": "{relation} of {subject}: {target}."})
    assert statement_of(request(relation="birthplace"), common) == "birthplace of Ada: Rome."


@pytest.mark.parametrize(
    "template, message",
    [
        ("{object} {target}", "unknown field 'object'"),
        ("{subject}", "must contain {target}"),
        ("{target", "expected '}'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_when_the_settings_are_read(template, message):
    with pytest.raises(ValidationError, match=message):
        StatementConfig(templates={"r": template})
    with pytest.raises(UserError, match=message):
        from_template(request(), template)


def test_a_template_that_needs_the_relation_says_so():
    with pytest.raises(UserError, match="states none"):
        from_template(request(), "{relation} {target}")
