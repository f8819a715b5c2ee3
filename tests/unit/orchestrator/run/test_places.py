"""Places that will not do are one line, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from errata.actors.settings import RayConfig
from errata.editing.errors import UserError
from errata.orchestrator.run.opening import _make_directory
from errata.orchestrator.run.places import check_output_place, check_ray_places


@pytest.fixture(autouse=True)
def _no_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)


def test_places_that_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("HOME", str(tmp_path / "made later"))
    check_ray_places(RayConfig())
    check_output_place(tmp_path / "a" / "b")
    check_output_place(Path("runs/a name with spaces, é and 東京"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["what?", "a#b", "50%"])
def test_an_output_that_ends_an_address(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the addresses of SQLite and MLflow end at"):
        check_output_place(tmp_path / name)


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file' is a file"):
        check_output_place(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"cannot be written; '/proc/self/none' cannot be made"):
        check_output_place(Path("/proc/self/none"))


def test_a_read_only_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # whoever runs this may be allowed everything: what the system says is what counts
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(UserError, match="cannot be written"):
        check_output_place(tmp_path / "run")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_directory_that_is_too_long_for_sockets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / "cluster-job-2026-11-28-000123456" / "node-local-temporary-directory"
    long.mkdir(parents=True)
    monkeypatch.setenv(name, str(long))
    with pytest.raises(UserError, match=f"^{name}={long}: .* too long for Ray's sockets .*set RAY_TMPDIR"):
        check_ray_places(RayConfig())
    check_ray_places(RayConfig(address="ray://elsewhere:10001"))


def test_a_home_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("HOME", "/proc/self/none")
    with pytest.raises(UserError, match=r"^HOME=/proc/self/none: .* cannot be written"):
        check_ray_places(RayConfig())


@pytest.mark.parametrize("mode", ["0700", "0750", "0755"])
def test_the_directory_of_a_new_run_is_as_open_as_the_setting_says(tmp_path: Path, mode: str) -> None:
    before = os.umask(0o077)
    try:
        _make_directory(tmp_path / "runs" / "one", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "runs" / "one").stat().st_mode & 0o777 == int(mode, 8)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o711)
    _make_directory(theirs, mode)
    assert theirs.stat().st_mode & 0o777 == 0o711, "what somebody has made keeps its mode"
