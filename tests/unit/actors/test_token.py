"""Which token a Ray of this machine gets; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.actors import connection
from errata.actors.connection import ask_for_a_token

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the function sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    raylet = SimpleNamespace(Config=SimpleNamespace(initialize=lambda _: None))
    monkeypatch.setattr(connection, "ray", SimpleNamespace(_raylet=raylet))  # its own mode stays as it is


def asked(monkeypatch: pytest.MonkeyPatch, **given: str) -> tuple[str | None, ...]:
    import os

    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ask_for_a_token()
    return tuple(os.environ.get(name) for name in NAMES)


def test_a_token_is_made_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, token, path = asked(monkeypatch)
    assert mode == "token" and token is not None and len(token) == 64 and path is None
    # a parent that had Ray switch it on, and a home directory that holds none
    assert asked(monkeypatch, RAY_AUTH_TOKEN="")[1] not in (None, "", token)


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/run/token"}])
def test_a_token_that_is_given_is_used(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    mode, token, path = asked(monkeypatch, **given)
    assert mode == "token" and token == given.get("RAY_AUTH_TOKEN") and path == given.get("RAY_AUTH_TOKEN_PATH")


def test_who_switched_it_on_and_keeps_a_token_has_that_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("kept")
    assert asked(monkeypatch, RAY_AUTH_MODE="token") == ("token", None, None)


def test_who_switched_it_off_has_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, RAY_AUTH_MODE="disabled") == ("disabled", None, None)
