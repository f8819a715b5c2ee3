"""The wheel holds the five rooms and the presets, and nothing else; every direct dependency is pinned."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "actors", "evaluation", "retrieval", "editing")
INPUTS = ("errata", *ROOMS, "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    return {normal(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the sources, so that nothing is written into the checkout."""
    import shutil

    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in INPUTS:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.exists():
            shutil.copy(origin, source / name)
    (source / "README.md").touch()
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()  # must stay out
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += ["--no-build-isolation", "--wheel-dir", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = out.glob("*.whl")
    assert built.name.startswith("errata_llm-")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_wheel_installs_one_package(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"errata"}


def test_wheel_holds_every_file_of_the_rooms(wheel_names: set[str]) -> None:
    """A sub-package without `__init__.py` and a data file of an unlisted type would be missing."""
    expected = {
        f"errata/{path.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    own = {f"errata/{path.name}" for path in (ROOT / "errata").iterdir() if path.is_file()}
    got = {name for name in wheel_names if name.startswith("errata/") and not name.startswith("errata/_configs/")}
    assert expected | own == got
    assert "errata/py.typed" in got


def test_wheel_carries_the_presets(wheel_names: set[str]) -> None:
    expected = {
        "errata/_configs/" + path.relative_to(ROOT / "configs").as_posix()
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    assert expected == {name for name in wheel_names if name.startswith("errata/_configs/")}


def test_wheel_carries_its_license_and_command(wheel_names: set[str], project: dict) -> None:
    info = {name.split("/", 1)[1] for name in wheel_names if ".dist-info/" in name}
    assert {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"} <= info
    assert project["project"]["scripts"] == {"errata": "errata.orchestrator.cli:main"}


def test_every_direct_dependency_is_pinned_within_its_range(project: dict, pins: dict[str, str]) -> None:
    from packaging.requirements import Requirement

    extras = [text for extra in project["project"]["optional-dependencies"].values() for text in extra]
    wanted = [*project["project"]["dependencies"], *extras, *project["dependency-groups"]["dev"]]
    for requirement in map(Requirement, [*wanted, *project["build-system"]["requires"]]):
        if normal(requirement.name) == "errata-llm":
            continue
        pin = pins.get(normal(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in requirements/lock.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement}: pinned to {pin}"


def test_the_extra_all_is_all_of_them(project: dict) -> None:
    from packaging.requirements import Requirement

    extras = dict(project["project"]["optional-dependencies"])
    (everything,) = map(Requirement, extras.pop("all"))
    assert everything.extras == set(extras)


def test_what_a_missing_library_is_said_to_need_brings_it(project: dict) -> None:
    """`editing/extras.py` names an extra for a library: pyproject.toml has to agree, in both directions."""
    from packaging.requirements import Requirement

    from errata.editing.extras import EXTRAS

    own_name = {"faiss-cpu": "faiss", "lm-eval": "lm_eval", "scikit-learn": "sklearn"}
    declared = {
        extra: {own_name.get(name := normal(Requirement(text).name), name.replace("-", "_")) for text in requirements}
        for extra, requirements in project["project"]["optional-dependencies"].items()
        if extra != "all"
    }
    assert declared == {extra: set(libraries) for extra, libraries in EXTRAS.items()}


def test_lock_names_versions_only(pins: dict[str, str]) -> None:
    """No index, no URL, no local version: any index that carries the releases will do."""
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    entries = [line for line in lines if line.strip() and not line.startswith("#")]
    assert entries and all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line) for line in entries)
    assert len(pins) == len(entries)
    assert "torch" in pins
