"""Files of a run on object storage: in memory, and on a local S3 server over real sockets."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from errata.editing.errors import DamagedFileError, UserError
from errata.orchestrator.journal.remote_artifacts import (
    PLACE,
    RemoteArtifacts,
    check_place,
    note_place,
    place_of,
)
from tests.helpers.object_storage import local_s3, use_s3

DATA = b"some factors"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with local_s3("errata") as address:
        yield address


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{name}/run"
    use_s3(monkeypatch, request.getfixturevalue("s3_server"))
    return f"s3://errata/{name}"


def there(url: str) -> list[str]:
    system, place = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    root = place.lstrip("/")
    return sorted(path.lstrip("/").removeprefix(f"{root}/") for path in system.find(place))


def test_a_file_is_on_both_sides_and_comes_back_when_this_one_is_gone(url: str, tmp_path: Path) -> None:
    check_place(url)
    store = RemoteArtifacts(tmp_path / "run", url)
    assert store.put_bytes("keys", DATA) == store.put_bytes("keys", DATA) == DIGEST
    assert there(url) == [f"keys/{DIGEST}.bin"]
    assert store.get("keys", DIGEST).read_bytes() == DATA
    elsewhere = RemoteArtifacts(tmp_path / "another machine", url)
    assert elsewhere.contains("keys", DIGEST) and not elsewhere.contains("deltas", DIGEST)
    assert list(elsewhere.digests("keys")) == [DIGEST] and list(elsewhere.digests("deltas")) == []
    path = elsewhere.get("keys", DIGEST)
    assert path == tmp_path / "another machine" / "keys" / f"{DIGEST}.bin" and path.read_bytes() == DATA
    assert elsewhere.verify() == []
    elsewhere.discard("keys", DIGEST)
    elsewhere.discard("keys", DIGEST)
    assert there(url) == [] and not elsewhere.contains("keys", DIGEST)
    with pytest.raises(FileNotFoundError):
        elsewhere.get("keys", DIGEST)


def test_what_is_damaged_there_is_not_taken(url: str, tmp_path: Path) -> None:
    store = RemoteArtifacts(tmp_path / "run", url)
    store.put_bytes("keys", DATA)
    with fsspec.open(f"{url}/keys/{DIGEST}.bin", "wb") as file:
        file.write(b"something else")
    other = RemoteArtifacts(tmp_path / "other", url)
    with pytest.raises(DamagedFileError, match="not what its name says"):
        other.get("keys", DIGEST)
    assert [damage.kind for damage in other.verify()] == ["keys"]
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()], "nothing half-read stays"


def test_a_run_that_began_without_a_place_is_brought_there(url: str, tmp_path: Path) -> None:
    from errata.orchestrator.journal.artifacts import ArtifactStore

    ArtifactStore(tmp_path).put_bytes("keys", DATA)
    store = RemoteArtifacts(tmp_path, url)
    assert store.complete() == 1 and store.complete() == 0
    assert there(url) == [f"keys/{DIGEST}.bin"]


def test_half_written_files_there_are_swept_and_are_no_digests(url: str, tmp_path: Path) -> None:
    with fsspec.open(f"{url}/keys/.tmp-0123456789abcdef.bin", "wb") as file:
        file.write(b"half")
    store = RemoteArtifacts(tmp_path, url)
    store.put_bytes("keys", DATA)
    assert list(store.digests("keys")) == [DIGEST]
    assert store.sweep() == 1 and there(url) == [f"keys/{DIGEST}.bin"]


def test_an_upload_that_fails_gives_no_digest_and_names_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    store = RemoteArtifacts(tmp_path, url)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(store._system, "put_file", refuse)
    with pytest.raises(OSError, match=r"artifacts memory://\w+/keys: .*403 Forbidden"):
        store.put_bytes("keys", DATA)
    monkeypatch.undo()
    assert store.put_bytes("keys", DATA) == DIGEST and there(url) == [f"keys/{DIGEST}.bin"]


def test_the_place_is_noted_beside_the_journal(tmp_path: Path) -> None:
    assert place_of(tmp_path) is None
    note_place(tmp_path, "s3://errata/run/")
    note_place(tmp_path, "s3://errata/run")
    assert place_of(tmp_path) == "s3://errata/run" and (tmp_path / PLACE).is_file()
    with pytest.raises(UserError, match="are at 's3://errata/run'"):
        note_place(tmp_path, "s3://errata/other")


@pytest.mark.parametrize(
    ("wrong", "says"), [("nowhere://x", "nowhere"), ("file:///proc/errata-artifacts", "cannot be written to")]
)
def test_a_place_that_cannot_be_used_is_refused(wrong: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_place(wrong)
