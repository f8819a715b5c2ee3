"""A memory that was saved is there again after a restart: nothing is embedded, and only what changed is added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errata.actors.workers import retrieval
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from tests.helpers.memory import HeldMemory


class CountingEmbedder(HashEmbedder):
    """Counts the texts that it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.texts += texts
        return super().embed(texts)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CountingEmbedder]:
    found: list[CountingEmbedder] = []

    def build(_: Any) -> CountingEmbedder:
        found.append(CountingEmbedder())
        return found[-1]

    monkeypatch.setattr(retrieval, "build_embedder", build)
    return found


def entry(number: int, fact: int | None = None) -> MemoryEntry:
    fact = number if fact is None else fact
    return MemoryEntry(
        id=number,
        request_id=f"r{number}",
        subject=f"Alice {fact}",
        fact_key=f"f{fact}",
        statement=f"{fact} is {number}.",
    )


def worker(directory: Path) -> HeldMemory:
    return HeldMemory(None, IndexConfig(), directory)


def test_a_saved_memory_is_found_again_and_what_came_since_is_embedded_once(
    tmp_path: Path, made: list[CountingEmbedder]
) -> None:
    first = worker(tmp_path)
    assert first.mark() is None
    first.add([entry(number) for number in range(1, 41)])
    first.save((7, "seven"))
    first.add([entry(50, fact=3), entry(51)])
    first.remove([5])
    again = worker(tmp_path)
    assert again.mark() == (7, "seven")
    again.add([entry(50, fact=3), entry(51)])
    again.remove([5])
    assert again.digest() == first.digest()
    assert made[1].texts == [], "what was not saved is in the file of vectors"
    for question in ("3 is", "17 is", "51 is"):
        assert again.search([question], 3) == first.search([question], 3)
    again.save((9, "nine"))
    third = worker(tmp_path)
    assert (third.mark(), third.digest()) == ((9, "nine"), first.digest())


def test_sync_leaves_what_is_wanted_and_embeds_only_what_is_new(tmp_path: Path, made: list[CountingEmbedder]) -> None:
    one = worker(tmp_path)
    one.add([entry(number) for number in range(1, 11)])
    embedded = len(made[0].texts)
    wanted = [entry(number) for number in range(6, 13)]
    assert one.sync(wanted) == 7
    assert len(made[0].texts) == embedded + 2
    other = worker(tmp_path / "other")
    other.add(wanted)
    assert one.digest() == other.digest()
    assert one.search(["8 is"], 2) == other.search(["8 is"], 2)


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_state_is_passed_over(
    tmp_path: Path, made: list[CountingEmbedder], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = worker(tmp_path)
    first.add([entry(number) for number in range(1, 11)])
    first.save((3, "three"))
    (vectors,) = (tmp_path / "state" / "parts").glob("*vectors*")
    data = vectors.read_bytes()
    if damage == "gone":
        vectors.unlink()
    else:
        vectors.write_bytes(data[:-5] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    again = worker(tmp_path)
    assert again.mark() is None
    assert "passed over" in caplog.text
    again.sync([entry(number) for number in range(1, 11)])
    assert again.digest() == first.digest()


def test_vectors_stay_in_the_file(tmp_path: Path, made: list[CountingEmbedder]) -> None:
    first = worker(tmp_path)
    first.add([entry(number) for number in range(1, 11)])
    first.save((3, "three"))
    again = worker(tmp_path)
    assert isinstance(again.memory._rows._mapped, np.memmap)
    again.add([entry(11)])
    again.remove([2])
    assert isinstance(again.memory._rows._mapped, np.memmap)
