"""The wheel, built from the sdist, in an environment of its own, where the working directory has rooms of its own.

Ray puts the driver's working directory first on its workers' `sys.path`: a folder `evaluation/` there, the commonest
name in research code, must neither take the place of ours nor be hidden by it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.harness import settings

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "actors", "evaluation", "retrieval", "editing")
INPUTS = ("errata", *ROOMS, "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
THEIRS = "raise RuntimeError('the folder of the working directory was imported')\n"


def ran(*command: object, cwd: Path, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources to sdist, sdist to wheel, the second without the first at hand."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in INPUTS:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    make = "import setuptools.build_meta as build, sys; print(build.build_sdist(sys.argv[1]))"
    ran(sys.executable, "-c", make, out, cwd=source)
    (packed,) = out.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()], "links are followed"
        archive.extractall(out / "unpacked", filter="data")
    (unpacked,) = (out / "unpacked").iterdir()
    make = "import setuptools.build_meta as build, sys; print(build.build_wheel(sys.argv[1]))"
    ran(sys.executable, "-c", make, out, cwd=unpacked)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which sees the locked packages but no checkout."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    ran(*pip, "--no-deps", "--no-index", wheel, cwd=place)
    (packages,) = place.glob("lib/python*/site-packages")
    # as a path and not as a site directory: an editable install that lies there stays unknown
    (packages / "locked.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return place


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with research code of its own."""
    for room in ("evaluation", "actors", "editing"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(THEIRS)
        (tmp_path / room / "probes.py").write_text(THEIRS)
    return tmp_path


def test_the_wheel_of_the_sdist_holds_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"errata"}
    for name in ("errata/py.typed", "errata/api.py", "errata/editing/session.py", "errata/_configs/quickstart.yaml"):
        assert name in names


@pytest.mark.timeout(900)
def test_a_run_and_a_sweep_where_the_working_directory_has_rooms_too(
    environment: Path, project: Path, tiny_checkpoint: Path, stream: Path
) -> None:
    errata = environment / "bin" / "errata"
    where = ran(environment / "bin" / "python", "-c", "import errata.editing as e; print(e.__file__)", cwd=project)
    assert Path(where.strip()).is_relative_to(environment)
    assert ran(errata, "--version", cwd=project).startswith("errata ")
    config = settings(tiny_checkpoint, stream)
    (project / "run.yaml").write_text(yaml.safe_dump(config))
    ran(errata, "run", "run.yaml", "--output", "out", cwd=project)
    assert (project / "out" / "report.html").is_file()
    assert "sound" in ran(errata, "verify", "out", cwd=project)
    one = {key: value for key, value in config.items() if key != "name"}
    axes = {"method": {"AlphaEdit": {"editor.tau": 5.0}}}
    (project / "sweep.yaml").write_text(yaml.safe_dump({"name": "tiny", "run": one, "axes": axes}))
    ran(errata, "sweep", "sweep.yaml", "--output", "swept", cwd=project)
    assert (project / "swept" / "comparison.md").is_file()
