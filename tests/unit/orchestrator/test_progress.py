"""Bars on a terminal, few lines in a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from errata.orchestrator.progress import Display, StandardError, duration


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


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def logged(clock: Clock) -> Display:
    return Display(console=Console(file=io.StringIO(), force_terminal=False), clock=clock)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_gets_the_beginning_and_the_end_of_a_stage_and_not_each_step(terminal, caplog):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    shown = Display(quiet=terminal, console=console, clock=clock)
    with caplog.at_level(logging.INFO):
        for done in range(1, 11):
            shown.update("edits", done, 10, "note")
            clock.now += 1
        shown.say("swapped")
    first, last, said = (record.message for record in caplog.records)
    assert first == "edits: 1 of 10 (note)"
    assert last == "edits: 10 of 10, 1/s (note)" and said == "swapped"
    assert out.getvalue() == ""


def test_every_twenty_seconds_a_log_says_what_is_done_how_fast_and_what_is_left(caplog):
    clock = Clock()
    shown = logged(clock)
    with caplog.at_level(logging.INFO):
        shown.update("edits", 0, 120)
        for _ in range(60):
            clock.now += 1
            shown.update("edits", clock.now - 100, 120)
            shown.speak()
    assert [record.message for record in caplog.records] == [
        "edits: 0 of 120",
        "edits: 20 of 120, 1/s, 1 min 40 s left",
        "edits: 40 of 120, 1/s, 1 min 20 s left",
        "edits: 60 of 120, 1/s, 1 min 0 s left",
    ]


@pytest.mark.parametrize(("alive", "lines"), [(True, 4), (False, 1)])
def test_a_stage_in_which_nothing_is_counted_for_long_is_not_silent_if_it_is_at_work(alive, lines, caplog):
    """The last evaluation is one; a service to which nothing is submitted is none."""
    clock = Clock()
    shown = logged(clock)
    with caplog.at_level(logging.INFO):
        shown.update("final evaluation", 0, 130, alive=alive)
        for _ in range(60):
            clock.now += 1
            shown.speak()
        assert len(caplog.records) == lines
        shown.update("final evaluation", 130, 130)
        clock.now += 60
        shown.speak()
    assert len(caplog.records) == lines + 1, "what is done says nothing more"
    if alive:
        assert caplog.records[1].message == "final evaluation: 0 of 130, 20 s so far"


def silences(caplog: pytest.LogCaptureFixture, clock: Clock, shown: Display, seconds: int) -> list[str]:
    """What a log says while seconds pass in which nothing is counted."""
    before = len(caplog.records)
    for _ in range(seconds):
        clock.now += 1
        shown.speak()
    return [record.message for record in caplog.records[before:]]


def test_who_is_at_work_is_never_silent_for_more_than_twenty_seconds(caplog, monkeypatch):
    """A model that loads counts nothing, a batch takes a minute, and the last figures are sent to a slow store."""
    monkeypatch.setattr("errata.orchestrator.progress._BEAT_SECONDS", 1e6)
    clock = Clock()
    shown = logged(clock)
    with caplog.at_level(logging.INFO), shown:
        assert silences(caplog, clock, shown, 45) == ["at work, 20 s so far", "at work, 40 s so far"]
        shown.begin("loading the editor")
        assert silences(caplog, clock, shown, 60) == [f"loading the editor, {t} s so far" for t in (20, 40)] + [
            "loading the editor, 1 min 0 s so far"
        ]
        shown.update("edits", 10, 40)
        clock.now += 10
        shown.update("edits", 20, 40)
        said = silences(caplog, clock, shown, 40)
        assert said == ["edits: 20 of 40, 30/min, 40 s left", "edits: 20 of 40, 15/min, 1 min 20 s left"]
        with shown.working(False):
            assert silences(caplog, clock, shown, 60) == [], "an endless stream brings nothing"
        shown.update("edits", 40, 40)
        assert silences(caplog, clock, shown, 25) == ["at work, 20 s so far"]
    assert silences(caplog, clock, shown, 60) == [], "it has ended"


def test_a_service_speaks_while_it_writes_and_not_while_it_waits(caplog, monkeypatch):
    monkeypatch.setattr("errata.orchestrator.progress._BEAT_SECONDS", 1e6)
    clock = Clock()
    shown = Display(quiet=True, console=Console(file=io.StringIO(), force_terminal=False), clock=clock)
    with caplog.at_level(logging.INFO), shown:
        assert silences(caplog, clock, shown, 60) == []
        with shown.working():
            assert silences(caplog, clock, shown, 25) == ["at work, 20 s so far"]
        assert silences(caplog, clock, shown, 60) == []


def test_what_is_done_without_a_count_is_told_with_its_time_and_gives_way_to_stages():
    clock = Clock()
    shown = Display(quiet=True, console=Console(file=io.StringIO(), force_terminal=False), clock=clock)
    with shown:
        assert shown.under_way() == []
        with shown.working():
            shown.begin("loading the editor")
            clock.now += 75
            told = {"name": "loading the editor", "done": 0.0, "total": 0.0, "note": "1 min 15 s so far"}
            assert shown.under_way() == [told]
            shown.update("covariance", 10, 100, "310 tokens/s")
            assert [one["name"] for one in shown.under_way()] == ["covariance"]
            shown.update("covariance", 100, 100)
            assert shown.under_way()[0]["total"] == 0
        assert shown.under_way() == []


def test_a_resumed_stage_counts_its_rate_from_where_it_began(caplog):
    clock = Clock()
    shown = logged(clock)
    with caplog.at_level(logging.INFO):
        shown.update("edits", 1000, 1100)
        clock.now += 20
        shown.update("edits", 1010, 1100)
    assert caplog.records[-1].message == "edits: 1010 of 1100, 30/min, 3 min 0 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_log_line_goes_above_the_bars(monkeypatch):
    """The bars put themselves in the place of standard error while they are drawn."""
    handler = StandardError()
    before, during = io.StringIO(), io.StringIO()
    for stream in (before, during):
        monkeypatch.setattr("sys.stderr", stream)
        handler.handle(logging.makeLogRecord({"msg": "2 blocks", "levelno": logging.INFO}))
    assert before.getvalue() == during.getvalue() == "2 blocks\n"
