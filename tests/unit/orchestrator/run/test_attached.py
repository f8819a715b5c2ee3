"""Settings of streams, guard and publication, and what they are turned into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.run import RunConfig, identity_of
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import JournalMeta, Version
from errata.orchestrator.run import attached as attaching
from errata.orchestrator.run.attached import open_source
from errata.orchestrator.sources.jsonl_follow import FollowedFile


def build(**sections: Any) -> RunConfig:
    data: dict[str, Any] = {
        "model": {"name": "m"},
        "editor": {"type": "memit", "layers": [1]},
        "stream": {"path": "edits.jsonl"},
        "covariance": {"source": "identity"},
    }
    return build_config({**data, **sections})


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ({"path": "x", "redis": {}}, "give one of a file (path, follow), redis and kafka"),
        ({"follow": True}, "follow needs a file in path"),
        ({"path": "hub:x", "follow": True}, "follow needs a file in path, got 'hub:x'"),
        ({"path": "x", "follow": True, "limit": 3}, "limit and skip are for a file that is read once"),
        ({"redis": {"url": "http://x"}}, "want redis://"),
        ({"redis": {"url": "redis://:secret@x"}}, "ERRATA_REDIS_PASSWORD"),
        ({"redis": {"streem": "x"}}, "did you mean 'stream'"),
    ],
)
def test_streams_that_make_no_sense_are_refused(stream: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        build(stream=stream)
    assert words in str(refused.value)


def test_which_streams_go_on(tmp_path: Path) -> None:
    assert not build().stream.endless and build(stream={"redis": {}}).stream.endless
    with Journal.create(tmp_path / "j.sqlite", JournalMeta("r", "b" * 64, "e" * 64, {})) as journal:
        assert open_source(build().stream, journal) is None
        followed = open_source(build(stream={"path": str(tmp_path / "x.jsonl"), "follow": True}).stream, journal)
        assert isinstance(followed, FollowedFile) and followed.read(0.0) == []
        with pytest.raises(UserError, match="stream 'errata:edits'"):
            open_source(build(stream={"redis": {"url": "redis://127.0.0.1:1/0"}}).stream, journal)


class Commits:
    """A pipeline in which the guard reverts what was just committed."""

    def __init__(self) -> None:
        self.after_commit: list[Callable[[Version], None]] = []
        self.store = None
        self.number = 1

    @property
    def journal(self) -> Commits:
        return self

    def events(self, kind: str) -> list[Any]:
        return []

    def head(self) -> Version:
        return Version(self.number, f"{self.number}" * 64, None, 1)


def test_a_version_that_the_guard_has_reverted_is_not_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(
        attaching, "publish_to_servers", lambda journal, store, version, *_: sent.append(version.sequence) or []
    )
    commits: Any = Commits()
    commits.after_commit.append(lambda version: setattr(commits, "number", 2))
    attached = attaching.attach_policy(commits, PublishConfig(every=1, to=("vllm=http://a",)), tmp_path)
    assert attached is not None
    for hook in commits.after_commit:
        hook(Version(1, "1" * 64, None, 1))
    attached.close()
    assert sent == [2]


def test_guard_publication_and_the_end_of_the_stream_may_change_on_resume(tmp_path: Path) -> None:
    before = build().identity()
    probes = tmp_path / "probes.jsonl"
    changed = build(
        guard={"every": 2, "sentinels": str(probes)},
        publish={"to": ["vllm=http://host"], "every": 3},
        stream={"path": "edits.jsonl", "follow": True},
    )
    assert changed.identity() == before
    old = {key: value for key, value in build().dump().items() if key not in ("guard", "publish")}
    old["stream"] = {key: value for key, value in old["stream"].items() if key not in ("follow", "redis")}
    assert identity_of(old) == before, "a run begun by a release that knew none of these"


def test_data_of_the_guard_is_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").write_text("{}")
    data = build().dump() | {"guard": {"every": 1, "sentinels": "probes.jsonl"}}
    found = build_config(data, tmp_path / "config.yaml").guard
    assert found.sentinels == str(tmp_path / "probes.jsonl") and found.every == 1
