"""Judging the answers of a finished run again."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from errata.evaluation.judge import Case
from errata.orchestrator.cli import main
from errata.orchestrator.journal import JOURNAL_FILE
from errata.orchestrator.measuring.judging import judge_again
from errata.orchestrator.report.summary import FactRecord, ProbeAnswer, ProbeRecord, write_facts


def probe(kind: str, prompt: str, expected: str, **said: str) -> ProbeRecord:
    arms = {arm: ProbeAnswer(answer=answer, ok=False) for arm, answer in said.items()}
    return ProbeRecord.model_validate({"kind": kind, "prompt": prompt, "expected": (expected,), "arms": arms})


FACTS = [
    FactRecord(
        id="a", subject="Ada", prompt="{} lives in", target_new="Rome", sequence=1,
        probes=(
            probe("edit", "Ada lives in", "Rome", base="Paris", edited="Rome, I think"),
            probe("paraphrase", "Ada's home is", "Rome", base="Rome", edited="Rome"),
            probe("paraphrase", "Ada stays in", "Rome", base="the eternal city", edited="Oslo"),
            probe("neighborhood", "Bob lives in", "Bonn", base="Bonn", edited="Bern"),
        ),
    ),
    FactRecord(
        id="b", subject="Bea", prompt="{} speaks", target_new="Greek", sequence=2,
        probes=(
            probe("edit", "Bea speaks", "Greek", base="", edited="greek"),
            probe("paraphrase", "Bea talks in", "Greek", base="Greek", edited="Latin"),
        ),
    ),
]  # fmt: skip


class Lenient:
    """Takes a description for the name; remembers what it was asked."""

    name = "lenient"

    def __init__(self) -> None:
        self.asked: list[Case] = []

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        self.asked += cases
        return [c.expected[0].lower() in c.answer.lower() or "eternal" in c.answer for c in cases]


def test_figures_are_means_over_facts_and_agreement_is_over_answers() -> None:
    judge = Lenient()
    found = judge_again(FACTS, judge)
    figures = {(row.arm, row.metric): row for row in found.figures}
    base = figures["base", "generalization_gen"]
    assert (base.by_strings, base.by_judge, base.questions) == (0.75, 1.0, 3)  # (1/2 + 1) / 2 and (1 + 1) / 2
    assert base.agreement.share == pytest.approx(2 / 3)
    edited = figures["edited", "generalization_gen"]
    assert (edited.by_strings, edited.by_judge) == (0.25, 0.25)
    assert figures["edited", "reliability"].by_judge == 1.0
    assert ("base", "portability") not in figures and {row.arm for row in found.figures} == {"base", "edited"}
    assert found.overall is not None and (found.overall.cases, found.overall.share) == (10, pytest.approx(0.9))
    # "Ada's home is": "Rome" from both arms is one case; the neighborhood is nobody's to judge
    assert len(judge.asked) == 9 and all(case.question != "Bob lives in" for case in judge.asked)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / JOURNAL_FILE).touch()
    write_facts(tmp_path / "facts.jsonl", FACTS)
    return tmp_path


def errata(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["errata", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_and_keeps_what_a_string_judge_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errata(monkeypatch, "judge", "--run", str(run), "--by", "exact", "--output", str(run / "j.json")) == 0
    printed = capsys.readouterr().out
    assert "agreement with containment over 10 answers: 0.900, Cohen's kappa" in printed  # "Rome, I think"
    kept = json.loads((run / "j.json").read_text())
    assert kept["judge"] == "exact" and kept["overall"]["share"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--by", "llm"], "needs --url and --model"),
        (["--by", "llm", "--url", "ftp://x", "--model", "m"], "must begin with http"),
        (["--by", "f1", "--threshold", "2"], "--threshold 2"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert errata(monkeypatch, "judge", "--run", str(run), *arguments) == 2
    assert said in capsys.readouterr().err


class _Chat(BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        right = "Rome" in body["messages"][-1]["content"].split("Model's answer:")[-1]
        reply = {"choices": [{"message": {"content": "correct" if right else "incorrect"}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Chat)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_chat_model_judges_once_and_what_it_said_is_kept(
    run: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["judge", "--run", str(run), "--url", endpoint, "--model", "m", "--json"]
    _Chat.asked = 0
    assert errata(monkeypatch, *command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["judge"] == "llm:m" and _Chat.asked == 8  # nine cases, of which an empty answer is wrong unasked
    assert errata(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out) == first and _Chat.asked == 8
