"""Numbers in sentences."""

from __future__ import annotations

import pytest

from errata.editing.wording import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "edit", "0 edits"),
        (1, "edit", "1 edit"),
        (2, "edit", "2 edits"),
        (1, "batch", "1 batch"),
        (13, "batch", "13 batches"),
        (1204, "node", "1,204 nodes"),
    ],
)
def test_a_noun_goes_with_its_number(number, noun, text):
    assert counted(number, noun) == text


def test_a_plural_of_its_own():
    assert counted(2, "query", "queries") == "2 queries" and counted(1, "query", "queries") == "1 query"
