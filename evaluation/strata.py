"""A sample of the edits that has all ages in it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise


def by_age(names: Sequence[str], count: int | None) -> list[int]:
    """Places of ``count`` of the names, one from each of as many spans of like length; all places where that is fewer.

    Args:
        names: distinct, oldest first.
        count: None for all.

    Which one of a span is taken depends on the names alone, not on a random number: the same edits in another run, with
    few of them missing, give nearly the same sample.
    """
    if count is None or count >= len(names):
        return list(range(len(names)))
    borders = [at * len(names) // count for at in range(count + 1)]
    return [
        min(range(start, stop), key=lambda at: blake2b(names[at].encode(), digest_size=8).digest())
        for start, stop in pairwise(borders)
    ]
