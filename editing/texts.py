"""The one gate for texts that come in: what a text may hold, how it is kept, and when two texts name one fact.

The rules, which hold for every text of a request wherever it came from (docs/decisions/0012-texts-and-identity.md):

* half of a surrogate pair and NUL are refused: neither UTF-8 nor SQLite has a form for them;
* white space at the ends, a byte order mark included, is dropped; what stands inside is left as it is;
* a fact is named by its subject and its relation, or its prompt: in Unicode form NFC, trimmed, upper and lower case
  told apart;
* ``{}`` is the subject's slot. It stands once in a prompt; other braces, ``{{}}`` among them, are text. A probe that
  holds it once and does not name the subject is filled.

They are applied when a request is accepted. What is in a journal keeps the texts and the identity it was given.
"""

from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path
from typing import IO, Any, Final, cast

import regex

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.remote import here
from errata.editing.scripts import find_word

SLOT: Final = "{}"
_SLOT: Final = regex.compile(r"(?<!\{)\{\}(?!\})")
_BAD: Final = regex.compile(r"[\x00\ud800-\udfff]")
_ENDS: Final = "\ufeff"


def open_text(path: Path) -> IO[str]:
    """A text file to be read, plain or ``.gz``, in UTF-8 with or without a mark at its beginning.

    Only a line feed ends a line: U+2028 and a lone carriage return may stand in a record.
    """
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline="\n"))
    return path.open(encoding="utf-8-sig", newline="\n")


def read_text(path: str | Path, what: str) -> str:
    """All of a text file that somebody wrote, as it stands, without a mark at its beginning.

    Args:
        path: a file, or a URL that fsspec opens.
        what: names the file in errors, as the setting or option that it was given by.

    Raises:
        UserError: it cannot be read, is not UTF-8, or holds NUL.
    """
    file_here = here(path, what)
    try:
        with open_text(file_here) as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {type(error).__name__}") from error
    bad = _BAD.search(text)
    if bad is not None:
        raise UserError(
            f"{what} {str(path)!r} cannot be read: NUL at character {bad.start()}, which no valid text holds"
        )
    return text


def clean(text: str) -> str:
    """The text as it is kept.

    Raises:
        ValueError: it holds NUL or half of a surrogate pair; the message names the place.
    """
    bad = _BAD.search(text)
    if bad is not None:
        what = "NUL" if bad.group() == "\0" else f"half of a surrogate pair (\\u{ord(bad.group()):04x})"
        raise ValueError(f"holds {what} at character {bad.start()}, which no valid text holds")
    before = None
    while before != text:
        before, text = text, text.strip().strip(_ENDS)
    return text


def clean_all(value: Any, at: str = "") -> Any:
    """`clean` for every text in nested mappings and lists, keys excepted.

    Raises:
        ValueError: a text cannot be kept; the message begins with its place.
    """
    if isinstance(value, str):
        try:
            return clean(value)
        except ValueError as error:
            raise ValueError(f"{at}: {error}" if at else str(error)) from None
    if isinstance(value, dict):
        return {key: clean_all(item, f"{at}.{key}" if at else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(clean_all(item, f"{at}.{number}") for number, item in enumerate(value))
    return value


def slots(template: str) -> list[int]:
    """Where the slot stands; braces that are doubled are text."""
    return [match.start() for match in _SLOT.finditer(template)]


def split_slot(template: str) -> tuple[str, str]:
    """What stands before and after the slot.

    Raises:
        ValueError: the slot does not stand there exactly once.
    """
    places = slots(template)
    if not places and template.count(SLOT) == 1:  # taken by earlier releases, which knew no doubled braces
        places = [template.index(SLOT)]
    if len(places) != 1:
        raise ValueError(f"prompt must contain {SLOT!r} exactly once, got {template!r}")
    return template[: places[0]], template[places[0] + len(SLOT) :]


def fill(template: str, subject: str) -> str:
    """The template with the subject in its slot.

    Raises:
        ValueError: as `split_slot`.
    """
    before, after = split_slot(template)
    return before + subject + after


def spelled_out(template: str, subject: str) -> str:
    """A prompt as a reader is shown it: filled, or as it stands where no slot of it can be."""
    try:
        return fill(template, subject)
    except ValueError:
        return template


def fill_probe(prompt: str, subject: str) -> str:
    """A probe with its slot filled; one that names the subject itself keeps its braces, which are text then."""
    if len(slots(prompt)) != 1 or find_word(prompt, subject) >= 0:
        return prompt
    return fill(prompt, subject)


def template_of(prompt: str, subject: str) -> str:
    """A prompt that spells the subject out, with the slot in its place: the last where it stands as whole words.

    Raises:
        ValueError: the prompt has neither slot nor subject.
    """
    if slots(prompt) and not (SLOT in subject and find_word(prompt, subject) >= 0):
        return prompt
    at = find_word(prompt, subject)
    if at < 0:
        inside = " other than inside another word" if subject and subject in prompt else ""
        raise ValueError(f"prompt {prompt!r} contains neither the slot {SLOT!r} nor the subject {subject!r}{inside}")
    return prompt[:at] + SLOT + prompt[at + len(subject) :]


def fact_identity(subject: str, relation: str) -> str:
    """Names a fact, 16 hexadecimal digits."""
    named = [unicodedata.normalize("NFC", text).strip() for text in (subject, relation)]
    return digest_json(["fact 2", *named])[:16]


def former_identity(subject: str, relation: str) -> str:
    """The name that a fact had in journals of before: case folded, white space and Unicode form as given."""
    return digest_json([subject.casefold(), relation.casefold()])[:16]
