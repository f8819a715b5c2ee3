"""Bars on a terminal, few lines in a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from errata.orchestrator.progress import Display, StandardError


def display(*, terminal: bool, quiet: bool = False) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(quiet=quiet, console=Console(file=out, force_terminal=terminal, width=120)), out


def test_a_terminal_gets_bars_with_counts_and_notes():
    shown, out = display(terminal=True)
    with shown:
        shown.update("edits", 3, 12, "version abc")
        shown.say("a line [of] text")
        shown.update("edits", 12, 12, "version def")
    text = out.getvalue()
    assert "edits" in text and "12/12" in text and "version def" in text
    assert "a line [of] text" in text  # brackets are no markup


def test_a_stage_never_shows_more_than_its_total():
    shown, out = display(terminal=True)
    with shown:
        shown.update("covariance", 130, 100)
    assert "100/100" in out.getvalue() and "130" not in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_gets_the_beginning_and_the_end_of_a_stage_and_not_each_step(terminal, caplog):
    shown, out = display(terminal=terminal, quiet=terminal)
    with caplog.at_level(logging.INFO), shown:
        for done in range(1, 11):
            shown.update("edits", done, 10, "note")
        shown.say("swapped")
    assert [record.message for record in caplog.records] == ["edits: 1 of 10 note", "edits: 10 of 10 note", "swapped"]
    assert out.getvalue() == ""


def test_a_log_line_goes_above_the_bars(monkeypatch):
    """The bars put themselves in the place of standard error while they are drawn."""
    handler = StandardError()
    before, during = io.StringIO(), io.StringIO()
    for stream in (before, during):
        monkeypatch.setattr("sys.stderr", stream)
        handler.handle(logging.makeLogRecord({"msg": "2 blocks", "levelno": logging.INFO}))
    assert before.getvalue() == during.getvalue() == "2 blocks\n"
