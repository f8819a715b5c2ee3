"""The locks are the closures of what they are for, by the metadata of what is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "requirements"
NEVER_IN_A_POD = {"pytest", "mypy", "ruff", "hypothesis", "mkdocs", "moto", "ipykernel", "schemathesis", "deepspeed"}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_lock", FOLDER / "make_lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_lock"] = module
    spec.loader.exec_module(module)
    return module


def pins(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    found = re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([\w.!]+)", "\n".join(lines))
    return {re.sub(r"[-_.]+", "-", distribution_name).lower(): version for distribution_name, version in found}


needs_the_images_python = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="what is needed differs between Pythons; the image has 3.11"
)


@needs_the_images_python
@pytest.mark.parametrize("name", ["lock.txt", "runtime.txt", "deepspeed.txt"])
def test_a_lock_is_the_closure_of_its_roots(maker: ModuleType, name: str) -> None:
    project = maker.read_project()
    (lock,) = (one for one in maker.locks(project) if one.name == name)
    wanted = maker.closure(lock.roots, project) - maker.closure(lock.beyond, project)
    assert set(pins(name)) == wanted


def test_the_images_versions_are_those_that_are_tested() -> None:
    everything, image, spread = (pins(f"{name}.txt") for name in ("lock", "runtime", "deepspeed"))
    assert image.items() <= everything.items() and spread.items() <= everything.items()
    assert not image.keys() & spread.keys()


def test_the_image_has_what_it_runs_and_no_tools() -> None:
    image = pins("runtime.txt")
    assert {"ray", "mlflow", "fastapi", "torch", "faiss-cpu", "redis", "confluent-kafka", "s3fs", "setuptools"} <= set(
        image
    )
    assert not NEVER_IN_A_POD & set(image)
    assert "deepspeed" in pins("deepspeed.txt")


class Installed:
    """What importlib.metadata says of a distribution."""

    def __init__(self, *requires: str) -> None:
        self.requires = requires


def test_a_closure_follows_extras_and_markers(maker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {
        "app": Installed("Web_Server[fast]>=1", 'old; python_version < "3"', 'own; extra == "all"'),
        "web-server": Installed("sockets", 'loop; extra == "fast"', 'slow; extra == "other"', "torch"),
        "sockets": Installed("app"),  # a circle
        "loop": Installed(),
        "torch": Installed('nvidia-cublas-cu12; platform_system == "Linux"', "triton"),
    }

    def found(name: str) -> Installed:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(maker, "distribution", found)
    project = {"project": {"dependencies": ["app"], "optional-dependencies": {"more": ["app[all]"]}}}
    assert maker.closure(["errata-llm"], project) == {"app", "web-server", "sockets", "loop", "torch"}
    with pytest.raises(SystemExit, match="own is needed and not installed"):
        maker.closure(["errata-llm[more]"], project)


def test_check_says_what_is_stale(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(maker, "FOLDER", tmp_path / "requirements")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text((FOLDER.parent / "pyproject.toml").read_text())
    assert maker.main([]) == 0 and maker.main(["--check"]) == 0
    (tmp_path / "requirements" / "runtime.txt").write_text("pytest==1\n")
    assert maker.main(["--check"]) == 1
    assert "runtime.txt" in capsys.readouterr().err
