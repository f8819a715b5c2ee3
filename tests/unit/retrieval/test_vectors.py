"""Vectors of statements that outlive the process: nothing is embedded twice, nothing damaged is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from errata.retrieval.embedder import HashEmbedder, HashEmbedderConfig, Vectors
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.vectors import KeptVectors
from tests.helpers.memory import HeldMemory

TEXTS = [f"Statement number {number} about city {number % 7}." for number in range(40)]


class Counting(HashEmbedder):
    """Remembers what it was asked for."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(dim=dim)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return super().embed(texts)


def file_of(directory: Path) -> Path:
    (found,) = directory.glob("*.vectors")
    return found


def test_what_was_embedded_once_is_read_from_then_on(tmp_path: Path):
    plain = HashEmbedder(dim=16).embed(TEXTS)
    first = Counting()
    kept = KeptVectors(first, tmp_path / "new")
    assert np.array_equal(kept.embed(TEXTS[:10]), plain[:10])
    assert np.array_equal(kept.embed([TEXTS[12], TEXTS[11], TEXTS[12]]), plain[[12, 11, 12]])
    assert first.asked == [*TEXTS[:10], TEXTS[12], TEXTS[11]]
    again = Counting()
    kept = KeptVectors(again, tmp_path / "new")
    assert len(kept) == 12
    assert kept.embed(TEXTS).tobytes() == plain.tobytes()
    assert again.asked == [TEXTS[10], *TEXTS[13:]] and len(kept) == 0
    last = Counting()
    assert KeptVectors(last, tmp_path / "new").embed(TEXTS).tobytes() == plain.tobytes() and last.asked == []
    assert kept.embed([]).shape == (0, 16)


@pytest.mark.parametrize("cut_off", [1, 37, 68, 100, 101, 150])
def test_a_torn_end_costs_only_what_was_torn(tmp_path: Path, cut_off: int):
    KeptVectors(Counting(), tmp_path).embed(TEXTS[:10])
    path = file_of(tmp_path)
    record = 32 + 4 * 16 + 4
    path.write_bytes(path.read_bytes()[:-cut_off])
    lost = -(-cut_off // record)
    again = Counting()
    kept = KeptVectors(again, tmp_path)
    assert np.array_equal(kept.embed(TEXTS[:20]), HashEmbedder(dim=16).embed(TEXTS[:20]))
    assert again.asked == TEXTS[10 - lost : 20]
    last = Counting()
    KeptVectors(last, tmp_path).embed(TEXTS[:20])
    assert last.asked == [], "records after a torn one begin where they should"


def test_a_changed_byte_costs_one_vector_and_is_never_used(tmp_path: Path):
    KeptVectors(Counting(), tmp_path).embed(TEXTS[:10])
    path = file_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[-50 - 3 * 100] ^= 1
    path.write_bytes(data)
    again = Counting()
    assert np.array_equal(KeptVectors(again, tmp_path).embed(TEXTS[:10]), HashEmbedder(dim=16).embed(TEXTS[:10]))
    assert again.asked == [TEXTS[6]]


def test_another_embedder_has_a_file_of_its_own_and_a_foreign_file_is_written_anew(tmp_path: Path, caplog):
    KeptVectors(Counting(), tmp_path).embed(TEXTS[:5])
    wider = Counting(dim=32)
    KeptVectors(wider, tmp_path).embed(TEXTS[:5])
    assert len(list(tmp_path.glob("*.vectors"))) == 2 and wider.asked == TEXTS[:5]
    for path in tmp_path.glob("*.vectors"):
        path.write_bytes(b"something else\n" + bytes(500))
    again = Counting()
    assert KeptVectors(again, tmp_path).embed(TEXTS[:5]).shape == (5, 16) and again.asked == TEXTS[:5]
    assert "written anew" in caplog.text
    last = Counting()
    KeptVectors(last, tmp_path).embed(TEXTS[:5])
    assert last.asked == []


def test_where_nothing_can_be_kept_everything_is_embedded(tmp_path: Path, caplog):
    (tmp_path / "taken").write_text("a file")
    counting = Counting()
    kept = KeptVectors(counting, tmp_path / "taken" / "memory")
    assert np.array_equal(kept.embed(TEXTS[:3]), HashEmbedder(dim=16).embed(TEXTS[:3]))
    assert "are not kept" in caplog.text and counting.asked == TEXTS[:3]


def test_a_memory_that_is_filled_again_embeds_nothing(tmp_path: Path, monkeypatch):
    entries = [
        MemoryEntry(id=n + 1, request_id=f"r{n}", subject=f"S{n}", fact_key=f"k{n % 30}", statement=text)
        for n, text in enumerate(TEXTS)
    ]
    first = HeldMemory(HashEmbedderConfig(dim=16), IndexConfig(), tmp_path)
    first.add(entries[:20])
    first.add(entries)
    wanted = first.search(TEXTS, 3)
    asked: list[str] = []
    embed = HashEmbedder.embed
    monkeypatch.setattr(HashEmbedder, "embed", lambda self, texts: asked.extend(texts) or embed(self, texts))
    again = HeldMemory(HashEmbedderConfig(dim=16), IndexConfig(), tmp_path)
    assert again.add(entries) == 30 and asked == []
    assert again.digest() == first.digest() and again.search(TEXTS, 3) == wanted
