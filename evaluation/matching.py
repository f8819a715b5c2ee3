"""When two short answers are the same, in any script: words, containment, token overlap (SQuAD's rules, extended).

A word is what the script makes one. Where words are written apart it is a run of letters, marks and digits. Where they
are not (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character with its marks is one; a run of Katakana is one.
Signs that tell things apart belong to their word or are one of their own: C# and C++, -5 and 5, 5 % and $5, A+ and A-,
emoji.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import regex

from errata.editing.scripts import KATAKANA, PARTICLES, SINGLE

MATCHING_VERSION: Final = 2
"""Of every metric that compares words. 1 took runs of ``\\w``: no words in many scripts, without marks and signs."""

_ARTICLES = frozenset({"a", "an", "the"})
_LETTER: Final = rf"[[\p{{L}}\p{{M}}]--[{SINGLE}{KATAKANA}]]"
_IGNORED: Final = r"[\u00ad\u0640\u200b-\u200d\u2060\ufeff]"
"""Within a word they shape or break it: soft hyphen, Arabic tatweel, zero-width space, joiners and no-break space."""
_TOKEN: Final = regex.compile(
    rf"""
    (?P<emoji> (?=\p{{RI}}\p{{RI}} | [0-9\#*]\ufe0f?\u20e3 | [\p{{Extended_Pictographic}}--[\u00a9\u00ae]]) \X )
  | (?P<number>
      (?P<minus> (?<![\p{{L}}\p{{M}}\p{{N}})\]]) - )?
      (?P<before> \p{{Sc}}\ ? )?
      (?P<digits> \d++(?:[.,/:\u2044]\d++)*+ ) (?!{_LETTER}|\d)
      (?P<after> \ ?[%\u2030] | \ ?\p{{Sc}}(?!\ ?\d) | \ ?\u00b0(?:\ ?[cf](?!{_LETTER}))? )?
    )
  | (?P<kana> [{KATAKANA}](?:[{KATAKANA}]|\p{{M}})*+ )
  | (?P<one> (?=[{SINGLE}]) \X )
  | (?P<grade> (?<![*\p{{L}}\p{{N}}]) (?: (?:\p{{L}}|ab|rh)- | \p{{L}}\* ) (?![\-*\p{{L}}\p{{N}}]) )
  | (?P<word> (?:{_LETTER}|\d)(?:{_LETTER}|\d|{_IGNORED})*+ (?: (?:\+{{1,2}}|\#)(?![+\#\p{{L}}\p{{N}}]) )? )
  | (?P<sign> [[\p{{Sc}}\p{{Sm}}\u00b0\u2030%]--[|~<>]] )
    """,
    regex.VERBOSE | regex.VERSION1,
)
_THOUSANDS: Final = regex.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ONE_NUMBER: Final = regex.compile(r"\d+|\d+\.\d+|\d+,\d{1,2}|\d{1,3}/\d{1,3}|\d{1,2}:\d{2}")
_SAME: Final = {
    0x2212: "-",  # minus
    0x066A: "%",
    0x066B: ".",  # Arabic decimal and thousands separators
    0x066C: ",",
}
_HANGUL: Final = regex.compile(r"\p{Hangul}")
_PARTICLE: Final = regex.compile(f"(?:{PARTICLES})(?:은|는|도|만|의)?")


def _tokens(text: str) -> Iterator[str]:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_SAME)
    # every script's digits are the same numbers
    plain = regex.sub(r"[\p{Nd}--[0-9]]", lambda m: str(unicodedata.decimal(m[0])), plain, flags=regex.VERSION1)
    for match in _TOKEN.finditer(plain):
        if match["number"]:
            yield from _number(match)
        elif match["emoji"]:
            # with and without the selector of its colored form it is the same emoji
            yield match["emoji"].replace("\ufe0f", "")
        elif match["word"]:
            if word := regex.sub(_IGNORED, "", match["word"]):
                yield word
        else:
            yield match[0]


def _number(match: regex.Match[str]) -> Iterator[str]:
    """One number with its sign and unit, wherever they were written; the parts of a date or a list, one by one."""
    digits = match["digits"].replace("\u2044", "/")
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    parts = [digits] if _ONE_NUMBER.fullmatch(digits) else regex.split(r"[.,/:]", digits)
    unit = ((match["before"] or "") + (match["after"] or "")).replace(" ", "")
    parts[0] = (match["minus"] or "") + parts[0]
    parts[-1] += unit
    yield from parts


def words(text: str) -> list[str]:
    """The words of a text in order, without punctuation and without English articles.

    Case is folded and compatible characters are unified (NFKC, digits of all scripts); accents and vowel signs stay,
    because names differ by them. A text of articles only keeps them, so that "The" (the pronoun, the newspaper) is
    still something.
    """
    every = list(_tokens(text))
    kept = [word for word in every if word not in _ARTICLES]
    return kept or every


def exact_match(answer: str, expected: Sequence[str]) -> bool:
    """The answer's words are exactly those of one of the expected answers; no words never match."""
    got = words(answer)
    return bool(got) and any(got == words(item) for item in expected)


def contains(answer: str, expected: Sequence[str]) -> bool:
    """The words of one expected answer stand side by side somewhere in the answer ("man" is not in "Germany").

    A Korean noun counts with the particles that are written onto it.
    """
    got = words(answer)
    return any(_within(got, words(item)) for item in expected)


def _within(got: Sequence[str], want: Sequence[str]) -> bool:
    if not want:
        return False
    *first, last = want
    return any(
        list(got[at : at + len(first)]) == first and _ends(got[at + len(first)], last)
        for at in range(len(got) - len(first))
    )


def _ends(got: str, want: str) -> bool:
    if got == want:
        return True
    tail = got.removeprefix(want)
    return tail != got and _HANGUL.match(want[-1]) is not None and _PARTICLE.fullmatch(tail) is not None


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, counted with multiplicity (0..1).

    Source: SQuAD evaluation, Rajpurkar et al. 2016; LoCoMo's "F1 exact match score" (rose, D.2).
    """
    got, want = words(answer), words(expected)
    if not got or not want:
        return float(got == want)
    common = (Counter(got) & Counter(want)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(got), common / len(want)
    return 2 * precision * recall / (precision + recall)


def best_f1(answer: str, expected: Sequence[str]) -> float:
    """Largest `token_f1` over the expected answers."""
    return max((token_f1(answer, item) for item in expected), default=0.0)
