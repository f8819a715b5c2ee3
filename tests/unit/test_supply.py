"""Locks with hashes: what the check of the supply chain says, and that the files it reads are whole."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def supply() -> ModuleType:
    path = ROOT / "requirements" / "supply.py"
    spec = importlib.util.spec_from_file_location("supply", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    digest = "--hash=sha256:" + "a" * 64
    lock, hashes, tools = (tmp_path / name for name in ("lock.txt", "lock-hashes.txt", "tools.txt"))
    lock.write_text("# told\nOne_Thing==1.0\ntwo==2.0\n")
    hashes.write_text(
        f"# told\none-thing==1.0 \\\n    {digest} \\\n    {digest}\ntwo==2.0 ; python_version >= '3' \\\n  {digest}\n"
    )
    tools.write_text(f"tool==3.0 \\\n    {digest}\n")
    return lock, hashes, tools


def test_files_that_agree_have_no_problem(supply: ModuleType, files: tuple[Path, Path, Path]) -> None:
    assert supply.problems(*files) == []
    assert supply.pins(files[1])["one-thing"] == ("1.0", ("a" * 64, "a" * 64))


@pytest.mark.parametrize(
    ("place", "old", "new", "said"),
    [
        (0, "two==2.0", "two==2.1", "two: 2.1 in lock.txt, 2.0 in lock-hashes.txt"),
        (0, "two==2.0\n", "two==2.0\nthree==3.0\n", "three: 3.0 has no hashes"),
        (0, "two==2.0\n", "", "two: is in lock-hashes.txt alone"),
        (1, "--hash=sha256:" + "a" * 64, "--hash=md5:00", "one-thing: without a hash in lock-hashes.txt"),
        (2, "--hash=sha256:" + "a" * 64, "--hash=sha256:abc", "tool: without a hash in tools.txt"),
    ],
)
def test_what_does_not_agree_is_named(
    supply: ModuleType, files: tuple[Path, Path, Path], place: int, old: str, new: str, said: str
) -> None:
    files[place].write_text(files[place].read_text().replace(old, new))
    assert said in supply.problems(*files)


def test_a_line_that_pins_nothing_is_an_error(supply: ModuleType, files: tuple[Path, Path, Path]) -> None:
    files[0].write_text("two>=2.0\n")
    with pytest.raises(ValueError, match=r"lock\.txt: no pin: 'two>=2\.0'"):
        supply.problems(*files)


@pytest.mark.slow
def test_lock_and_hashes_name_the_same(supply: ModuleType) -> None:
    """Among the slow ones: a dependency may come first, its digests (``make hashes``) before a release."""
    assert supply.problems() == []


def test_every_archive_of_the_recorded_files_has_a_digest(supply: ModuleType) -> None:
    hashed, plain = supply.pins(supply.HASHES), supply.pins(supply.LOCK)
    assert len(hashed) > 200 and all(sums for _, sums in hashed.values())
    assert all(sums for _, sums in supply.pins(supply.TOOLS).values())
    assert len(plain.keys() & hashed.keys()) > 200


def test_without_a_network_nothing_is_said_to_be_sound(
    supply: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(supply, "SERVICE", ("127.0.0.1", 9))
    assert supply.audit() == 2
    assert "NOT looked for" in capsys.readouterr().err


def test_the_tools_are_those_that_make_asks_for() -> None:
    makefile = (ROOT / "Makefile").read_text()
    told = (ROOT / "requirements" / "tools.in").read_text()
    for name, tool in (("pip-audit", "supply.py audit"), ("cyclonedx-bom", "cyclonedx-py"), ("uv", "hashes.sh")):
        assert name in told and tool in makefile
    for script in ("hashes.sh", "hashed.sh"):
        assert subprocess.run(["sh", "-n", ROOT / "requirements" / script], check=False).returncode == 0


def test_the_pins_of_the_image_come_with_their_digests(files: tuple[Path, Path, Path]) -> None:
    script = files[0].parent / "hashed.sh"
    script.write_text((ROOT / "requirements" / "hashed.sh").read_text())

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", script, files[0]], capture_output=True, text=True, check=False)

    files[0].write_text("# told\nOne_Thing==1.0\n")
    done = run()
    assert done.returncode == 0 and done.stdout.count("--hash") == 2 and "two" not in done.stdout
    files[0].write_text("One_Thing==1.0\ntwo==2.1\n")
    done = run()
    assert done.returncode == 1 and "no digest for two==2.1" in done.stderr
