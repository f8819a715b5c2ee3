"""The commands that the pages show: found in code blocks and in code spans, one per command, with where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")])
    if page.name != "CHANGELOG.md" and "decisions" not in page.parts
]
FIRST_WORDS = ("errata", "make", "kubectl", "helm", "podman", "docker", "pip", "python")
OURS = ("errata", "make")
"""Of these a bare name in a sentence is a command; `ray` or `kind` there is a word like any other."""
FIRST_WORDS += ("curl", "git", "k", "kind", "mlflow", "openssl", "pytest", "ray", "redis-cli")
_FENCE = re.compile(r"^(```+|~~~+)\s*(\S*)")
_SPAN = re.compile(r"(?<!`)(?:``?)([^`\n]+(?:\n[^`\n]+)?)(?:``?)(?!`)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")


@dataclass(frozen=True)
class Shown:
    """One command of a page."""

    page: Path
    line: int
    words: tuple[str, ...]
    whole: bool
    """In a block of its own: to be typed as it stands. Otherwise mentioned in a sentence, perhaps in part."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {' '.join(self.words)}"


def commands_of(page: Path) -> list[Shown]:
    """Every command of a page, in order."""
    found: list[Shown] = []
    text = page.read_text(encoding="utf-8")
    prose: list[str] = []
    for line, content, block in _lines(text):
        if block:
            found += [Shown(page, line, words, True) for words in split(content)]
        prose.append("" if block else content)
    for span in _SPAN.finditer("\n".join(prose)):
        content = span[1].replace("\n", " ")
        line = "\n".join(prose)[: span.start()].count("\n") + 1
        found += [Shown(page, line, words, False) for words in split(content) if len(words) > 1 or words[0] in OURS]
    return found


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number, content, whether in a block) of each line; lines that go on with a backslash are one."""
    fence, indented, shell = None, False, True
    before = ""
    joined, begun = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        mark = _FENCE.match(line.strip())
        if fence is None and mark:
            fence, shell = mark[1], mark[2] in ("", "sh", "bash", "console", "shell")
            yield number, "", True
        elif fence is not None and line.strip() == fence:
            fence = None
            yield number, "", True
        else:
            if fence is None:
                indented = line.startswith("    ") and (indented or not before.strip())
            block = fence is not None or indented
            if block and (fence is None or shell):
                joined, begun = joined + line.strip().removesuffix("\\"), begun or number
                if line.rstrip().endswith("\\"):
                    yield number, "", True
                else:
                    yield number, joined, True
                    joined, begun = "", 0
            else:
                yield number, "" if block else line, block
        before = line


def split(content: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of shell: comments left out, split at `&&`, `|` and `;`, brackets of options taken off."""
    try:
        lexer = shlex.shlex(content.strip().removeprefix("$ "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
    except ValueError:
        return
    part: list[str] = []
    told = False
    for word in [*words, ";"]:
        if word and set(word) <= set("&|;"):
            if (plain := _plain(part)) and plain[0] in FIRST_WORDS:
                yield plain
            part, told = [], False
        elif word in (">", ">>", "<"):
            told = True  # where it goes, no word of the command
        elif not told:
            part.append(word)


def _without_brackets(word: str) -> str:
    """A word of what is optional, `[--set` or `KEY=VALUE]`; brackets of its own stay: `errata-llm[eval]`, `x=[1]`."""
    word = word.removeprefix("[")
    return word.removesuffix("]") if word.count("]") > word.count("[") else word


def _plain(words: list[str]) -> tuple[str, ...]:
    """Without assignments in front, and with what is optional taken as given: `[--set KEY=VALUE]`, `A B [C ...]`."""
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    stripped = [_without_brackets(word) for word in words]
    kept = []
    for word in stripped:
        if word not in ("...", "…", "") or (kept and kept[-1].startswith("--")):
            kept.append(word if word in ("...", "…") else word.removesuffix("..."))
    return tuple(kept)
