"""What speaks for a statement's bearing on a question, found without a pass of the model.

The nearest statements and those whose subject the question names are candidates; each comes with its cosine, whether
and how its subject is named, and how alike the two sentences are once the subject is taken out of both, which tells
whether the same thing is asked of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.naming import Mention, mention_of, sentence_around, shared_letters, words_of

Vectors = NDArray[np.float32]
_MOST_NAMED = 8
"""Candidates beside the nearest ones: of a subject with many facts those nearest to the question."""
_KEPT_VECTORS = 20_000
_SUBJECT = "it"
"""What stands for the subject where it is taken out."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a statement and a question without asking a model.

    Attributes:
        named: the question names the statement's subject.
        extended: it does so only as part of a longer name.
        letters: share of the subject's letters that stand in words of the question, 0 to 1.
        relation: cosine of the two sentences without the subject; None where it is not named.
        lowered: it writes the subject without its capitals.
        last: it does so in its last sentence, where a question asks.
        words: words of that sentence; of the question where the subject is not named.
    """

    named: bool
    extended: bool
    letters: float
    relation: float | None
    lowered: bool = False
    last: bool = False
    words: int = 0


@dataclass(frozen=True)
class Candidate:
    """A statement that may bear on a question, and what speaks for it."""

    hit: Hit
    evidence: Evidence

    @property
    def id(self) -> int:
        """Of the memory entry."""
        return self.hit.id

    @property
    def request_id(self) -> str:
        """Of the edit that the statement is of."""
        return self.hit.request_id

    @property
    def score(self) -> float:
        """Cosine of question and statement."""
        return self.hit.score

    @property
    def statement(self) -> str:
        """The statement."""
        return self.hit.statement

    @property
    def subject(self) -> str:
        """What it is about."""
        return self.hit.subject


class EvidenceFinder:
    """Candidates out of a memory. Not thread-safe: it belongs to the memory's owner."""

    def __init__(self, memory: FactMemory) -> None:
        self.memory = memory
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()

    def candidates(self, questions: Sequence[str], vectors: Vectors, k: int) -> list[list[Candidate]]:
        """Candidates of each question, most similar first.

        Args:
            questions: as they are asked.
            vectors: (n, dim) their embeddings, unit norm, float32.
            k: nearest statements that are candidates whether named or not.
        """
        nearest = self.memory.search_vectors(vectors, k) if questions else []
        rows: list[list[tuple[Hit, Mention | None]]] = []
        for question, vector, hits in zip(questions, vectors, nearest, strict=True):
            named = self.memory.named(question)
            by_id = {hit.id: hit for hit in hits}
            beside = [id for id in named if id not in by_id]
            extra = sorted(self.memory.hits(vector, beside), key=lambda hit: (-hit.score, -hit.id))[:_MOST_NAMED]
            by_id |= {hit.id: hit for hit in extra}
            row = [(hit, named.get(hit.id)) for hit in by_id.values()]
            rows.append(sorted(row, key=lambda pair: (-pair[0].score, -pair[0].id)))
        bare = [
            (without_subject(question, mention), _without(hit.statement, hit.subject))
            for question, row in zip(questions, rows, strict=True)
            for hit, mention in row
            if mention is not None
        ]
        self._embed(text for pair in bare for text in pair)
        found_rows = []
        for question, row in zip(questions, rows, strict=True):
            spoken = words_of(question)
            plain = frozenset(word.folded for word in spoken)
            out = []
            for hit, mention in row:
                if mention is None:
                    evidence = Evidence(False, False, shared_letters(hit.subject, plain), None, words=len(spoken))
                else:
                    begin, end = sentence_around(question, mention.start, mention.stop)
                    evidence = Evidence(
                        True,
                        mention.extended,
                        1.0,
                        self._cosine(without_subject(question, mention), _without(hit.statement, hit.subject)),
                        mention.lowered,
                        not question[end:].strip(),
                        sum(begin <= word.start < end for word in spoken),
                    )
                out.append(Candidate(hit, evidence))
            found_rows.append(out)
        self._forget()
        return found_rows

    def _embed(self, texts: Iterable[str]) -> None:
        unknown = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if unknown:
            self._vectors.update(zip(unknown, self.memory.embedder.embed(unknown), strict=True))

    def _cosine(self, one: str, other: str) -> float:
        for text in (one, other):
            self._vectors.move_to_end(text)
        return float(self._vectors[one].astype(np.float64) @ self._vectors[other].astype(np.float64))

    def _forget(self) -> None:
        while len(self._vectors) > _KEPT_VECTORS:
            self._vectors.popitem(last=False)


def without_subject(text: str, mention: Mention) -> str:
    """The sentence of a text in which a subject is mentioned, with a pronoun in its place."""
    begin, end = sentence_around(text, mention.start, mention.stop)
    return f"{text[begin : mention.start]}{_SUBJECT}{text[mention.stop : end]}".strip()


def _without(statement: str, subject: str) -> str:
    mention = mention_of(statement, subject)
    return statement if mention is None else without_subject(statement, mention)


def entries_of(facts: Sequence[tuple[str, str, str]], first_id: int) -> list[MemoryEntry]:
    """Memory entries of (subject, relation, statement), numbered from ``first_id``; for fitting and for trials."""
    return [
        MemoryEntry(
            id=first_id + number, request_id="", subject=subject, relation=relation,
            fact_key=f"{relation}\x00{subject}", statement=statement,
        )
        for number, (subject, relation, statement) in enumerate(facts)
    ]  # fmt: skip
