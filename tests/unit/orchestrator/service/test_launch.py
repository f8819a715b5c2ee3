"""What is decided before a service starts: its configuration, whom it answers, where it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.progress import Display
from errata.orchestrator.service.access import Tokens, load_tokens
from errata.orchestrator.service.launch import check_host, listen, serve, service_config

MINIMAL = """
model: {name: some-model}
editor: {type: memit, layers: [1]}
covariance: {tokens: 100}
"""


def test_a_service_goes_by_the_clock_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    found = service_config(str(path))
    assert found.schedule == "asap" and found.batching.max_age_seconds == 2.0 and not found.stream.path
    given = service_config(str(path), ["batching.max_age_seconds=30", "service.max_waiting=7"])
    assert given.batching.max_age_seconds == 30 and given.service.max_waiting == 7
    fixed = service_config(str(path), ["schedule=deterministic"])
    assert fixed.schedule == "deterministic" and fixed.batching.max_age_seconds is None
    assert fixed.identity() == found.identity(), "when batches form may change from one start to the next"
    with pytest.raises(UserError, match=r"service\.max_wating"):
        service_config(str(path), ["service.max_wating=7"])


def test_the_shipped_service_is_the_quickstart_without_its_stream() -> None:
    found, quickstart = service_config("service"), load_config("quickstart")
    assert found.editor == quickstart.editor and found.model == quickstart.model
    assert found.stream.path == "" and found.ray.evaluation_workers >= 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_without_tokens_loopback_is_fine(host: str) -> None:
    check_host(host, Tokens({}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_without_tokens_nothing_else_is(host: str) -> None:
    with pytest.raises(UserError, match="ERRATA_TOKENS"):
        check_host(host, Tokens({}))
    check_host(host, load_tokens(environment={"ERRATA_TOKENS": "read:0123456789abcdef"}))


@pytest.mark.parametrize(
    ("host", "tokens", "says"),
    [("0.0.0.0", "", "without tokens"), ("127.0.0.1", "read:short", "at least 16"), ("127.0.0.1", "", "some-model")],
)
def test_what_the_user_can_put_right_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, tokens: str, says: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    monkeypatch.setenv("ERRATA_TOKENS", tokens)
    monkeypatch.delenv("ERRATA_TOKENS_FILE", raising=False)
    with pytest.raises(UserError, match=says):
        serve(service_config(str(path)), tmp_path / "run", host=host, port=0, display=Display(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_said_so_before_anything_is_written() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"), listen("127.0.0.1", port):
            pass
    with listen("127.0.0.1", 0) as mine:
        assert mine.getsockname()[1] > 0
        assert mine.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only then: 40 ms an answer"
    with pytest.raises(UserError, match=r"no\.such\.host"), listen("no.such.host.invalid", 80):
        pass
