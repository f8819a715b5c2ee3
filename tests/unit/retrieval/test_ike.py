"""Demonstrations of in-context editing: which are chosen, in what order, and which never."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from errata.editing.request import EditRequest
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.ike import (
    KINDS,
    Demonstration,
    DemonstrationPool,
    IkeConfig,
    NearestDemonstrations,
    demonstrations_of,
    fact_line,
)

CITIES = ("Rome", "Lyon", "Oslo", "Graz", "Kyiv", "Bern", "Pisa", "Brno")


def record(name: str, city: str, **more: Any) -> EditRequest:
    return EditRequest(
        id=f"t-{name}",
        subject=name,
        prompt="{} was born in",
        target_new=city,
        paraphrases=(f"The birthplace of {name} is", f"Where {name} was born:"),
        neighborhood=({"prompt": f"The cousin of {name[::-1]} lives in", "answer": "Paris"},),  # type: ignore[arg-type]
        **more,
    )


RECORDS = [record(f"Person {name} Smith", city) for name, city in zip("ABCDEFGH", CITIES, strict=True)]


def pool(k: int = 8, shares: Any = (1, 3, 4)) -> DemonstrationPool:
    return DemonstrationPool.of(RECORDS, IkeConfig(demonstrations="x", k=k, shares=shares))


def test_the_published_texts() -> None:
    (copy, update, _, retain) = demonstrations_of(RECORDS[0])
    fact = "New Fact: Person A Smith was born in Rome.\n"
    assert copy == Demonstration("copy", fact + "Prompt: Person A Smith was born in Rome\n\n")
    assert update == Demonstration("update", fact + "Prompt: The birthplace of Person A Smith is Rome\n\n")
    assert retain.kind == "retain" and retain.text.endswith("lives in Paris\n\n") and retain.text.startswith(fact)
    chinese = EditRequest(id="c", subject="法国", prompt="{}的首都是", target_new="里昂")
    assert demonstrations_of(chinese)[0].text == "New Fact: 法国的首都是里昂。\nPrompt: 法国的首都是里昂\n\n"


@pytest.mark.parametrize(
    ("k", "shares", "want"),
    [
        (32, (1, 3, 4), (4, 12, 16)),
        (16, (1, 3, 4), (2, 6, 8)),
        (3, (1, 1, 1), (1, 1, 1)),
        (4, (1, 1, 1), (2, 1, 1)),
        (1, (1, 3, 4), (0, 0, 1)),
        (5, (0, 0, 1), (0, 0, 5)),
    ],
)
def test_quotas_by_largest_remainder(k: int, shares: Any, want: tuple[int, ...]) -> None:
    assert tuple(pool(k, shares).quotas()[kind] for kind in KINDS) == want


@given(k=st.integers(1, 64), shares=st.tuples(*[st.integers(0, 9)] * 3).filter(any))
def test_quotas_always_sum_to_k(k: int, shares: Any) -> None:
    assert sum(pool(k, shares).quotas().values()) == k


@pytest.mark.parametrize("shares", [None, (1, 3, 4), (2, 1, 0)])
def test_the_nearest_of_each_kind_in_ascending_similarity(shares: Any) -> None:
    embedder, given_pool = HashEmbedder(dim=64), pool(8, shares)
    asked = [(RECORDS[2].statement, "The birthplace of Person C Smith is"), ("Person Q Jones was born in Ulm.", "Ulm")]
    got = NearestDemonstrations(given_pool, embedder).nearest(asked, ["Nobody"])
    texts = [one.text for one in given_pool.demonstrations]
    for (fact, question), chosen in zip(asked, got, strict=True):
        query = embedder.embed([fact_line(fact) + "Prompt: " + question])[0].astype(np.float64)
        similar = {t: float(embedder.embed([t.strip()])[0].astype(np.float64) @ query) for t in texts}
        scores = [similar[text] for text in chosen]
        assert scores == sorted(scores) and len(set(chosen)) == len(chosen) == 8
        for kind, count in given_pool.quotas().items() if shares else [(None, 8)]:
            own = [one.text for one in given_pool.demonstrations if kind is None or one.kind == kind]
            best = sorted(own, key=lambda text: -similar[text])[:count]
            assert [text for text in chosen if text in own] == best[::-1]


@given(st.sets(st.sampled_from([one.subject for one in RECORDS])))
def test_no_demonstration_names_an_evaluated_subject(subjects: set[str]) -> None:
    (chosen,) = NearestDemonstrations(pool(16), HashEmbedder(dim=32)).nearest([("A fact.", "A question")], subjects)
    assert not [text for text in chosen for subject in subjects if subject in text]
    assert bool(chosen) == (len(subjects) < len(RECORDS))


def test_a_subject_in_other_case_or_possessive_is_named_too() -> None:
    near = NearestDemonstrations(pool(16), HashEmbedder(dim=32))
    (chosen,) = near.nearest([("A fact.", "A question")], ["person a smith", "Person B Smith’s"])
    assert chosen and not [text for text in chosen if "Person A" in text or "Person B" in text]


def test_settings() -> None:
    for shares in ((0, 0, 0), (-1, 1, 1)):
        with pytest.raises(ValidationError, match="shares must be three numbers"):
            IkeConfig(demonstrations="x", shares=shares)
    assert pool().digest == pool().digest != DemonstrationPool.of(RECORDS[1:], IkeConfig(demonstrations="x")).digest
