"""The words of sources, messages, help, docs and pages: American spelling, and nothing that was taken out for being a
riddle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("orchestrator", "actors", "evaluation", "retrieval", "editing", "errata", "benchmarks", "tests", "docs")
FOLDERS += ("configs", "examples", "k8s", "requirements")
TYPES = {".py", ".md", ".j2", ".js", ".css", ".html", ".yaml", ".yml", ".toml", ".cff", ".ipynb", ".sh"}
NOT_OURS = ("tests/assets/", "configs/text/", "configs/streams/", "docs/images/", "retrieval/router_facts.py")
"""Recorded files and data: their words are somebody else's, or are known by their digest."""

_IZE = [
    "local",
    "materi",
    "material",
    "maxim",
    "memor",
    "minim",
    "neutral",
    "normal",
    "optim",
    "organ",
    "orthogonal",
    "parallel",
    "parametr",
    "penal",
    "personal",
    "polar",
    "popular",
    "prior",
    "priorit",
    "quant",
    "random",
    "real",
    "recogn",
    "regular",
    "reorgan",
    "revital",
    "scrutin",
    "serial",
    "special",
    "stabil",
    "standard",
    "stand",
    "steril",
    "subsid",
    "summar",
    "symbol",
    "symmetr",
    "synchron",
    "token",
    "util",
    "vector",
    "visual",
    "vocal",
]
BRITISH = re.compile(
    r"(?:"
    + "|".join(
        [
            rf"(?:un|re|de|mis|non|dis)?(?:{'|'.join(_IZE)})is(?:e|ed|es|er|ers|ing|ation|ations|able)",
            r"(?:neighb|behavi|col|fav|hon|lab|rum|flav|harb|vig|hum)our\w*",
            r"(?:dis)?(?:label|travel|model|signal|channel|journal|fuel|level|marshal|equal|tunnel)l(?:ed|ing|er|ers)",
            r"cancell(?:ed|ing)",
            r"centre[sd]?",
            r"(?:kilo|centi)?metres?",
            r"analys(?:e|ed|es|ing)",
            r"(?:licen|defen|offen|preten)ces?",
            r"judgement\w*",
            r"artefacts?",
            r"catalogues?",
            r"(?:mis)?spelt",
            r"learnt|burnt|whilst|amongst|towards|grey|programmes?|fulfils?|skilful|ageing|per cent",
        ]
    )
    + r")",
    re.IGNORECASE,
)
WORDS = re.compile(r"[A-Za-z]+")
ALLOWED = {
    # values and names that others gave, or that configurations, data sets and runs hold
    "neighbours": r"selection|\"neighbours\"|`neighbours`",
    "cancelled": r"\.cancelled\(\)|set_running_or_notify_cancel|asyncio",
}
GONE = {
    "2 blocks on 1 nodes, 0 of them again": r"of them again\b",
    "asked: 1 of 1 at 7 edits": r"asked: [{\d].* of .* at [{\d]",
    "Put benchmarks to versions of a run": r"Put benchmarks\b",
    "Interface; other than loopback only with tokens": r"other than loopback\b",
    "whoever reads it seems to die of it": r"seems to\s+die\b",
    "the question explains 0.98 of the subject": r"question explains [{\d]|explains [{\d][^ ]* of (?:the|it)",
}
"""Examples of riddles, and what they are known by."""


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(path, text) of every file that somebody reads; this one excepted, which quotes what it forbids."""
    return tuple(_read())


def _read() -> Iterator[tuple[str, str]]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in TYPES]
    files += [path for path in ROOT.iterdir() if path.suffix in TYPES or path.name in ("Makefile", "Containerfile")]
    for path in sorted(set(files)):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and path != Path(__file__) and not name.startswith((*NOT_OURS, "errata/_")):
            if "/" in name and (ROOT / name.split("/")[0] / name.split("/")[1]).is_symlink():
                continue  # errata/ROOM is the room
            yield name, path.read_text(encoding="utf-8")


@cache
def is_british(word: str) -> bool:
    return BRITISH.fullmatch(word) is not None


def british(line: str) -> list[str]:
    """Words of a line in British spelling; parts of names count, as in ``normalise_rows`` or ``CentredRows``."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line.replace("_", " "))
    candidates = [*WORDS.findall(split), *(["per cent"] if re.search(r"\bper cent\b", split) else [])]
    return [
        word
        for word in candidates
        if is_british(word) and not re.search(ALLOWED.get(word.lower(), r"(?!)"), line, re.IGNORECASE)
    ]


def test_one_spelling() -> None:
    wrong = [
        f"{name}:{number}: {word}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        for word in british(line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("example", GONE)
def test_riddles_stay_gone(example: str) -> None:
    assert re.search(GONE[example], example), "the pattern knows its example"
    found = [name for name, text in texts() if name != "CHANGELOG.md" and re.search(GONE[example], text)]
    assert not found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("def normalise_rows(colours):", ["normalise", "colours"]),
        ("a modelled neighbour behaves towards the centre", ["modelled", "neighbour", "towards", "centre"]),
        ("class LabelledRows: ...  # 5 per cent", ["Labelled", "per cent"]),
        ("otherwise a promise, an exercise and a surprise are advised; the tortoise supervises", []),
        ("the model's neighborhood, its color and its center", []),
        ('selection: Literal["neighbours", "single"]', []),
        ("if future.cancelled():", []),
        ("the call was cancelled", ["cancelled"]),
    ],
)
def test_the_list_knows_them(line: str, words: list[str]) -> None:
    assert british(line) == words


NOUNS = "edit|fact|version|file|commit|batche|node|block|arm|record|evaluation|run|model|request|server|layer|worker"
NEVER_ONE = {
    "orchestrator/history/log.py": "start with",
    "orchestrator/journal/versions.py": "start with",
    "actors/reduction.py": "subtree of",
    "evaluation/uncertainty.py": "_LEVEL_TEXTS",
    "orchestrator/journal/records.py": "the refresh triggered at",
}
"""Numbers that are never one, or that nobody reads: the file, and what the line is known by."""


def without_singular(line: str) -> bool:
    """Whether a number stands before a plural that is written out: ``1 edits`` is no English; `counted` knows both."""
    return re.search(rf"\{{[^{{}}]+\}} (?:old |stored |further )?(?:{NOUNS})s\b", line) is not None


def test_numbers_of_things_know_the_singular() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        if name.endswith(".py") and name.split("/")[0] in FOLDERS[:6]
        for number, line in enumerate(text.splitlines(), start=1)
        if without_singular(line) and not (name in NEVER_ONE and NEVER_ONE[name] in line)
    ]
    assert not wrong, "\n".join(wrong)
    assert without_singular('say(f"{len(edits)} edits erased")') and without_singular("{n} stored files, {m} bytes")
    assert not without_singular("""say(f"{counted(n, 'edit')} erased")""")


def test_every_file_is_looked_at() -> None:
    names = {name for name, _ in texts()}
    assert {
        "README.md",
        "Makefile",
        "docs/metrics.md",
        "editing/values.py",
        "orchestrator/report/template.html.j2",
    } <= names
    assert len(names) > 500 and not any(name.startswith("errata/editing") for name in names)
