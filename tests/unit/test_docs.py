"""The pages say what the code does: the configuration page is written from the classes, links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
