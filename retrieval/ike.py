"""In-context knowledge editing (IKE): worked examples of facts that hold although the model says otherwise, then the
fact, then the question.

Zheng et al. 2023, arXiv:2305.12740. Demonstrations come from records of a training split; of each record one that
repeats its statement (*copy*), one that asks in other words (*update*), and one about a neighbor whose answer stays
(*retain*). For a question those nearest to it are taken, the nearest last. No weight changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.request import EditRequest
from errata.editing.scripts import joined
from errata.retrieval.embedder import Embedder
from errata.retrieval.memory import Hit
from errata.retrieval.naming import SubjectIndex

Kind = Literal["copy", "update", "retain"]
KINDS: Final[tuple[Kind, ...]] = ("copy", "update", "retain")


class IkeConfig(Closed):
    """Demonstrations of the arms `ike` and `ike_oracle`, which ask the unedited weights."""

    demonstrations: str = Field(min_length=1)
    """Records of a training split, in a layout that streams may have; those that name an evaluated subject are never
    shown."""
    schema_: str = Field("auto", alias="schema")
    """Layout of the records."""
    records: int = Field(1000, ge=1)
    """At most this many of them."""
    k: int = Field(16, ge=1, le=256)
    """Demonstrations before a question; fewer where the model's context ends. EasyEdit has 16, the paper 32."""
    shares: tuple[int, int, int] | None = (1, 3, 4)
    """Of `k` those that copy, update and retain, in proportion (the paper's); null: the nearest of any kind."""

    @model_validator(mode="after")
    def _some_share(self) -> IkeConfig:
        if self.shares is not None and (min(self.shares) < 0 or not sum(self.shares)):
            raise ValueError(f"shares must be three numbers from 0 on, not all 0; got {list(self.shares)}")
        return self


@dataclass(frozen=True)
class Demonstration:
    """A worked example as it stands before a question."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class DemonstrationPool:
    """All demonstrations that a run may show, and how many of them."""

    demonstrations: tuple[Demonstration, ...]
    k: int
    shares: tuple[int, int, int] | None

    @classmethod
    def of(cls, requests: Iterable[EditRequest], config: IkeConfig) -> DemonstrationPool:
        """Those of a training split's records."""
        return cls(tuple(one for request in requests for one in demonstrations_of(request)), config.k, config.shares)

    @property
    def digest(self) -> str:
        """Names the texts."""
        return digest_json([[one.kind, one.text] for one in self.demonstrations])

    def quotas(self) -> dict[Kind, int]:
        """How many of each kind, by largest remainders of the shares; of equal ones the earlier kind."""
        assert self.shares is not None
        exact = [self.k * share / sum(self.shares) for share in self.shares]
        counts = [int(value) for value in exact]
        by_rest = sorted(range(len(KINDS)), key=lambda i: (counts[i] - exact[i], i))
        for i in by_rest[: self.k - sum(counts)]:
            counts[i] += 1
        return dict(zip(KINDS, counts, strict=True))


@dataclass(frozen=True)
class Asked:
    """A question of a fact's evaluation."""

    request_id: str
    fact_key: str
    question: str


@dataclass(frozen=True)
class Shown:
    """What stands before a question: demonstrations, the nearest last, and behind them the fact."""

    hit: Hit
    demonstrations: tuple[str, ...]


@dataclass(frozen=True)
class InContext:
    """What the two arms are shown. A question for which the memory holds no fact is absent: it is asked plainly."""

    retrieved: Mapping[str, Shown] = field(default_factory=dict)
    """By question: with the statement of the memory that is nearest to it, whatever its similarity."""
    oracle: Mapping[tuple[str, str], Shown] = field(default_factory=dict)
    """By request and question: with the memory's statement of the very fact that the question is about."""


def fact_line(statement: str) -> str:
    """The line that tells the fact."""
    return f"New Fact: {statement.strip()}\n"


def demonstrations_of(request: EditRequest) -> list[Demonstration]:
    """One that copies, one for each paraphrase, one for each neighbor whose answer is known."""
    told = fact_line(request.statement)
    asked: list[tuple[Kind, str, str]] = [("copy", request.text, request.target_new)]
    asked += [("update", prompt, request.target_new) for prompt in request.paraphrases]
    asked += [("retain", item.prompt, item.answer) for item in request.neighborhood]
    return [
        Demonstration(kind, f"{told}Prompt: {joined(prompt, answer)}\n\n") for kind, prompt, answer in asked if answer
    ]


class NearestDemonstrations:
    """A pool behind an embedder."""

    def __init__(self, pool: DemonstrationPool, embedder: Embedder) -> None:
        self.pool, self._embedder = pool, embedder
        self._vectors = embedder.embed([one.text.strip() for one in pool.demonstrations]).astype(np.float64)
        self._of_kind = {
            kind: np.array([one.kind == kind for one in pool.demonstrations], dtype=bool) for kind in KINDS
        }

    def nearest(self, asked: Sequence[tuple[str, str]], without: Collection[str]) -> list[tuple[str, ...]]:
        """Per (statement, question) the nearest demonstrations, the nearest last; equal ones in the pool's order.

        Args:
            without: subjects that no demonstration may name.
        """
        texts = self.pool.demonstrations
        allowed = self._allowed(without)
        if not asked or not allowed.any():
            return [()] * len(asked)
        queries = self._embedder.embed([f"{fact_line(fact)}Prompt: {question}" for fact, question in asked])
        scores = queries.astype(np.float64) @ self._vectors.T
        return [tuple(texts[i].text for i in self._chosen(row, allowed)) for row in scores]

    def _allowed(self, without: Collection[str]) -> NDArray[np.bool_]:
        subjects = SubjectIndex()
        for number, subject in enumerate(dict.fromkeys(without)):
            subjects.add(number, subject)
        return np.array([not subjects.named(one.text) for one in self.pool.demonstrations], dtype=bool)

    def _chosen(self, scores: NDArray[np.float64], allowed: NDArray[np.bool_]) -> list[int]:
        order = np.argsort(-scores, kind="stable")
        if self.pool.shares is None:
            best = [int(i) for i in order if allowed[i]][: self.pool.k]
        else:
            best = []
            for kind, count in self.pool.quotas().items():
                best += [int(i) for i in order if allowed[i] and self._of_kind[kind][i]][:count]
            place = {int(i): n for n, i in enumerate(order)}
            best.sort(key=place.__getitem__)
        return best[::-1]
