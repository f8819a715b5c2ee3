"""The pages say what the code does: the configuration page is written from the classes, links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("orchestrator", "actors", "evaluation", "retrieval", "editing")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")])


def test_configuration_page_is_what_the_classes_say() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "configuration_page.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == written, (
        "run: python docs/configuration_page.py > docs/configuration.md"
    )


def test_every_setting_has_a_meaning() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    empty = [line for line in page.splitlines() if re.search(r"\|\s*\|$", line)]
    assert not empty, empty


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing, f"{page.name}: {missing}"


# ---------------------------------------------------------------- the walks of docs/architecture.md

WALK = re.compile(r"^\| (\d+) \| `([^`]+)` \| `(\w+)`.*?\| ([^|]+) \|$", re.M)
"""Number, file, what to read there, who calls it."""


@dataclass(frozen=True)
class Stop:
    number: int
    file: str
    name: str
    caller: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse((ROOT / self.file).read_text())

    @property
    def mentions(self) -> set[str]:
        """Names that its code uses: called, handed on or asked for."""
        return {
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name | ast.Attribute)
        }

    @property
    def definition(self) -> ast.stmt | None:
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        return next((n for n in ast.walk(self.tree) if isinstance(n, kinds) and n.name == self.name), None)


def walks() -> dict[str, tuple[list[Stop], str]]:
    """The stops of each walk by its title, and the text of its section."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    whole = text[text.index("## Three walks") : text.index("### How long the walks are")]
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", whole, re.M | re.S))
    return {
        title: ([Stop(int(n), file, name, by) for n, file, name, by in WALK.findall(section)], section)
        for title, section in sections.items()
    }


def faults_of(stops: Sequence[Stop]) -> list[str]:
    """What is wrong with a walk: a file that is gone, a name it does not hold, a caller that does not call it."""
    faults = [f"stop {s.number} stands at place {place}" for place, s in enumerate(stops, 1) if s.number != place]
    if len({stop.file for stop in stops}) != len(stops):
        faults.append("a file is a stop twice")
    for stop in stops:
        if not (ROOT / stop.file).is_file():
            faults.append(f"{stop.file} is not there")
            continue
        definition = stop.definition
        if definition is None:
            faults.append(f"{stop.file} has no {stop.name}")
        if stop.number == 1:
            continue
        number, _, through = stop.caller.partition(", through ")
        caller = next((s for s in stops if s.number == int(number) < stop.number), None)
        if caller is None or not (ROOT / caller.file).is_file():
            faults.append(f"stop {stop.number} is called by {number}, which does not come before it")
        elif through:
            # FastAPI lies between: the route names who lets callers through, and is a route
            routes = {ast.unparse(d).partition("(")[0] for d in getattr(definition, "decorator_list", [])}
            module = "errata." + caller.file.removesuffix(".py").replace("/", ".")
            imported = {n.module for n in ast.walk(stop.tree) if isinstance(n, ast.ImportFrom)}
            if not any(route.startswith("app.") for route in routes) or module not in imported:
                faults.append(f"{stop.file}: {stop.name} is no route behind {caller.file}")
        elif stop.name not in caller.mentions:
            faults.append(f"{caller.file} does not name {stop.name} of {stop.file}")
    return faults


@pytest.mark.parametrize("title", ["One edit", "One question", "The configuration"])
def test_each_stop_of_a_walk_is_called_by_the_one_that_the_walk_says(title: str) -> None:
    (stops,) = [stops for name, (stops, _) in walks().items() if name.startswith(title)]
    assert len(stops) > 5 and not faults_of(stops)


def test_the_check_of_walks_sees_what_is_wrong_with_one() -> None:
    (stops,) = [stops for name, (stops, _) in walks().items() if name.startswith("One edit")]

    def changed(place: int, **what: Any) -> list[str]:
        return faults_of([*stops[:place], replace(stops[place], **what), *stops[place + 1 :]])

    assert changed(9, file="orchestrator/run/batcher.py")[0] == "orchestrator/run/batcher.py is not there"
    assert changed(9, file="orchestrator/run/loop.py")[0] == "orchestrator/run/loop.py has no Attempts"
    assert changed(20, caller="5") == [
        "orchestrator/service/core.py does not name put_file of orchestrator/journal/artifacts.py"
    ]
    assert changed(2, caller="8")[0] == "stop 3 is called by 8, which does not come before it"
    assert changed(1, name="make_app") == [
        "orchestrator/service/app.py: make_app is no route behind orchestrator/service/access.py"
    ]
    assert "a file is a stop twice" in changed(3, file=stops[2].file)
    assert "stop 3 stands at place 2" in faults_of([stops[0], *stops[2:]])


def test_the_numbers_of_stops_are_those_of_the_walks() -> None:
    """In the text under each walk, and in the table of before and now, whose files before are counted as well."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    edit, question, configuration = walks().values()
    for stops, section in (edit, question, configuration):
        (said,) = re.findall(r"^(\d+) files\b", section, re.M)
        assert int(said) == len(stops)
    accepted = [stop.number for stop in edit[0] if stop.file.endswith("journal.py")]
    assert "eight of them up to the 202" in edit[1] and accepted == [8]
    table = text[text.index("### How long the walks are") : text.index("## One batch")]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (.+) \|$", table, re.M)
    assert [int(now) for _, _, now, _ in rows] == [8, len(edit[0]), len(question[0]), len(configuration[0])]
    names = [re.findall(r"`(\w+)`", files) for *_, files in rows]
    names[1] = names[0] + names[1]  # "those, and ..."
    assert [int(before) for _, before, _, _ in rows] == [len(set(files)) for files in names]
    assert all(int(now) < int(before) for _, before, now, _ in rows), "each walk is shorter than it was"


def test_the_page_names_every_file_that_sees_the_whole_configuration() -> None:
    stops, section = next(walk for title, walk in walks().items() if title.startswith("The configuration"))
    files = [p for room in (*ROOMS, "errata") for p in (ROOT / room).rglob("*.py") if not p.is_symlink()]
    seen = set()
    for path in {path.resolve() for path in files}:
        tree = ast.parse(path.read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
        names |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
        if "RunConfig" in names:
            seen.add(str(path.relative_to(ROOT)))
    listed = set(re.findall(r"`([\w/]+\.py)`", section[section.index("Beside these ten") :]))
    assert seen - {stop.file for stop in stops} == listed
