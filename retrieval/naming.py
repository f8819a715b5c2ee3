"""Which subjects of the memory a text names: words compared after folding case, accents and possessives.

No model and no vector: a dictionary of the subjects' word sequences, looked up at every place of the text. A
statement whose subject is named is a candidate however little its sentence looks like the question, and a question
that names no subject is as a rule about none of them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import regex

from errata.editing.scripts import spans_of_words

_POSSESSIVE = regex.compile(r"[’'`]s?$")
_STRAIGHT = str.maketrans("’‘`", "'''")
_MARKS = regex.compile(r"[[\p{M}&&[\p{Inherited}\p{Hebrew}\p{Arabic}]]--[\u3099\u309a]]", regex.VERSION1)
"""Accents and points that one may leave out; vowel signs, tones and the strokes that make が of か tell words apart."""
_ENDS = ".!?。！？।॥؟۔\n"
_OF = frozenset({"of", "de", "di", "von"})
_NO_NAMES = frozenset(
    ("a", "an", "and", "as", "at", "but", "by", "for", "from", "he", "her", "his", "if", "in", "is", "it", "its", "of",
     "on", "or", "our", "she", "that", "the", "their", "this", "to", "was")
)  # fmt: skip
"""Words that are no part of a name although a text may capitalize them."""
_CONTINUING = (("and",), ("but",), ("also",), ("what", "about"), ("how", "about"))
"""Beginnings of a turn that goes on with what was spoken of although nothing in it refers."""
_LONGEST = 16
"""Words of a subject that are compared; the rest of a longer one is taken as named with them."""


@dataclass(frozen=True)
class Word:
    """A word of a text: folded, and where it stands."""

    folded: str
    start: int
    stop: int


@dataclass(frozen=True)
class Mention:
    """A place where a text names a subject.

    Attributes:
        start, stop: characters of the text.
        extended: the words there belong to a longer name, such as ``Vienna`` in ``Vienna Philharmonic``: the word
        before
            or behind is capitalized or a number, nothing but a space (or "of") stands between, and it does not open a
            sentence.
    """

    start: int
    stop: int
    extended: bool
    lowered: bool
    """It is written without the capitals of the subject, as ``help`` for ``Help!``."""


def words_of(text: str) -> list[Word]:
    """The words of a text by the rules of its script; case, accents and a possessive ending are folded away."""
    spans = ((fold(_POSSESSIVE.sub("", text[start:stop])), start, stop) for start, stop in spans_of_words(text))
    return [Word(*span) for span in spans if span[0]]


def fold(word: str) -> str:
    """One word without case and accents, its apostrophes straight."""
    plain = unicodedata.normalize("NFKD", word.casefold().translate(_STRAIGHT))
    return unicodedata.normalize("NFC", _MARKS.sub("", plain))


def shared_letters(subject: str, text_words: frozenset[str]) -> float:
    """Share of a subject's letters that stand in words which the text has too, 0 to 1; 0 for a subject without
    words."""
    words = [word.folded for word in words_of(subject)]
    letters = sum(map(len, words))
    return sum(len(word) for word in words if word in text_words) / letters if letters else 0.0


def sentence_around(text: str, start: int, stop: int) -> tuple[int, int]:
    """Span of the sentence of ``text`` in which the characters ``start`` to ``stop`` stand.

    A full stop ends one where a space and no lower-case letter follows and what it closes is no initial.
    """
    begin, end = 0, len(text)
    for at in _sentence_ends(text):
        if at <= start:
            begin = at
        elif at >= stop:
            end = at
            break
    return begin, end


def _sentence_ends(text: str) -> Iterator[int]:
    for match in regex.finditer(r"[.!?।॥؟۔]+[\"”’)]*\s+|[。！？｡]+[\"”’」』）)]*|\n+", text):
        if "." in match[0] and "\n" not in match[0]:
            head, tail = text[: match.start()], text[match.end() :]
            last = regex.search(r"[\w\p{M}]+$", head)
            if (last and len(last[0]) == 1) or (tail and tail[0].islower()):
                continue
        yield match.end()


class SubjectIndex:
    """Subjects by their words; the same subject may belong to many entries. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], dict[int, None]] = {}
        self._key_of: dict[int, tuple[str, ...]] = {}
        self._capitals: dict[int, bool] = {}
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        """Entries whose subject has words."""
        return len(self._key_of)

    def add(self, id: int, subject: str) -> None:
        """Know an entry by its subject; one without letters ("1", an album) is never named: any sum would name it."""
        key = tuple(word.folded for word in words_of(subject))[:_LONGEST]
        if not any(c.isalpha() for word in key for c in word) or id in self._key_of:
            return
        if key not in self._ids:
            self._ids[key] = {}
            self._lengths[len(key)] += 1
        self._ids[key][id] = None
        self._key_of[id] = key
        self._capitals[id] = _has_capitals(subject)

    def remove(self, id: int) -> None:
        """Forget an entry; one that is not known changes nothing."""
        key = self._key_of.pop(id, None)
        if key is None:
            return
        del self._capitals[id]
        del self._ids[key][id]
        if not self._ids[key]:
            del self._ids[key]
            self._lengths[len(key)] -= 1
            if not self._lengths[len(key)]:
                del self._lengths[len(key)]

    def named(self, text: str, *, most: int = 64) -> dict[int, Mention]:
        """Entries whose subject the text names, each with its last mention; longer subjects first, then newer entries.

        Args:
            most: entries returned at most, so that a subject with thousands of facts stays cheap.
        """
        words = words_of(text)
        folded = [word.folded for word in words]
        places: list[tuple[int, int, tuple[str, ...]]] = []
        for length in sorted(self._lengths, reverse=True):
            for at in range(len(folded) - length + 1):
                key = tuple(folded[at : at + length])
                if key in self._ids:
                    places.append((length, at, key))
        mentions: dict[int, Mention] = {}
        for length, at, key in sorted(places, key=lambda place: (-place[0], -place[1])):
            start, stop, extended = _place(text, words, at, length)
            plain = not _has_capitals(text[start:stop])
            for id in sorted(self._ids[key], reverse=True):
                if id not in mentions:
                    if len(mentions) == most:
                        return mentions
                    mentions[id] = Mention(start, stop, extended, plain and self._capitals[id])
        return mentions


_REFERRING = frozenset(
    ("he", "she", "it", "they", "him", "her", "them", "his", "hers", "its", "their", "theirs", "there", "this", "that")
)
_POSSESSIVES = frozenset(("his", "its", "their", "hers", "theirs"))


def resolved(turns: Sequence[str], index: SubjectIndex) -> str:
    """The last turn of a conversation with what it refers to in place of its first referring word.

    A turn that names a subject, or refers to nothing, stays as it is. Otherwise the subject that the latest earlier
    turn names last stands where "he", "its" or "there" stood ("its capital" becomes "France's capital"), or in front of
    the turn where it has no such word but goes on ("And the capital?").

    Args:
        turns: what was said, oldest first; the last one is the user's.
    """
    text = turns[-1]
    if index.named(text):
        return text
    spoken = words_of(text)
    word = next((word for word in spoken if word.folded in _REFERRING), None)
    begun = [word.folded for word in spoken[:2]]
    if word is None and not any(tuple(begun[: len(words)]) == words for words in _CONTINUING):
        return text
    for earlier in reversed(turns[:-1]):
        named = [mention for mention in index.named(earlier).values() if not mention.extended]
        if not named:
            continue
        last = max(named, key=lambda mention: (mention.stop, mention.stop - mention.start))
        name = earlier[last.start : last.stop]
        if word is None:
            return f"{name}: {text}"
        own = word.folded in _POSSESSIVES or (word.folded == "her" and _followed(text, word))
        before, behind = text[: word.start], text[word.stop :]
        return f"{before}{'in ' if word.folded == 'there' else ''}{name}{chr(39) + 's' if own else ''}{behind}"
    return text


def _followed(text: str, word: Word) -> bool:
    """Whether another word follows, so that "her" is a possessive."""
    return any(other.start > word.start for other in words_of(text))


def mention_of(text: str, subject: str) -> Mention | None:
    """The last place where a text names a subject, or None."""
    index = SubjectIndex()
    index.add(0, subject)
    return index.named(text).get(0)


def _place(text: str, words: Sequence[Word], at: int, length: int) -> tuple[int, int, bool]:
    """Start and stop of a mention, and whether a longer name holds it."""
    start, stop = words[at].start, words[at + length - 1].stop
    before = words[at - 1] if at else None
    behind = words[at + length] if at + length < len(words) else None
    begun = start
    if before is not None and before.folded in _OF and at > 1 and _close(text[before.stop : start]):
        before, begun = words[at - 2], before.start
    extended = False
    if before is not None and _close(text[before.stop : begun]):
        opening = not text[: before.start].strip() or text[: before.start].rstrip()[-1:] in _ENDS
        extended = not opening and before.folded not in _NO_NAMES and text[before.start].isupper()
    if behind is not None and _close(text[stop : behind.start]):
        first = text[behind.start]
        extended = extended or (behind.folded not in _NO_NAMES and (first.isupper() or first.isdigit()))
    return start, stop, extended


def _close(gap: str) -> bool:
    """Whether what stands between two words lets them be one name."""
    return gap == "-" or (gap.isspace() and "\n" not in gap)


def _has_capitals(text: str) -> bool:
    return any(c.isupper() for c in text)
