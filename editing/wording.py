"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun in the right form: ``1 batch``, ``13 batches``, ``1,204 edits``.

    Args:
        plural: of a noun that takes another ending than ``s`` or, after a hissing sound, ``es``.
    """
    if number != 1:
        noun = plural or noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")
    return f"{number:,} {noun}"
