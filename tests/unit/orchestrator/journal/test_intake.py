"""The way into the journal: one gate, applied once, and what an earlier release took in keeps its name."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.editing.model.capacity import Capacity
from errata.editing.model.text import TextCodec
from errata.editing.request import EditRequest
from errata.editing.texts import former_identity
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.intake import Admission, Intake
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome, payload_digest
from tests.helpers.tiny import save_tiny, tiny_tokenizer


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(tmp_path / "journal.sqlite", JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        yield journal


def ask(name: str, **given: Any) -> EditRequest:
    return EditRequest(**({"id": name, "subject": "Rome", "prompt": "{} lies in", "target_new": "Canada"} | given))


def test_what_comes_in_is_cleaned_and_named_by_the_rules(journal: Journal) -> None:
    intake = Intake(journal)
    answers = intake.accept(
        [ask("a"), ask("b", prompt="{} lies in \n"), ask("c", subject="rome"), ask("d", relation="x\0")]
    )
    assert [answer.seq for answer in answers] == [1, 2, 3, None]
    assert answers[3].invalid and answers[3].refused == "relation: holds NUL at character 1, which no valid text holds"
    rows = {row.id: row for row in journal.pending(10)}
    assert rows["b"].request.prompt == "{} lies in" and rows["b"].fact_key == rows["a"].fact_key
    assert rows["c"].fact_key != rows["a"].fact_key
    again = intake.accept([ask("b", prompt="{} lies in \n"), ask("b"), ask("b", target_new="Italy")])
    assert [(answer.duplicate, answer.invalid) for answer in again] == [(True, False), (True, False), (False, False)]
    assert "another content" in str(again[2].refused)


def test_what_the_model_cannot_take_in_is_refused_and_the_others_go_in(journal: Journal, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "gpt2")
    admission = Admission.of(str(tmp_path / "model"), context_tokens=5)
    assert admission.capacity == Capacity(128, 400) and admission.reserved == 8
    long = "?" * 129
    answers = Intake(journal, admission).accept(
        [
            ask("prompt", prompt=long + " {} is"),
            ask("target", target_new=long),
            ask("probe", paraphrases=("Where?", long)),
            ask("near", neighborhood=({"prompt": "Paris lies in", "answer": long},)),
            ask("follows", portability=({"prompt": long, "answers": ("x",)},)),
            ask("statement", statement=long),
            ask("true", target_true=long),
            ask("plain", paraphrases=("Where is Rome?",)),
            ask("with its contexts", prompt="?" * 118 + " {}", target_new="x"),
        ]
    )
    assert [answer.id for answer in answers if not answer.refused] == ["plain"]
    assert all("128 positions" in str(answer.refused) for answer in answers if answer.refused)
    assert str(answers[2].refused).startswith("paraphrases.1 and target_new: ")
    assert str(answers[8].refused).startswith("prompt and target_new: ") and "and 8 beside" in str(answers[8].refused)


def test_a_token_that_the_embeddings_lack_is_named(journal: Journal) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Quux"])
    answers = Intake(journal, Admission(TextCodec(tokenizer), Capacity(512, 400))).accept([ask("a", target_new="Quux")])
    assert "token 'Quux' has number 400" in str(answers[0].refused)


def as_before(path: Path) -> None:
    """Rewrite a journal as an earlier release would have left it: former names, former statements."""
    connection = sqlite3.connect(path)
    for seq, text in connection.execute("SELECT seq, payload FROM requests").fetchall():
        payload = json.loads(text)
        payload["statement"] = f"{payload['prompt'].replace('{}', payload['subject'])} {payload['target_new']}."
        digest = payload_digest(EditRequest.model_validate(payload))
        name = former_identity(payload["subject"], payload.get("relation") or payload["prompt"])
        connection.execute(
            "UPDATE requests SET payload = ?, payload_digest = ?, fact_key = ? WHERE seq = ?",
            (json.dumps(payload), digest, name, seq),
        )
    connection.commit()
    connection.close()


def test_a_journal_of_before_keeps_the_identity_of_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    old = [
        ask("turkey", subject="Turkey", prompt="{} is a ", target_new="country"),
        ask("法国", subject="法国", prompt="{}的首都是", target_new="里昂"),
    ]
    with Journal.create(path, JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        journal.accept(old)
    as_before(path)
    with Journal.open(path) as journal:
        former = {row.id: row.fact_key for row in journal.pending(10)}
        assert {row.id: row.request.fact_key for row in journal.pending(10)} == former, "as the editor sees them"
        intake = Intake(journal)
        again = intake.accept(old)
        assert all(answer.duplicate for answer in again), "read again, they are what they were"
        journal.commit(CommitData(1, tuple(RequestOutcome(request.id, True) for request in old), None))
        intake.accept(
            [
                ask("bird", subject="turkey", prompt="{} is a ", target_new="bird"),
                ask("new", subject="Turkey", prompt="{} is a ", target_new="republic"),
            ]
        )
        rows = {row.id: row for row in journal.pending(10)}
        assert rows["new"].fact_key != former["turkey"], "trimmed, it is named by another prompt"
        assert rows["bird"].fact_key != former["turkey"]


def test_a_newer_value_supersedes_one_of_before(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with Journal.create(path, JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        journal.accept([ask("old", subject="Turkey", relation="kind")])
    as_before(path)
    with Journal.open(path) as journal:
        journal.commit(CommitData(1, (RequestOutcome("old", True),), None))
        Intake(journal).accept(
            [ask("bird", subject="turkey", relation="kind"), ask("new", subject="Turkey", relation="kind")]
        )
        rows = {row.id: row.request for row in journal.pending(10)}
        assert rows["new"].fact_key == journal.requests("applied")[0].fact_key
        assert rows["bird"].fact_key != rows["new"].fact_key
        journal.commit(CommitData(2, (RequestOutcome("new", True), RequestOutcome("bird", True)), None))
        assert [row.id for row in journal.requests("superseded")] == ["old"]
