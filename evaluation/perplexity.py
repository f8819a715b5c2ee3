"""Perplexity on held-out text: whether the model still speaks as it did."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from errata.editing.model.engine import LanguageEngine
from errata.editing.model.text import TextCodec
from errata.evaluation.metrics.card import metric

WINDOW = 256
_CHARS_PER_TOKEN = 12
"""Well above what a token of prose has on average (about 4)."""
_TITLE = re.compile(r"= [^=].*[^=] =")
_SPACING = [
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) "), r"\1"),
    (re.compile(r" ('s|'t|'re|'ve|'ll|'d|'m)\b"), r"\1"),
    (re.compile(r"(\w) (n't)\b"), r"\1\2"),
    (re.compile("(\\w) \u2013 (\\w)"), "\\1\u2013\\2"),  # a dash of ranges and scores
]


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was measured on."""

    value: float
    tokens: int
    """Predicted tokens."""
    windows: int
    window: int


@metric("perplexity", version=1, source="standard; METHODS section 6 (held-out text)", higher_is_better=False)
def perplexity_of(nll: float, tokens: int) -> float:
    """``exp(nll / tokens)``: nll is the summed -log p, nats, of that many tokens."""
    if tokens < 1:
        raise ValueError("perplexity needs at least one predicted token")
    return exp(nll / tokens)


def paragraphs_of(text: str | Sequence[str]) -> list[str]:
    """Documents of a text: its paragraphs, an empty line between them; given as documents, these."""
    parts = text.split("\n\n") if isinstance(text, str) else text
    return [part for part in parts if part.strip()]


def windows_of(
    text: TextCodec, documents: Sequence[str], *, window: int = WINDOW, max_tokens: int | None = None
) -> list[list[int]]:
    """Cut documents into windows of at most ``window`` tokens, with the tokenizer's BOS, if any, in front.

    Windows do not overlap and do not cross documents; context starts anew in each. A rest of a single
    token, which predicts nothing, is dropped where there is no BOS. With ``max_tokens`` the text ends after
    that many tokens.

    Raises:
        ValueError: the window has no room for a token to predict.
    """
    room = window - len(text.bos)
    if room < (1 if text.bos else 2):
        raise ValueError(f"window must hold at least two tokens, BOS included, got {window}")
    windows: list[list[int]] = []
    left = max_tokens
    for document in documents:
        if left == 0:
            break
        ids = _head(text, document, left)
        if left is not None:
            left -= len(ids)
        pieces = (list(text.bos) + ids[at : at + room] for at in range(0, len(ids), room))
        windows += [piece for piece in pieces if len(piece) > 1]
    return windows


def _head(text: TextCodec, document: str, count: int | None) -> list[int]:
    """The first ``count`` tokens of a document, without tokenizing much more of it than that."""
    size = len(document) if count is None else count * _CHARS_PER_TOKEN
    ids = text.encode_prompt(document[:size])[len(text.bos) :]
    if count is not None and len(ids) <= count and size < len(document):
        # unusually long tokens: the cut fell too early (its last token may be a fragment), so take it all
        ids = text.encode_prompt(document)[len(text.bos) :]
    return ids[:count]


def clean_wikitext(raw: str) -> list[str]:
    """The articles of a WikiText file as ordinary prose: one document an article, spacing undone.

    WikiText sets spaces around punctuation, writes ``@-@``, ``@,@``, ``@.@`` inside words and numbers and
    headings as
    `` = Title = ``. A model fed that text is measured on the markup.
    """
    articles: list[list[str]] = []
    for line in raw.split("\n"):
        line = line.strip()
        if _TITLE.fullmatch(line):
            articles.append([])
        elif line and not line.startswith("="):
            if not articles:
                articles.append([])
            articles[-1].append(_prose(line))
    return ["\n\n".join(paragraphs) for paragraphs in articles if paragraphs]


def _prose(line: str) -> str:
    for pattern, replacement in _SPACING:
        line = pattern.sub(replacement, line)
    # straight double quotes come in pairs: the space inside each pair goes
    return re.sub(r'" ([^"]*?) "', r'"\1"', line)


def perplexity(engine: LanguageEngine, windows: Sequence[Sequence[int]]) -> Perplexity:
    """Perplexity of all predicted tokens of the windows together, on the model's current weights.

    The first token of each window (the BOS where there is one) is context only. Compare values of one model
    and one window length only.
    """
    totals = engine.nll(windows)
    tokens = sum(count for _, count in totals)
    value = perplexity_of(sum(nll for nll, _ in totals), tokens)
    return Perplexity(value, tokens, len(windows), max((len(w) for w in windows), default=0))
