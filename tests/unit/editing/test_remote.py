"""Files behind URLs: in memory, on a local S3 server over real sockets, and what is said where they cannot be had."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from errata.editing.errors import UserError
from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, survey
from errata.editing.remote import here
from errata.editing.texts import read_text
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.covariance.jobs import estimate_job
from tests.helpers.object_storage import local_s3, use_s3

TEXT = "One paragraph of a text.\n\nAnother one, naïve and long.\n"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with local_s3("texts") as address:
        yield address


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    name = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{name}"
    use_s3(monkeypatch, request.getfixturevalue("s3_server"))
    return f"s3://texts/{name}"


def put(url: str, data: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(data)
    system, _ = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return url


def test_a_path_is_itself_and_a_url_a_copy_that_is_kept_until_the_file_changes(place: str, tmp_path: Path) -> None:
    assert here(str(tmp_path / "a.txt"), "x") == here(tmp_path / "a.txt", "x") == tmp_path / "a.txt"
    url = put(f"{place}/a.txt", TEXT.encode())
    copy = here(url, "x")
    assert copy.name == "a.txt" and copy.read_text(encoding="utf-8") == TEXT
    copy.write_text("as it was kept")
    assert here(url, "x") == copy and copy.read_text() == "as it was kept"
    put(url, b"another text")
    assert here(url, "x").read_text() == "another text"
    assert not list((tmp_path / "home").rglob(".tmp-*"))


def test_texts_are_read_from_there(place: str) -> None:
    url = put(f"{place}/held_out.txt", TEXT.encode())
    assert read_text(url, "evaluation.held_out") == TEXT
    with pytest.raises(UserError, match=rf"evaluation\.held_out '{place}/none\.txt' cannot be read: "):
        read_text(f"{place}/none.txt", "evaluation.held_out")


def test_a_corpus_from_there_is_the_one_of_a_file(place: str, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": part}) + "\n" for part in TEXT.split("\n\n"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    url = put(f"{place}/c.jsonl.gz", (tmp_path / "c.jsonl.gz").read_bytes())
    mine, theirs = CorpusConfig(path=str(tmp_path / "c.jsonl.gz")), CorpusConfig(path=url)
    assert survey(theirs) == survey(mine) and survey(mine).documents == 2
    assert theirs.identity() == mine.identity()
    assert estimate_job(CovarianceConfig(source="corpus", tokens=9, corpus=theirs), [1], "v").corpus.reading == theirs
    assert CorpusReader(theirs).take(0, 9) == CorpusReader(mine).take(0, 9) == TEXT.split("\n\n")


@pytest.mark.parametrize(
    ("url", "says"),
    [("gs://bucket/a.txt", "gcsfs"), ("az://container/a.txt", "adlfs"), ("nowhere://a/b", "nowhere")],
)
def test_a_missing_package_is_named(url: str, says: str) -> None:
    """The packages for Google's and Azure's storage are for whoever has data there; fsspec says which they are."""
    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError):
        with pytest.raises(UserError, match=rf"corpus '{url}' cannot be read: .*{says}"):
            survey(CorpusConfig(path=url))
    else:
        pytest.skip(f"{says} is installed here")
