from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from errata.editing.errors import DamagedFileError, UserError
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, MemoryEntry

DIM = 32


class NeverEmbeds(HashEmbedder):
    """Loading must not embed: only queries may."""

    def embed(self, texts):
        assert all(text.startswith("query") for text in texts)
        return super().embed(texts)


def filled(count: int = 12, limit: int = 10_000) -> FactMemory:
    memory = FactMemory(HashEmbedder(dim=DIM), IndexConfig(exact_limit=limit))
    # U+2028 is white space to some line readers, and JSON does not escape it
    memory.add(
        MemoryEntry(
            id=i,
            request_id=f"r{i}",
            subject="s",
            fact_key=f"f{i % 8 if count < 20 else i}",
            statement=f"Fact\u2028{i}.",
        )
        for i in range(count)
    )
    return memory


def part(directory: Path, name: str) -> Path:
    (path,) = (directory / "parts").glob(f"*{name}")
    return path


@pytest.mark.parametrize("count, limit", [(12, 10_000), (400, 100)])
def test_a_loaded_memory_answers_alike_and_embeds_nothing(tmp_path, caplog, count, limit):
    memory = filled(count, limit)
    memory.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = FactMemory.load(tmp_path, NeverEmbeds(dim=DIM), IndexConfig(exact_limit=limit))
    assert not caplog.records
    assert loaded.digest == memory.digest and loaded.entries() == memory.entries() and loaded.exact == (count < limit)
    assert loaded.search(["query Fact 3"], 5) == memory.search(["query Fact 3"], 5)
    ids = [e.id for e in memory.entries()]
    np.testing.assert_array_equal(loaded.vectors(ids), memory.vectors(ids))
    # and it is alive: changes work on it as on the first
    for one in (memory, loaded):
        one.remove([count - 1])
    assert loaded.digest == memory.digest
    assert loaded.search(["query Fact 3"], 5) == memory.search(["query Fact 3"], 5)


def test_an_empty_memory_can_be_kept(tmp_path):
    filled(0).save(tmp_path)
    assert len(FactMemory.load(tmp_path, HashEmbedder(dim=DIM))) == 0


@pytest.mark.parametrize("harm", ["truncate", "foreign", "delete", "junk"])
def test_a_bad_index_file_is_built_again_with_a_warning(tmp_path, caplog, harm):
    memory = filled()
    memory.save(tmp_path / "a")
    index = part(tmp_path / "a", "flat.faiss")
    if harm == "truncate":
        index.write_bytes(index.read_bytes()[:-40])
    elif harm == "foreign":
        filled(5).save(tmp_path / "b")
        index.write_bytes(part(tmp_path / "b", "flat.faiss").read_bytes())
    elif harm == "junk":
        index.write_bytes(b"not an index")
    else:
        index.unlink()
    with caplog.at_level(logging.WARNING):
        loaded = FactMemory.load(tmp_path / "a", NeverEmbeds(dim=DIM))
    assert "built again from 8 stored vectors" in caplog.text
    assert loaded.search(["query Fact 3"], 5) == memory.search(["query Fact 3"], 5)


def test_an_index_whose_digest_fits_but_whose_ids_do_not_is_built_again(tmp_path, caplog):
    """The manifest vouches for bytes, not for sense: the ids are compared too."""
    memory, other = filled(), filled(5)
    memory._index, other._index = other._index, memory._index
    memory.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = FactMemory.load(tmp_path, HashEmbedder(dim=DIM))
    assert "other ids" in caplog.text
    assert [h.id for h in loaded.search(["query"], 20)[0]] != [] and len(loaded) == 8


def test_a_memory_saved_exact_is_loaded_into_lists_when_the_limit_has_moved(tmp_path, caplog):
    filled(400).save(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = FactMemory.load(tmp_path, HashEmbedder(dim=DIM), IndexConfig(exact_limit=100))
    assert "size class" in caplog.text and not loaded.exact


@pytest.mark.parametrize("name", ["vectors.safetensors", "entries.jsonl"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_damaged_vectors_or_entries_are_refused(tmp_path, name, harm):
    filled().save(tmp_path)
    path = part(tmp_path, name)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[:-5])
    else:
        path.unlink()
    with pytest.raises(DamagedFileError, match=name):
        FactMemory.load(tmp_path, HashEmbedder(dim=DIM))


def test_no_memory_a_damaged_manifest_and_another_embedder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no memory in"):
        FactMemory.load(tmp_path, HashEmbedder(dim=DIM))
    filled().save(tmp_path)
    with pytest.raises(UserError, match=r"embedded with 'hash-32-4' .* says 'hash-16-4'"):
        FactMemory.load(tmp_path, HashEmbedder(dim=16))
    (tmp_path / "memory.json").write_text('{"format": 1')
    with pytest.raises(DamagedFileError, match=r"memory\.json is damaged"):
        FactMemory.load(tmp_path, HashEmbedder(dim=DIM))


def test_saving_again_replaces_and_leaves_no_old_files(tmp_path):
    memory = filled()
    memory.save(tmp_path)
    memory.remove([11])
    memory.save(tmp_path)
    assert FactMemory.load(tmp_path, HashEmbedder(dim=DIM)).digest == memory.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory.json", "parts"]
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_a_crash_while_saving_leaves_the_former_state(tmp_path, monkeypatch):
    memory = filled()
    memory.save(tmp_path)
    before = memory.digest
    memory.remove([11])
    monkeypatch.setattr("errata.retrieval.store.Manifest.model_dump_json", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.save(tmp_path)
    monkeypatch.undo()
    assert FactMemory.load(tmp_path, HashEmbedder(dim=DIM)).digest == before
