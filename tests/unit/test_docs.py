"""The pages say what the code does: the configuration page is written from the classes, links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

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


def test_the_walks_through_the_files_name_files_that_are_there() -> None:
    """In `docs/architecture.md`; a short name is one of a file beside the last that was named in full, or anywhere."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    walks = text[text.index("## Three walks") : text.index("## One batch")]
    names = re.findall(r"`([\w/]+\.py)`", walks)
    assert len(names) > 30
    files = [str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    files += [f"errata/{path.name}" for path in (ROOT / "errata").glob("*.py")]
    missing = [name for name in names if not any(file == name or file.endswith(f"/{name}") for file in files)]
    assert not missing, missing
