"""Content-addressed files: complete or absent, checked on every read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.editing.digest import digest_tensors
from errata.editing.errors import DamagedFileError
from errata.orchestrator.journal import fail_points
from errata.orchestrator.journal.artifacts import ArtifactStore

DATA = b"some factors"
DIGEST = hashlib.sha256(DATA).hexdigest()


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_bytes_are_stored_once_under_their_digest(tmp_path):
    store = ArtifactStore(tmp_path / "run")
    assert store.put_bytes("keys", DATA) == store.put_bytes("keys", DATA) == DIGEST
    assert files(tmp_path) == [f"{DIGEST}.bin"]
    assert store.get("keys", DIGEST).read_bytes() == DATA
    assert store.contains("keys", DIGEST) and not store.contains("deltas", DIGEST)
    assert list(store.digests("keys")) == [DIGEST] and list(store.digests("deltas")) == []
    assert store.verify() == []
    store.discard("keys", DIGEST)
    store.discard("keys", DIGEST)
    assert files(tmp_path) == []


def test_a_kind_may_be_known_by_the_digest_of_its_tensors(tmp_path):
    tensors = {"left": torch.arange(6.0).reshape(2, 3), "right": torch.ones(3)}
    store = ArtifactStore(tmp_path, digesters={"deltas": lambda path: digest_tensors(load_file(path))})
    plain = store.put_file("deltas", lambda path: save_file(tensors, path))
    noted = store.put_file("deltas", lambda path: save_file(tensors, path, metadata={"note": "another header"}))
    assert plain == noted == digest_tensors(tensors)
    path = store.get("deltas", plain)
    path.write_bytes(path.read_bytes()[:-5])  # torn
    with pytest.raises(DamagedFileError, match="cannot be read"):
        store.get("deltas", plain)
    assert [damage.kind for damage in store.verify()] == ["deltas"]
    assert store.put_file("deltas", lambda path: save_file(tensors, path)) == plain, "and is put right"
    assert torch.equal(load_file(store.get("deltas", plain))["left"], tensors["left"])


def test_a_changed_file_is_noticed(tmp_path):
    store = ArtifactStore(tmp_path)
    path = tmp_path / "keys" / f"{store.put_bytes('keys', DATA)}.bin"
    path.write_bytes(b"some factorz")
    with pytest.raises(DamagedFileError, match="not what its name says"):
        store.get("keys", DIGEST)
    assert store.get("keys", DIGEST, verify=False) == path
    assert [damage.path for damage in store.verify()] == [path]


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "ABCDEF" * 8, "*", DIGEST + "0"])
def test_only_a_digest_names_a_file(tmp_path, digest):
    with pytest.raises(ValueError, match="hexadecimal"):
        ArtifactStore(tmp_path).get("keys", digest)


def test_absent_files_and_unknown_kinds(tmp_path):
    store = ArtifactStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=DIGEST):
        store.get("keys", DIGEST)
    with pytest.raises(ValueError, match="deltas, keys, covariances"):
        store.put_bytes("weights", DATA)
    with pytest.raises(ValueError, match="deltas, keys, covariances"):
        ArtifactStore(tmp_path, digesters={"weights": str})


def test_a_failing_writer_leaves_nothing(tmp_path):
    def full(path: Path) -> None:
        path.write_bytes(DATA[:4])
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ArtifactStore(tmp_path).put_file("deltas", full)
    assert files(tmp_path) == []


def test_a_crash_before_the_rename_leaves_only_what_a_sweep_removes(tmp_path):
    store = ArtifactStore(tmp_path)
    with fail_points.raise_once("artifact_written"), pytest.raises(fail_points.InjectedCrash):
        store.put_bytes("deltas", DATA)
    assert not store.contains("deltas", DIGEST) and store.verify() == []
    assert store.sweep() == 1 and store.sweep() == 0 and files(tmp_path) == []
    with fail_points.raise_once("artifact_renamed"), pytest.raises(fail_points.InjectedCrash):
        store.put_bytes("deltas", DATA)
    assert store.get("deltas", DIGEST).read_bytes() == DATA


def test_fail_points_are_armed_for_one_visit(monkeypatch):
    with pytest.raises(ValueError, match="unknown fail point 'after_lunch'"):
        fail_points.reach("after_lunch")
    with fail_points.raise_once("after_commit", visit=2):
        fail_points.reach("after_commit")
        fail_points.reach("after_swap")
        with pytest.raises(fail_points.InjectedCrash):
            fail_points.reach("after_commit")
        fail_points.reach("after_commit")
    fail_points.reach("after_commit")
    monkeypatch.setenv(fail_points.ENVIRONMENT_VARIABLE, "after_memory_add:raise")
    fail_points.reach("after_commit")
    with pytest.raises(fail_points.InjectedCrash):
        fail_points.reach("after_memory_add")
    fail_points.reach("after_memory_add")
    monkeypatch.setenv(fail_points.ENVIRONMENT_VARIABLE, "after_memory_add:explode")
    with pytest.raises(ValueError, match="'raise' or 'exit'"):
        fail_points.reach("after_commit")
