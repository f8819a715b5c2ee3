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


def contrast(one: str, two: str) -> float:
    """WCAG's contrast of two colors, 1 to 21."""

    def light(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(two)))
    return (high + 0.05) / (low + 0.05)
