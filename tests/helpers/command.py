"""The command line called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from errata.orchestrator.cli import main

Command = Callable[..., tuple[int, str, str]]


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: str) -> Command:
    """Calls ``errata`` with arguments as on a shell, ``first`` before them; exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["errata", *first, *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        else:
            code = 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
