"""The descriptions of the charts that a page holds."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class _Charts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [json.loads(value or "") for name, value in attrs if name == "data-chart"]


def charts_of(html: str) -> list[dict[str, Any]]:
    """What each chart of a page draws, in order."""
    parser = _Charts()
    parser.feed(html)
    return parser.found
