"""WikiBigEdit and UltraEditBench: layouts, and where the subject is in a question that does not mark it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.request import EditRequest
from errata.evaluation.datasets import BadRecord, ValidRecord, detect_schema, open_dataset
from errata.evaluation.datasets.at_scale import subject_in

WIKIBIGEDIT = {
    "tag": "update",
    "subject": "Ann Example",
    "relation": "employer",
    "relation_id": "P108",
    "object": "Acme",
    "update": "Who does Ann Example work for?",
    "rephrase": "What is the employer of Ann Example?",
    "personas": "Hey, who's Ann Example working for these days?",
    "ans": "Acme",
    "loc": "Who does Bob Sample work for?",
    "loc_ans": "Initech",
    "mhop": "Where is the employer of Ann Example?",
    "mhop_ans": "Springfield",
}
ULTRAEDITBENCH = {
    "case_id": 12,
    "subject": "Bridge X",
    "prompt": "Which river does Bridge X cross?",
    "ans": "Tiber",
    "rephrase_prompt": "Bridge X leads over which river?",
    "loc": "In which year did Bob Sample retire?",
    "loc_ans": "1999",
}


def read(tmp_path: Path, *records: dict[str, Any]) -> list[EditRequest]:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(list(records)))
    found = list(open_dataset(str(path), "auto"))
    bad = [record.reason for record in found if isinstance(record, BadRecord)]
    assert not bad, bad
    return [record.request for record in found if isinstance(record, ValidRecord)]


def test_wikibigedit(tmp_path: Path) -> None:
    assert detect_schema([WIKIBIGEDIT], "x").name == "wikibigedit"
    (request,) = read(tmp_path, WIKIBIGEDIT)
    assert (request.subject, request.prompt, request.target_new) == ("Ann Example", "Who does {} work for?", "Acme")
    assert request.paraphrases == ("What is the employer of Ann Example?",)
    assert [(p.prompt, p.answer) for p in request.neighborhood] == [("Who does Bob Sample work for?", "Initech")]
    assert [(p.kind, p.answers) for p in request.portability] == [
        ("persona", ("Acme",)),
        ("multi_hop", ("Springfield",)),
    ]


def test_a_fact_of_a_later_month_is_the_same_fact_however_it_is_asked(tmp_path: Path) -> None:
    later = {**WIKIBIGEDIT, "update": "By whom is Ann Example employed?", "ans": "Globex", "mhop": None, "personas": ""}
    former, newer = read(tmp_path, WIKIBIGEDIT, later)
    assert former.fact_key == newer.fact_key and former.id != newer.id and newer.portability == ()


def test_ultraeditbench(tmp_path: Path) -> None:
    assert detect_schema([ULTRAEDITBENCH], "x").name == "ultraeditbench"
    (request,) = read(tmp_path, ULTRAEDITBENCH)
    assert (request.id, request.prompt) == ("ueb-12", "Which river does {} cross?")
    assert (request.subject, request.target_new) == ("Bridge X", "Tiber")
    assert request.paraphrases == ("Bridge X leads over which river?",) and len(request.neighborhood) == 1


def test_what_is_missing_is_said_by_name(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    lacking = [{**ULTRAEDITBENCH, "loc_ans": None}, {k: v for k, v in WIKIBIGEDIT.items() if k != "subject"}]
    for record, words in zip(lacking, ["'loc_ans' is missing", "'subject' is missing"], strict=True):
        path.write_text(json.dumps([record]))
        (found,) = open_dataset(str(path), "auto")
        assert isinstance(found, BadRecord) and words in found.reason


@pytest.mark.parametrize(
    ("question", "subject", "found"),
    [
        ("Who leads Acme?", "Acme", "Acme"),
        ("Who leads ACME, Inc. now?", "Acme Inc", "ACME, Inc"),
        ("The family name of Baroness Fritchie, also known as Rennie Fritchie?", "Rennie Fritchie", "Rennie Fritchie"),
        ("What is the capital of the Republic of Chad?", "Republic of Chad (country)", "Republic of Chad"),
        # parts: the longest run of words, the first of equally long ones
        ("Where was Smith born?", "John Smith", "Smith"),
        ("Where did Mary Ann Evans write?", "Mary Ann Cross Evans", "Mary Ann"),
        ("法国的首都是哪里?", "法国的首都是哪里", "法国的首都是哪里"),
        # scripts without spaces: a subject within the run of characters
        ("法国的首都是哪里?", "法国", "法国"),
        ("เชียงใหม่อยู่ที่ไหน", "เชียงใหม่", "เชียงใหม่"),
        # words that name nothing are no match, and neither are parts of words
        ("What is the sum of a and b?", "A of the", "What is the sum of a and b?"),
        ("Who runs Superacme?", "Acme", "Who runs Superacme?"),
        ("Who was it?", "Somebody Else", "Who was it?"),
    ],
)
def test_the_subject_is_found_by_the_longest_match(question: str, subject: str, found: str) -> None:
    assert subject_in(question, subject) == found
    request = EditRequest(subject=found, prompt=question, target_new="x")
    assert request.text == question


WORDS = st.lists(st.sampled_from(["Anna", "Berg", "of", "the", "Qx", "Élan", "1984"]), min_size=1, max_size=5)


@given(before=WORDS, subject=WORDS, after=WORDS)
def test_what_is_found_stands_in_the_question_and_fills_its_slot(
    before: list[str], subject: list[str], after: list[str]
) -> None:
    question = " ".join(["Ask", *before, *subject, *after]) + "?"
    found = subject_in(question, " ".join(subject))
    assert found in question
    if any(len(word) > 3 for word in subject):
        assert len(found.split()) >= len(subject)
