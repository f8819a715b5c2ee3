"""What a script asks of texts: where words end, whether a space stands between two pieces, what ends a sentence.

Chinese, Japanese, Thai and their like put no space between words; the others do. A word is made of letters, their
combining marks, digits and the underscore. See docs/decisions/0012-texts-and-identity.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import regex

_UNSPACED: Final = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Bopomofo}\p{Script=Thai}\p{Script=Lao}"
    r"\p{Script=Khmer}\p{Script=Myanmar}\p{Script=Tibetan}\p{Block=CJK_Symbols_And_Punctuation}"
    r"\p{Block=Halfwidth_And_Fullwidth_Forms}]"
)
SINGLE: Final = (
    r"\p{Han}\p{Hiragana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{New_Tai_Lue}\p{Tai_Le}"
)
"""Scripts without spaces between words, as a character set of `regex`: each character with its marks counts as a word.
Katakana, whose runs are words, is none."""
KATAKANA: Final = r"\p{Katakana}\u30fc"
_WORD: Final = regex.compile(
    rf"(?=[{SINGLE}])\X|[{KATAKANA}](?:[{KATAKANA}]|\p{{M}})*+"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}]--[{SINGLE}{KATAKANA}]]++(?:[’'`][[\p{{L}}\p{{M}}\p{{N}}]--[{SINGLE}{KATAKANA}]]++)*+",
    regex.VERSION1,
)
_GLUED: Final = regex.compile(r"\p{Script=Hangul}")
"""Korean writes spaces between words, and its particles onto the word before them."""
PARTICLES: Final = (
    "은|는|이|가|을|를|의|에|에서|에게|께서|한테|로|으로|와|과|랑|이랑|도|만|까지|부터|처럼|보다|이나|나|이고|이며"
    "|이?(?:다|라고|라는|란)|인|입니다|이에요|예요|이었다|였다|이었습니다|였습니다"
)
"""What Korean writes onto the end of a noun: particles of case and topic, forms of the copula; of a pattern."""
_PARTICLE: Final = regex.compile(rf"(?<=\p{{Hangul}}{{2}})(?:{PARTICLES})$")
_IN_WORD: Final = regex.compile(r"[\p{L}\p{M}\p{N}_]")
_ENDED: Final = regex.compile(r"[.!?。！？｡।॥؟۔…]['\"”’»」』）)]*$")
_SIGN: Final = regex.compile(r"[.!?。！？｡।॥؟۔…]+['\"”’»」』）)]*")
_ABBREVIATIONS: Final = frozenset(
    {"St", "Dr", "Mr", "Mrs", "Ms", "Prof", "Rev", "Gen", "Col", "Sgt", "Lt", "Capt", "Sen", "Rep", "Gov", "Hon", "Jr"}
    | {"Sr", "Mt", "Ft", "No", "vs", "etc", "approx", "cf", "ca", "e.g", "i.e"}
)
_STOPS: Final = (
    (regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Bopomofo}]"), "。"),
    (regex.compile(r"\p{Script=Devanagari}"), "।"),
    (regex.compile(r"[\p{Script=Thai}\p{Script=Lao}]"), ""),
)


def is_unspaced(character: str) -> bool:
    """Whether the character belongs to a script (or its punctuation) that puts no space between words."""
    return _UNSPACED.match(character) is not None


def spans_of_words(text: str) -> Iterator[tuple[int, int]]:
    """Where words begin and end. An apostrophe inside is part of a word; what Korean writes onto a noun is a word."""
    for match in _WORD.finditer(text):
        start, stop = match.span()
        cuts = [stop]
        while (particle := _PARTICLE.search(text, start, cuts[-1])) is not None:
            cuts.append(particle.start())
        for stop in reversed(cuts):
            yield start, stop
            start = stop


def space_before(text: str) -> str:
    """What stands between a text and what ``text`` continues: nothing where its script has no spaces, else one."""
    return "" if text and is_unspaced(text[0]) else " "


def joined(before: str, after: str) -> str:
    """Two texts as one, the second going on with the first."""
    if not before or before[-1].isspace():
        return before + after
    return before + space_before(after) + after


def sentence(text: str) -> str:
    """The text with the sign that ends a sentence in the script of its last letter, unless it has one."""
    if _ENDED.search(text):
        return text
    last = next((character for character in reversed(text) if _IN_WORD.match(character)), "")
    return text + next((stop for letters, stop in _STOPS if letters.match(last)), ".")


def first_sentence(text: str) -> str:
    """The text up to its first end of a sentence; all of it where it has none.

    What completes a sentence has said it by then: a small model goes on with whatever it has seen before.
    """
    return text[: next(_ends(text), len(text))]


def whole_sentences(text: str) -> str:
    """The text up to its last end of a sentence; all of it where it has none."""
    return text[: max(_ends(text), default=len(text))]


def _ends(text: str) -> Iterator[int]:
    """Where sentences end: behind the sign and what closes with it. A point in a number, an abbreviation or behind an
    initial ends none, nor does one that small letters follow."""
    for sign in _SIGN.finditer(text):
        after = text[sign.end() :]
        if sign[0][0] == ".":
            word = regex.search(r"[\p{L}\p{M}.]*$", text[: sign.start()])
            short = word is not None and (word[0] in _ABBREVIATIONS or regex.search(r"(^|\.)\p{Lu}$", word[0]))
            if (short and after.strip()) or regex.match(r"\s*\p{Ll}", after):
                continue
        if not after or after[0].isspace() or is_unspaced(sign[0][0]):
            yield sign.end()


def find_word(text: str, word: str) -> int:
    """Index of the last place where ``word`` stands as whole words, -1 where it nowhere does.

    Beside a script without spaces any place will do, and so it will before a Korean particle.
    """
    at = text.rfind(word)
    while word and at >= 0:
        end = at + len(word)
        after = text[end : end + 1]
        particle = _GLUED.match(word[-1]) is not None and _GLUED.match(after) is not None
        if _border(text[at - 1 : at], word[0]) and (particle or _border(word[-1], after)):
            return at
        at = text.rfind(word, 0, end - 1)
    return -1


def _border(left: str, right: str) -> bool:
    """Whether a word may end between two neighbors; a combining mark never begins one."""
    if not left or not right:
        return True
    if regex.match(r"\p{M}", right):
        return False
    if not _IN_WORD.match(left) or not _IN_WORD.match(right):
        return True
    return is_unspaced(left) or is_unspaced(right)
