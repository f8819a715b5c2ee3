"""Labels of a sweep's cells as text, and the axes that have a meaning of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

EDITS: Final = "edits"
GROUP: Final = "group"
"""With the one before, the axes that ``groups`` makes."""
SEED: Final = "seed"
"""The axis whose cells are repetitions."""


def title_of(coordinates: Mapping[str, str]) -> str:
    """The labels of a cell in one line: names as they are, values with their axis."""
    return ", ".join(
        f"{axis} {label}" if re.fullmatch(r"[-+0-9.eE]+|null|true|false|\[.*\]", label) else label
        for axis, label in coordinates.items()
    )


def text_of(label: Any) -> str:
    """A label as it is shown and compared: text as it is, anything else as YAML writes it."""
    return label if isinstance(label, str) else yaml.safe_dump(label, default_flow_style=True).split("\n")[0]
