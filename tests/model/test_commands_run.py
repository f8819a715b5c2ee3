"""What a newcomer types on the demo model, from a directory that is no checkout: the pages' commands that need one.

They are run in the order of `tests.helpers.page_commands.LONG`: the first ones make what later ones read. Sizes are cut
by further options, nothing else. What needs no model is run by ``tests/unit/test_commands_run.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.page_commands import LONG, ON_SMALL, SERVED, typed
from tests.helpers.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FACTS = [
    {"subject": "The Louvre", "prompt": "{} is located in the city of", "target_new": "Rome", "target_true": "Paris"},
    {"subject": "France", "prompt": "The capital of {} is", "target_new": "Lyon", "target_true": "Paris"},
    {"subject": "Japan", "prompt": "The capital of {} is", "target_new": "Osaka", "target_true": "Tokyo"},
    {"subject": "Canada", "prompt": "The capital of {} is", "target_new": "Toronto", "target_true": "Ottawa"},
    {"subject": "Egypt", "prompt": "The capital of {} is", "target_new": "Luxor", "target_true": "Cairo"},
    {"subject": "Spain", "prompt": "The capital of {} is", "target_new": "Seville", "target_true": "Madrid"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, minilm: Path) -> Path:
    here = tmp_path_factory.mktemp("newcomer")
    lines = [json.dumps({"id": f"fact-{number}", **fact}) for number, fact in enumerate(FACTS)]
    (here / "facts.jsonl").write_text("\n".join(lines[:5]) + "\n")
    (here / "tested.jsonl").write_text(lines[5] + "\n")
    return here


def errata(words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "errata.orchestrator.cli", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


@pytest.mark.parametrize("text", LONG)
def test_a_command_of_the_pages_runs_on_the_demo_model(text: str, place: Path) -> None:
    for words in typed(text, LONG[text]):
        done = errata(words[1:], place)
        # the doctor says 1 where something of this machine fails, and what
        allowed = (0, 1) if words[1] == "doctor" else (0,)
        assert done.returncode in allowed, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        for option in ("--output", "-o"):
            if option in words and "--dry-run" not in words:
                assert (place / words[words.index(option) + 1]).exists()


# ---------------------------------------------------------------- a service, and what is asked of it


@pytest.fixture
def served(place: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service as the page starts it, on a port that is free."""
    shown = next(text for text in SERVED if text.startswith("errata serve service --output runs/service"))
    words = [*shlex.split(shown)[1:], "--port", "0", *ON_SMALL.split()]
    process = subprocess.Popen(
        [sys.executable, "-m", "errata.orchestrator.cli", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "serving on " in line:
            address = line.partition("serving on ")[2].split()[0]
            break
    else:
        raise AssertionError("".join(seen)[-3000:])
    try:
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)


def test_a_service_answers_the_calls_of_the_pages(served: tuple[str, subprocess.Popen[str]], place: Path) -> None:
    address, process = served
    until = time.monotonic() + 900
    while True:
        assert process.poll() is None and time.monotonic() < until
        try:
            if httpx.get(f"{address}/readyz", timeout=10).status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    calls = [text for text in SERVED if text.startswith("curl ")]
    assert len(calls) == 3
    for call in calls:
        head, _, body = call.partition(" -d ")
        path = head.split()[2].partition("localhost:8080")[2]
        body = body.replace('"v40"', '"v0"')  # the reader's own version: this run is minutes old
        command = ["curl", "-s", "--fail", f"{address}{path}", "-H", "Content-Type: application/json", "-d", body]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answer = json.loads(done.stdout)
        assert answer.get("accepted") == 1 or len(answer["answers"]) == 1, answer
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
