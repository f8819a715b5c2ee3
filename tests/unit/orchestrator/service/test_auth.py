"""Tokens: what is read, what is refused, and that no token ever shows."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime
from pathlib import Path

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.service.access import Role, Tokens, WatchedTokens, load_tokens, watched_tokens

ONE, TWO = "first-token-0123456789", "second-token-012345678"


def tokens(entry: str) -> Tokens:
    return load_tokens(environment={"ERRATA_TOKENS": entry})


def test_a_token_speaks_for_its_role() -> None:
    found = tokens(f"read:{ONE},admin:{TWO}")
    reader, admin = found.caller(f"Bearer {ONE}"), found.caller(f"bearer  {TWO}")
    assert reader is not None and reader.role is Role.read
    assert admin is not None and admin.role is Role.admin and admin.role > Role.write
    assert admin.label == "admin:" + hashlib.sha256(TWO.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", ONE, f"Basic {ONE}", f"Bearer {ONE}x", f"Bearer {ONE[:-1]}", "Bearer \udcff"],
)
def test_anything_else_speaks_for_nobody(header: str | None) -> None:
    assert tokens(f"read:{ONE}").caller(header) is None


def test_file_and_environment_are_joined_and_the_environment_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    digest = hashlib.sha256(TWO.encode()).hexdigest()
    file.write_text(f"# who may write\n\nwrite:sha256:{digest.upper()}\n")
    file.chmod(0o600)
    found = load_tokens("/nowhere", {"ERRATA_TOKENS": f"read:{ONE}", "ERRATA_TOKENS_FILE": str(file)})
    writer = found.caller(f"Bearer {TWO}")
    assert len(found) == 2 and writer is not None and writer.role is Role.write
    assert not load_tokens(None, {})


def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"read:{ONE}\n")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load_tokens(str(file), {})
    assert "chmod 600" in caplog.text and ONE not in caplog.text


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (f"root:{ONE}", "read, write, admin"),
        ("read:short", "at least 16"),
        ("read:spaces are not allowed", "at least 16"),
        ("read:sha256:abc", "64 hexadecimal"),
        (f"read:{ONE},write:{ONE}", "roles read and write"),
        (ONE, "role:token"),
    ],
)
def test_a_bad_entry_is_named_by_its_place_and_not_repeated(entry: str, says: str) -> None:
    with pytest.raises(UserError, match=r"entry [12]") as caught:
        tokens(entry)
    assert says in str(caught.value)
    assert ONE not in str(caught.value) and "spaces are" not in str(caught.value)


def test_a_missing_file_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_tokens(str(tmp_path / "none"), {})


def test_only_digests_are_kept() -> None:
    found = tokens(f"read:{ONE}")
    assert ONE not in repr(found) and ONE.encode() not in repr(vars(found)).encode()


# ---------------------------------------------------------------- tokens that end, and files that change


def test_a_token_ends_with_its_day_or_at_its_time() -> None:
    text = f"read:{'r' * 20} until=2027-01-31,write:{'w' * 20} until=2027-01-31T12:00:00+02:00,admin:{'a' * 20}"
    tokens = load_tokens(environment={"ERRATA_TOKENS": text})
    moments = {
        "2027-01-31T09:59:00+00:00": (True, True, True),
        "2027-01-31T10:00:00+00:00": (True, False, True),
        "2027-01-31T23:59:00+00:00": (True, False, True),
        "2027-02-01T00:00:00+00:00": (False, False, True),
    }
    for text, expected in moments.items():
        tokens._clock = lambda text=text: datetime.fromisoformat(text)
        got = tuple(tokens.caller(f"Bearer {letter * 20}") is not None for letter in "rwa")
        assert got == expected, text


@pytest.mark.parametrize("end", ["soon", "", "2027-13-01"])
def test_an_end_that_is_none_is_refused_without_repeating_the_token(end: str) -> None:
    with pytest.raises(UserError, match="until=") as refused:
        load_tokens(environment={"ERRATA_TOKENS": f"read:{'r' * 20} until={end}"})
    assert "rrrr" not in str(refused.value)


def test_a_changed_file_is_read_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"read:{'r' * 20}\n")
    path.chmod(0o600)
    tokens = WatchedTokens(lambda: load_tokens(str(path), {}), path, every=0.0)
    assert tokens.caller(f"Bearer {'r' * 20}") is not None and tokens.caller(f"Bearer {'w' * 20}") is None
    path.write_text(f"write:{'w' * 20}\n# gone: read\n")
    assert tokens.caller(f"Bearer {'w' * 20}") is not None and tokens.caller(f"Bearer {'r' * 20}") is None
    for damage in ("nonsense\n", "", "# none\n"):
        path.write_text(damage + " " * len(caplog.records))
        assert tokens.caller(f"Bearer {'w' * 20}") is not None, damage
    path.unlink()
    assert tokens.caller(f"Bearer {'w' * 20}") is not None and bool(tokens)
    assert "stay in force" in caplog.text and "w" * 20 not in caplog.text


def test_tokens_of_the_environment_alone_are_not_watched(tmp_path: Path) -> None:
    assert not isinstance(watched_tokens(None, {"ERRATA_TOKENS": f"read:{'r' * 20}"}), WatchedTokens)
    path = tmp_path / "tokens"
    path.write_text(f"admin:{'a' * 20}\n")
    assert isinstance(watched_tokens(str(path), {}), WatchedTokens)
