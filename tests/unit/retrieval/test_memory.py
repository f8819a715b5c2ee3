from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.retrieval.embedder import HashEmbedder, unit_rows
from errata.retrieval.index import SCAN_ERROR, IndexConfig, VectorIndex
from errata.retrieval.memory import FactMemory, MemoryEntry

DIM = 64


def entry(id: int, fact: str = "", statement: str = "") -> MemoryEntry:
    fact = fact or f"fact {id}"
    return MemoryEntry(
        id=id,
        request_id=f"r{id}",
        subject=fact,
        fact_key=fact,
        statement=statement or f"Statement number {id} is about {fact}.",
    )


def brute_force(kept: dict[int, MemoryEntry], query: str, k: int) -> list[int]:
    """The newest entry of each fact, ranked by the cosine with the query, in float64."""
    newest = {e.fact_key: e for e in sorted(kept.values(), key=lambda e: e.id)}
    embedder = HashEmbedder(dim=DIM)
    wanted = embedder.embed([query])[0].astype(np.float64)
    scored = [(float(embedder.embed([e.statement])[0].astype(np.float64) @ wanted), e.id) for e in newest.values()]
    return [id for _, id in sorted(scored, key=lambda pair: (-pair[0], -pair[1]))[:k]]


def memory(**config: object) -> FactMemory:
    return FactMemory(HashEmbedder(dim=DIM), IndexConfig.model_validate(config))


def test_search_equals_brute_force_alone_and_in_a_batch():
    kept = {i: entry(i, f"fact {i % 80}") for i in range(200)}
    subject = memory()
    subject.add(kept.values())
    queries = [f"fact {i}" for i in range(0, 80, 3)]
    for query, hits in zip(queries, subject.search(queries, k=7), strict=True):
        assert [h.id for h in hits] == brute_force(kept, query, 7)
        assert subject.search([query], k=7)[0] == hits
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_many_equal_and_nearly_equal_statements_are_ranked_exactly():
    """More ties at the border than the first look takes: the newest win, also against the scan's rounding."""
    subject = memory()
    rng = np.random.default_rng(0)
    base = rng.standard_normal(DIM)
    vectors = np.stack([base + (0 if i % 3 else 1e-4) * rng.standard_normal(DIM) for i in range(150)])
    subject.add([entry(i) for i in range(150)], vectors.astype(np.float32))
    query = (base / np.linalg.norm(base)).astype(np.float32)[None]
    kept = subject.vectors(range(150)).astype(np.float64) @ query[0].astype(np.float64)
    want = sorted(range(150), key=lambda i: (-kept[i], -i))[:20]
    assert [h.id for h in subject.search_vectors(query, 20)[0]] == want


@pytest.mark.parametrize("dim", [8, 384, 1024])
def test_the_scans_error_bound_holds(dim):
    rng = np.random.default_rng(1)
    vectors = unit_rows(rng.standard_normal((500, dim)) ** 3)
    index = VectorIndex(dim)
    index.build(np.arange(500), vectors)
    scores, ids = index.search(vectors[:50], 500)
    exact = np.take_along_axis(vectors[:50].astype(np.float64) @ vectors.T.astype(np.float64), ids, 1)
    assert np.abs(scores - exact).max() < SCAN_ERROR


def test_a_hit_carries_its_entry():
    subject = memory()
    request = EditRequest(subject="Ada", prompt="{} was born in", target_new="Rome", relation="birthplace")
    subject.add([MemoryEntry.of(request, 7)])
    (hit,) = subject.search(["Where was Ada born?"])[0]
    assert (hit.id, hit.subject, hit.relation, hit.statement) == (7, "Ada", "birthplace", "Ada was born in Rome.")
    assert (hit.request_id, hit.fact_key) == (request.id, request.fact_key)


def test_a_newer_entry_supersedes_and_its_removal_rolls_back():
    subject = memory()
    assert subject.add([entry(1, "x"), entry(2, "y")]) == []
    before = subject.digest
    assert subject.add([entry(3, "x")]) == [1]
    assert [h.id for h in subject.search(["x"], k=5)[0]].count(1) == 0
    assert [e.id for e in subject.history("x")] == [1, 3] and len(subject) == 2 and subject.stored == 3
    assert subject.digest != before
    assert subject.remove([3]) == [1]
    assert subject.digest == before and subject.is_active(1)


def test_removing_a_superseded_entry_changes_no_answer():
    subject = memory()
    subject.add([entry(1, "x"), entry(3, "x")])
    before = subject.digest
    assert subject.remove([1]) == []
    assert subject.digest == before


def test_the_order_of_additions_does_not_matter():
    a, b = memory(), memory()
    entries = [entry(i, f"fact {i % 5}") for i in range(15)]
    a.add(entries)
    for item in reversed(entries):
        b.add([item])
    assert a.digest == b.digest
    assert a.search(["fact 3"], 5) == b.search(["fact 3"], 5)


def test_adding_again_changes_nothing_and_another_content_is_refused_whole():
    subject = memory()
    subject.add([entry(1)])
    before = subject.digest
    assert subject.add([entry(1)]) == [] and subject.digest == before
    with pytest.raises(UserError, match="memory id 1 holds"):
        subject.add([entry(2), entry(1, "another")])
    assert subject.digest == before and subject.get(2) is None


def test_removing_what_is_not_there_is_refused_whole_unless_allowed():
    subject = memory()
    subject.add([entry(1)])
    with pytest.raises(UserError, match=r"no entry with id 9 \(1 of 2"):
        subject.remove([1, 9])
    assert subject.is_active(1)
    assert subject.remove([1, 9], missing_ok=True) == [] and len(subject) == 0
    assert subject.search(["anything"]) == [[]]


def test_bad_searches_name_what_is_wrong():
    subject = memory()
    with pytest.raises(UserError, match="k >= 1, got 0"):
        subject.search(["x"], k=0)
    with pytest.raises(UserError, match=r"\(n, 64\), got \(1, 3\)"):
        subject.search_vectors(np.zeros((1, 3), np.float32))
    with pytest.raises(UserError, match=r"shape \(1, 64\), got \(2, 64\)"):
        subject.add([entry(1)], np.zeros((2, DIM), np.float32))


def test_rebuild_embeds_nothing():
    class Counting(HashEmbedder):
        texts = 0

        def embed(self, texts):
            self.texts += len(texts)
            return super().embed(texts)

    embedder = Counting(dim=DIM)
    subject = FactMemory(embedder)
    subject.add([entry(i, f"fact {i % 3}") for i in range(9)])
    before, digest, entries = embedder.texts, subject.digest, subject.entries()
    vectors = subject.vectors([e.id for e in entries])
    subject.add([entry(100)])
    subject.rebuild(entries, vectors)
    assert subject.digest == digest and embedder.texts == before + 1


def test_large_memories_use_lists_with_a_flat_tail_and_find_nearly_all():
    subject = memory(exact_limit=400, nprobe=8)
    subject.add([entry(i) for i in range(400)])
    assert subject.exact
    subject.add([entry(i) for i in range(400, 900)])
    assert not subject.exact
    subject.add([entry(i) for i in range(900, 920)])  # stays in the tail: searched exactly
    kept = {i: entry(i) for i in range(920)}
    queries = [kept[i].statement for i in (0, 399, 400, 899, 905, 919)]
    assert [hits[0].id for hits in subject.search(queries, 1)] == [0, 399, 400, 899, 905, 919]
    found = [[h.id for h in hits] for hits in subject.search(queries, 5)]
    wanted = [brute_force(kept, q, 5) for q in queries]
    shared = sum(len(set(f) & set(w)) for f, w in zip(found, wanted, strict=True))
    assert shared >= 0.8 * 30
    subject.remove(range(10, 920))
    assert subject.exact and [h.id for h in subject.search([queries[0]], 20)[0]] == brute_force(
        {i: kept[i] for i in range(10)}, queries[0], 20
    )


@pytest.mark.parametrize("limit", [10_000, 100])
def test_index_keeps_no_duplicate_and_drops_from_lists_and_tail(limit):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((230, 8)).astype(np.float32)
    index = VectorIndex(8, IndexConfig(exact_limit=limit, nprobe=100))
    index.build(np.arange(200), vectors[:200])
    index.add(np.arange(200, 210), vectors[200:210])
    assert index.remove(np.array([3, 205, 777])) == 2 and len(index) == 208
    kept = np.setdiff1d(np.arange(210), [3, 205])
    scores, ids = index.search(vectors[220:225], 6)
    for query, row, score in zip(vectors[220:225], ids, scores, strict=True):
        want = kept[np.argsort(-(vectors[kept] @ query))[:6]]
        assert row.tolist() == want.tolist()
        np.testing.assert_allclose(score, vectors[want] @ query, atol=SCAN_ERROR * 8)  # norms of about 8


class MemoryAgainstDict(RuleBasedStateMachine):
    """Any sequence of changes leaves the memory equal to a dictionary of what was added and not removed."""

    @initialize(limit=st.sampled_from([5, 10_000]))
    def start(self, limit: int) -> None:
        # every list is visited, so that the search is exact in both forms and can be compared
        self.memory = memory(exact_limit=limit, nprobe=64)
        self.kept: dict[int, MemoryEntry] = {}

    @rule(ids=st.lists(st.integers(0, 60), min_size=1, max_size=12), facts=st.integers(1, 9))
    def add(self, ids: list[int], facts: int) -> None:
        new = [self.kept.get(i, entry(i, f"fact {i % facts}")) for i in ids]
        self.memory.add(new)
        self.kept.update({e.id: e for e in new})

    @rule(ids=st.sets(st.integers(0, 60), max_size=12))
    def remove(self, ids: set[int]) -> None:
        self.memory.remove(ids, missing_ok=True)
        self.kept = {i: e for i, e in self.kept.items() if i not in ids}

    @rule()
    def rebuild(self) -> None:
        entries = self.memory.entries()
        self.memory.rebuild(entries, self.memory.vectors([e.id for e in entries]))

    @invariant()
    def equals_the_dictionary(self) -> None:
        if not hasattr(self, "memory"):
            return
        assert self.memory.entries() == [self.kept[i] for i in sorted(self.kept)]
        newest = {e.fact_key: e.id for e in sorted(self.kept.values(), key=lambda e: e.id)}
        assert [e.id for e in self.memory.active()] == sorted(newest.values())
        (hits,) = self.memory.search(["Statement number 7 is about fact 3"], 4)
        assert [h.id for h in hits] == brute_force(self.kept, "Statement number 7 is about fact 3", 4)


TestMemoryAgainstDict = MemoryAgainstDict.TestCase
TestMemoryAgainstDict.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), unique_by=lambda p: p[0], min_size=1))
def test_adding_then_removing_restores_every_answer(pairs):
    subject = memory()
    subject.add([entry(100 + i, f"fact {i}") for i in range(4)])
    before, digest = subject.search(["fact 2"], 4), subject.digest
    subject.add([entry(200 + id, f"fact {fact}") for id, fact in pairs])
    subject.remove([200 + id for id, _ in pairs])
    assert subject.digest == digest and subject.search(["fact 2"], 4) == before


class Given(HashEmbedder):
    """Vectors of any length, as an encoder whose pooling is not scaled gives them."""

    unit = False

    def embed(self, texts):
        rng = [np.random.default_rng(abs(int.from_bytes(text.encode()[-7:], "big"))) for text in texts]
        rows = [one.standard_normal(DIM) * 10 ** one.uniform(-1, 2) for one in rng]
        return np.asarray(rows, dtype=np.float32).reshape(len(texts), DIM)


@pytest.mark.parametrize("limit", [10_000, 120])
def test_vectors_of_any_length_are_ranked_by_their_dot_product(limit):
    """Oracle: all products in float64; a long statement wins over a nearer short one, which a cosine would not say."""
    embedder = Given(dim=DIM)
    subject = FactMemory(embedder, IndexConfig(exact_limit=limit, nprobe=10_000))
    kept = [entry(i) for i in range(300)]
    subject.add(kept[:100])
    subject.learn(kept[100:])
    vectors = embedder.embed([e.statement for e in kept]).astype(np.float64)
    assert np.array_equal(subject.vectors(range(300)), vectors.astype(np.float32))
    queries = [f"query {i}" for i in range(20)]
    wanted = embedder.embed(queries).astype(np.float64) @ vectors.T
    turned = 0
    for row, query, hits in zip(wanted, queries, subject.search(queries, k=5), strict=True):
        order = sorted(range(300), key=lambda i: (-row[i], -i))[:5]
        assert [h.id for h in hits] == order
        np.testing.assert_allclose([h.score for h in hits], row[order], rtol=1e-12)
        turned += order[0] != int(np.argmax(row / np.linalg.norm(vectors, axis=1)))
        assert subject.search([query], k=5)[0] == hits
    assert turned > 5


def test_a_saved_memory_of_such_vectors_ranks_as_before(tmp_path):
    embedder = Given(dim=DIM)
    subject = FactMemory(embedder)
    subject.add([entry(i) for i in range(60)])
    subject.save(tmp_path)
    loaded = FactMemory.load(tmp_path, embedder)
    queries = [f"query {i}" for i in range(10)]
    assert loaded.search(queries, 7) == subject.search(queries, 7)
    fresh = FactMemory(embedder)
    fresh.rebuild(subject.entries(), subject.vectors([e.id for e in subject.entries()]))
    assert fresh.search(queries, 7) == subject.search(queries, 7)
