"""Texts that somebody wrote into a file: read by one rule wherever a setting or an option names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.editing.texts import read_text, spelled_out
from errata.editing.verify import VerifyConfig, held_prompts
from errata.evaluation.preservation.domains import read_domains
from errata.orchestrator.history.bisect import read_probes
from errata.orchestrator.measuring.measurer import read_held_out

READERS: dict[str, Callable[[Path], Any]] = {
    "verify.probes": lambda path: held_prompts(VerifyConfig(probes=path)),
    "text of domain 'news'": lambda path: read_domains({"news": path}),
    "evaluation.held_out": lambda path: read_held_out(str(path)),
    "probe file": read_probes,
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfea", None], ids=["NUL", "other encoding", "no file"])
def test_what_is_no_text_is_refused_in_one_line_that_names_it(what: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "t"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{what} .*/t' cannot be read: ") as caught:
        READERS[what](path)
    assert "\n" not in str(caught.value)


def test_a_mark_at_the_beginning_is_none_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes("\ufeffWhere is Rome?\u2028Here.\nWho?\n".encode())
    assert read_text(tmp_path / "t", "x") == "Where is Rome?\u2028Here.\nWho?\n"
    assert READERS["verify.probes"](tmp_path / "t") == ("Where is Rome?\u2028Here.", "Who?")
    assert READERS["evaluation.held_out"](tmp_path / "t").startswith("Where")


@pytest.mark.parametrize(
    ("template", "said"),
    [("{} is", "Rome is"), ("{{}} of {} is", "{{}} of Rome is"), ("{} and {}", "{} and {}"), ("no slot", "no slot")],
)
def test_a_reader_is_shown_the_subject_in_its_slot_and_braces_that_are_text(template: str, said: str) -> None:
    assert spelled_out(template, "Rome") == said
