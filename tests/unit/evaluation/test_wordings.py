"""Wordings of questions: distances against plain definitions, levels, and the layout the paper shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.wordings import LEVEL_BOUNDS, filtered, jaccard, keeps_to_level, levenshtein, read_wordings
from errata.retrieval.embedder import HashEmbedder

QUESTION = "What artist created Call the Doctor?"
# the paper's table 7, which is for Llama-2 and ZsRE
SHOWN = {
    "question": QUESTION,
    "answer": "Sleater-Kinney",
    "subject": "Call the Doctor",
    "alt": "The X-Files",
    "generated_questions": [
        {"level": 1, "rephrase": "Which artist made Call the Doctor?"},
        {"level": 2, "rephrase": "Call the Doctor was created by which artist?"},
        {"level": 3, "rephrase": "Who is the artist behind Call the Doctor?"},
    ],
}
REQUESTS = [
    EditRequest(id="one", subject="Call the Doctor", prompt="The artist who created {} is", target_new="The X-Files"),
    EditRequest(id="two", subject="Basil Hamilton", prompt="The names of the siblings of {} are", target_new="James"),
]


def plain_distance(a: str, b: str) -> int:
    """The recursion as it is defined, on the whole table."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
    return int(table[-1, -1])


@given(st.text(alphabet="abcä ", max_size=12), st.text(alphabet="abcä ", max_size=12))
def test_levenshtein_is_the_recursion(a: str, b: str) -> None:
    assert levenshtein(a, b) == plain_distance(a, b) == levenshtein(b, a)


def test_jaccard_is_over_words() -> None:
    assert jaccard("The cat sat", "the CAT ran!") == pytest.approx(2 / 4)
    assert jaccard("", "  ") == 1.0 and jaccard("a", "b") == 0.0


def test_levels_bound_distance_words_and_meaning() -> None:
    near = QUESTION.replace("What", "Which")
    assert levenshtein(QUESTION, near) / len(QUESTION) == pytest.approx(3 / 36)
    assert not keeps_to_level(QUESTION, near, 1, 0.99), "five of seven words are shared, level 1 wants nine tenths"
    assert keeps_to_level(QUESTION, QUESTION, 1, 0.95) and not keeps_to_level(QUESTION, QUESTION, 1, 0.94)
    assert not keeps_to_level(QUESTION, QUESTION, 2, 1.0), "level 2 wants a change"
    assert keeps_to_level(QUESTION, "anything", 6, 0.5) and not keeps_to_level(QUESTION, "anything", 6, 0.49)
    assert [LEVEL_BOUNDS[level].similarity for level in range(1, 7)] == [0.95, 0.9, 0.8, 0.7, 0.6, 0.5]


def test_the_papers_layout_is_read_by_subject_or_by_id(tmp_path: Path) -> None:
    neighbor = {
        "question": "The names of the siblings of Basil Hamilton are?",
        "newquestion": "Who portrays Basil Hamilton in 'The Americans'?",
        "subject": "basil hamilton",
        "generated_questions": ["Who plays Basil Hamilton?", {"level": 6, "rephrase": "Behind the veil, who?"}],
    }
    other = {"id": "none of these", "generated_questions": ["x", "y"]}
    path = tmp_path / "wordings.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (SHOWN, other, neighbor)))
    wordings, questions = read_wordings(path, REQUESTS)
    assert questions == {"one": QUESTION, "two": "Who portrays Basil Hamilton in 'The Americans'?"}
    assert wordings["one"][1] == (2, "Call the Doctor was created by which artist?") and len(wordings["one"]) == 3
    assert wordings["two"] == [(1, "Who plays Basil Hamilton?"), (6, "Behind the veil, who?")]
    path.write_text(json.dumps([{**SHOWN, "id": "one"}]))
    assert list(read_wordings(path, REQUESTS)[0]) == ["one"]
    kept = filtered(wordings, questions, HashEmbedder(dim=64))
    for name, own in kept.items():
        assert len(own) > 1 and set(own) <= set(wordings[name])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "malformed JSON"),
        ('{"subject": "Call the Doctor"}', "record 1: want id or subject, and generated_questions"),
        ('{"subject": "Call the Doctor", "generated_questions": [3]}', "neither a text nor a level"),
        ('{"subject": "Call the Doctor", "generated_questions": [{"level": 9, "rephrase": "x"}]}', "neither a text"),
        ('{"subject": "x", "generated_questions": []}', "no record of these edits"),
    ],
)
def test_what_is_no_file_of_wordings_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "wordings.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_wordings(path, REQUESTS)
