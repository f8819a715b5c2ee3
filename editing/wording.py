"""Numbers and names in sentences."""

from __future__ import annotations

import re
from pathlib import PurePath


def model_title(name: str) -> str:
    """What a model is called on pages and in tables: its name in a registry or on a hub; of a directory's path the last
    part, for where it lies is the business of one machine."""
    elsewhere = (
        name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1 or re.match(r"[A-Za-z]:[\\/]", name)
    )
    return PurePath(name.replace("\\", "/")).name or name if elsewhere else name


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun in the right form: ``1 batch``, ``13 batches``, ``1,204 edits``.

    Args:
        plural: of a noun that takes another ending than ``s`` or, after a hissing sound, ``es``.
    """
    if number != 1:
        noun = plural or noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")
    return f"{number:,} {noun}"
