"""Receipts and covariances to files and back; what is damaged is not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.errors import DamagedFileError
from errata.editing.request import EditRequest
from errata.editing.session import EditReceipt, RequestResult
from errata.orchestrator.history.receipts import (
    commit_data,
    held_entries,
    history,
    load_covariance,
    load_receipt,
    memory_entries,
    open_store,
    receipt_digest,
    store_receipt,
)
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import CovarianceRow, JournalMeta, Version
from errata.retrieval.statements import StatementConfig


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store(tmp_path)


def receipt(
    sequence: int = 1, *, applied: tuple[str, ...] = ("a", "b"), covariance: str | None = "c" * 64
) -> EditReceipt:
    """Two applied requests and a refused one, in two layers."""
    generator = torch.Generator().manual_seed(sequence)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = {layer: LayerDelta("low_rank", random(8, 2), random(2, 6)) for layer in (1, 2)}
    return EditReceipt(
        sequence=sequence,
        delta=WeightDelta(layers, "memit"),
        results=(
            *(RequestResult(name, True, None, 0.25, 7, True, False) for name in applied),
            RequestResult(f"refused-{sequence}", False, "no token"),
        ),
        request_ids=applied,
        fact_keys=tuple(f"fact of {name}" for name in applied),
        superseded=("older",),
        keys={layer: random(6, len(applied)) for layer in (1, 2)},
        targets=random(len(applied), 8),
        covariance_digest="c" * 64,
        seconds=1.5,
    )


def version(made: EditReceipt, delta: str | None, keys: str | None) -> Version:
    return Version(made.sequence, "d" * 64, None, 2, delta=delta, keys=keys, seconds=made.seconds)


def test_a_receipt_comes_back_as_it_was(store):
    made = receipt()
    delta, keys = store_receipt(store, made)
    found = load_receipt(store, version(made, delta, keys))
    assert found.delta is not None and made.delta is not None and found.delta.digest == made.delta.digest == delta
    for layer in (1, 2):
        assert torch.equal(found.keys[layer], made.keys[layer])
        assert torch.equal(found.delta.layers[layer].left, made.delta.layers[layer].left)
    assert torch.equal(found.targets, made.targets)
    same = ("sequence", "request_ids", "fact_keys", "superseded", "covariance_digest", "seconds")
    assert [getattr(found, name) for name in same] == [getattr(made, name) for name in same]


def test_storing_twice_gives_the_same_digests_and_other_content_others(store):
    assert store_receipt(store, receipt()) == store_receipt(store, receipt())
    _, keys = store_receipt(store, receipt())
    for other in (
        replace(receipt(), superseded=()),
        replace(receipt(), sequence=2),
        replace(receipt(), covariance_digest=None),
        replace(receipt(), fact_keys=("x", "y")),
        replace(receipt(), targets=receipt().targets + 1e-6),
    ):
        assert store_receipt(store, other)[1] != keys


def test_a_batch_that_applied_nothing_has_no_delta_and_comes_back(store):
    made = EditReceipt(4, None, (RequestResult("x", False, "no"),), (), (), (), covariance_digest="c" * 64)
    delta, keys = store_receipt(store, made)
    assert delta is None
    found = load_receipt(store, version(made, None, keys))
    assert (found.delta, found.targets, dict(found.keys), found.request_ids) == (None, None, {}, ())


def test_a_commit_without_a_receipt_is_damaged(store):
    with pytest.raises(DamagedFileError, match="commit 1 names no receipt"):
        load_receipt(store, version(receipt(), None, None))


@pytest.mark.parametrize("kind", ["keys", "deltas"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "other"])
def test_damage_is_found_on_reading(store, kind, harm):
    made = receipt()
    delta, keys = store_receipt(store, made)
    path = store.get(kind, {"keys": keys, "deltas": delta}[kind])
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif harm == "gone":
        path.unlink()
    else:
        other_delta, other_keys = store_receipt(store, receipt(2))
        path.write_bytes(store.get(kind, {"keys": other_keys, "deltas": other_delta}[kind]).read_bytes())
    with pytest.raises((DamagedFileError, FileNotFoundError)):
        load_receipt(store, version(made, delta, keys))


def test_a_file_of_another_format_is_no_receipt(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "something"})
    with pytest.raises(DamagedFileError, match="has format 'something', want 'errata-receipt-1'"):
        receipt_digest(path)


def test_the_digest_does_not_depend_on_how_the_header_is_laid_out(store, tmp_path):
    _, keys = store_receipt(store, receipt())
    path = store.get("keys", keys)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(reversed(list(file.metadata().items())))
    copy = tmp_path / "copy.safetensors"
    save_file(dict(reversed(list(load_file(path).items()))), copy, metadata=metadata)
    assert receipt_digest(copy) == keys


def test_a_receipt_as_the_journal_records_it():
    made = receipt()
    data = commit_data(made, delta="d", keys="k", contexts="x", norms={1: 2.0}, superseded=(("old", "a"),))
    assert [(o.id, o.applied, o.reason) for o in data.outcomes] == [
        ("a", True, None),
        ("b", True, None),
        ("refused-1", False, "no token"),
    ]
    assert data.outcomes[0].result == {"loss": 0.25, "steps": 7, "converged": True, "clamped": False}
    assert data.outcomes[2].result == {}
    assert made.delta is not None and data.delta_norms == made.delta.norms() and data.norms == {1: 2.0}
    assert (data.sequence, data.covariance, data.seconds, data.superseded) == (1, "c" * 64, 1.5, (("old", "a"),))


def test_the_history_gives_covariances_where_they_took_effect(store, tmp_path):
    covariances = [
        KeyCovariance({1: torch.eye(6, dtype=torch.float64) * n, 2: torch.eye(6, dtype=torch.float64)}, n, {"n": n})
        for n in (1, 2)
    ]
    meta = JournalMeta(run_id="r", base_digest="b" * 64, editor_digest="e" * 64, config={})
    with Journal.create(tmp_path / "journal.sqlite", meta) as journal:
        for number, covariance in enumerate(covariances):
            digest = store.put_file("covariances", covariance.save)
            journal.record_covariance(CovarianceRow(digest, {}, covariance.tokens, (1, 2), "v", str(number)))
        journal.record_swap(0, covariances[0].digest, 0)
        names = ("a", "b", "refused-1", "c", "d", "refused-2")
        journal.accept([EditRequest(id=n, subject=n, prompt="{} is", target_new="x", relation="r") for n in names])
        for sequence, applied in ((1, ("a", "b")), (2, ("c", "d"))):
            made = replace(receipt(sequence, applied=applied), superseded=())
            delta, keys = store_receipt(store, made)
            journal.commit(commit_data(made, delta=delta, keys=keys, contexts=None, norms={}, superseded=()))
            if sequence == 1:
                journal.record_swap(1, covariances[1].digest, 2)
        kinds = [item.digest if isinstance(item, KeyCovariance) else item.sequence for item in history(journal, store)]
        assert kinds == [covariances[0].digest, 1, covariances[1].digest, 2]
        assert [(e.request_id, e.id) for e in memory_entries(journal)] == [("a", 1), ("b", 2), ("c", 4), ("d", 5)]
        told = StatementConfig(style="template", templates={"r": "{target} it is for {subject}"})
        assert [e.statement for e in memory_entries(journal, told)] == [f"x it is for {n}" for n in "abcd"]
        rows = journal.requests()
        assert [e.statement for e in held_entries(rows, 1, told)] == ["x it is for a", "x it is for b"]
    assert load_covariance(store, covariances[1].digest).tokens == 2
    path = store.get("covariances", covariances[1].digest)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedFileError):
        load_covariance(store, covariances[1].digest)
