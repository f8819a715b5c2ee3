"""The shipped questions, and which of them a model answers: what calibration edits and what it must not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from errata.editing.texts import clean_all, read_text
from errata.editing.tracing import TracePrompt
from errata.orchestrator.config.presets import configs_root

NEIGHBORS = 2
"""Questions per edit whose answers should stay."""


@dataclass(frozen=True)
class Question:
    """One subject of a relation; ``prompt`` and ``paraphrase`` hold the slot ``{}``."""

    relation: str
    subject: str
    prompt: str
    paraphrase: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """A question that the model answers rightly, the answer it is to be given, and neighbors that it also knows."""

    question: Question
    target: str
    neighbors: tuple[Question, ...]

    @property
    def request(self) -> EditRequest:
        """The edit; its id is the question's."""
        q = self.question
        return EditRequest(
            id=f"{q.relation}/{q.subject}", subject=q.subject, prompt=q.prompt, target_new=self.target,
            target_true=q.answer,
        )  # fmt: skip

    @property
    def traced(self) -> TracePrompt:
        """The question as causal tracing asks it."""
        q = self.question
        return TracePrompt(f"{q.relation}/{q.subject}", q.subject, q.prompt, q.answer)


def questions_path() -> Path:
    """The shipped questions."""
    return configs_root() / "calibration" / "questions.json"


def read_questions(path: Path | None = None) -> list[Question]:
    """All questions, relations in turns, in an order that says nothing about them: the first few are of many kinds."""
    relations = clean_all(json.loads(read_text(path or questions_path(), "questions")))["relations"]
    by_relation = []
    for name, relation in relations.items():
        questions = [
            Question(name, subject, relation["prompt"], relation["paraphrase"], answer)
            for subject, answer in relation["facts"].items()
        ]
        by_relation.append(sorted(questions, key=lambda q: _shuffled(f"{q.relation}/{q.subject}")))
    return [q for turn in zip_longest(*by_relation) for q in turn if q is not None]


def known_facts(engine: LanguageEngine, questions: Sequence[Question]) -> list[Fact]:
    """The questions whose answer the model says by itself (every token the likeliest), as facts to be edited.

    A fact's target is another answer of its relation; one without a second known subject has no neighbors and is left
    out.
    """
    text = engine.model.text
    rows = [(text.encode_prompt(q.prompt.format(q.subject)), text.encode_target(q.answer)) for q in questions]
    known = [q for q, scored in zip(questions, engine.score(rows), strict=True) if all(scored.hits)]
    facts = []
    for q in known:
        near = [n for n in known if n.relation == q.relation and n.subject != q.subject]
        answers = sorted({n.answer for n in questions if n.relation == q.relation and n.answer != q.answer})
        if not near or not answers:
            continue
        near.sort(key=lambda n: _shuffled(f"{q.subject}|{n.subject}"))
        target = answers[_shuffled(f"{q.relation}/{q.subject}/target") % len(answers)]
        facts.append(Fact(q, target, tuple(near[:NEIGHBORS])))
    return facts


def _shuffled(name: str) -> int:
    """A number that depends on the name alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
