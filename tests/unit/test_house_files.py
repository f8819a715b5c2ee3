"""What a repository is expected to hold, and that what CONTRIBUTING names exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    used = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    lint = (ROOT / "Makefile").read_text().split("lint:")[1].split("format:")[0]
    assert used == set(re.findall(r"\$\(BIN\)/(\w+)", lint)) == {"ruff", "mypy"}


def test_contributing_names_only_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets
    places = re.findall(r"`((?:\.?[a-z_]+/)+[\w.-]*)`", text)
    missing = [p for p in places if "<" not in p and not p.startswith((".venv", "../")) and not (ROOT / p).exists()]
    assert places and not missing, missing
    patterns = re.findall(r"`((?:\.?[a-z_]+/)+)[\w.-]*<[^`]*`", text)
    assert patterns and all((ROOT / folder).is_dir() for folder in patterns), patterns


def test_a_dead_link_ends_the_building_of_the_pages() -> None:
    """`make docs` takes a warning for an error, so what is to be an error must be a warning."""
    links = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["validation"]["links"]
    assert links == dict.fromkeys(("not_found", "unrecognized_links", "anchors", "absolute_links"), "warn")
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()
