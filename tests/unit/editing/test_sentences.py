"""Where the sentences of an answer end."""

from __future__ import annotations

import pytest

from errata.editing.scripts import first_sentence, whole_sentences


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("France. The birthplace of Fred", "France."),
        ("Paris", "Paris"),
        ("", ""),
        ("Paris, the capital", "Paris, the capital"),
        ("St. Louis. It lies", "St. Louis."),
        ("J. R. R. Tolkien. He was", "J. R. R. Tolkien."),
        ("U.S. Army", "U.S. Army"),
        ("3.14 or so. Then", "3.14 or so."),
        ("Washington D.C. and", "Washington D.C. and"),
        ("Really?! Yes", "Really?!"),
        ('"Paris." He said', '"Paris."'),
        ("巴黎。法国的", "巴黎。"),
        ("पेरिस। भारत की", "पेरिस।"),
        ("approx. 300 km. Next", "approx. 300 km."),
    ],
)
def test_what_completes_a_sentence_ends_with_it(text, first):
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It lies in France. It has a tower. The ri", "It lies in France. It has a tower."),
        ("It lies in Fra", "It lies in Fra"),
        ("It lies in France.", "It lies in France."),
        ("It was J. R. Tol", "It was J. R. Tol"),
    ],
)
def test_a_reply_that_was_cut_ends_with_its_last_whole_sentence(text, whole):
    assert whole_sentences(text) == whole
