"""A judge of its own, a bounded final evaluation and free texts in a run: what reaches summary, timeline and tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from errata.orchestrator.config.loading import build_config
from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.tables import compare
from errata.orchestrator.experiments.text import to_markdown
from errata.orchestrator.report.summary import read_facts, read_summary
from tests.integration.harness import go, settings


@pytest.fixture
def judge() -> Iterator[tuple[str, list[str]]]:
    """A chat model that finds every answer right but those to prompts with "is" in them; its URL and what it read."""
    read: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            read.append(text)
            verdict = "incorrect" if " is\n" in text else "correct"
            answer = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", read
    server.shutdown()
    server.server_close()


def test_judge_sample_and_free_texts_reach_everything(
    tiny_checkpoint: Path, stream: Path, tmp_path: Path, judge: tuple[str, list[str]]
) -> None:
    url, read = judge
    evaluation = {
        "judge": {"type": "llm", "endpoint": {"base_url": url, "model": "oracle", "parallel": 1}},
        "final": 3,
        "free_text": {"facts": 2, "max_new_tokens": 8},
        "held_out": None,
    }
    plain = settings(tiny_checkpoint, stream, evaluation=evaluation, refresh={"every": None})
    go(build_config(plain), tmp_path / "run")

    summary = read_summary(tmp_path / "run" / "summary.json")
    facts = list(read_facts(tmp_path / "run" / "facts.jsonl"))
    assert summary.judge == "llm:oracle" and summary.facts_measured == len(facts) == 3 < summary.edits_applied
    # one of each third of the stream
    assert len({fact.sequence for fact in facts}) > 1
    edited = summary.arms["edited"]
    asked = [probe for fact in facts for probe in fact.probes]
    assert read and {said.right for probe in asked for said in probe.arms.values()} <= {True, False}
    for fact in facts:
        for probe in fact.probes:
            for said in probe.arms.values():
                want = bool(said.answer.strip()) and not probe.prompt.endswith(" is")
                assert said.right == want
                assert said.ok == want if probe.kind != "neighborhood" else True
    assert edited.locality_true is not None and edited.specificity_exact is not None and edited.locality_tf is not None
    assert summary.arms["base"].locality_tf == 1.0
    assert edited.specificity_exact <= edited.specificity
    low, high = summary.intervals["edited"]["reliability"]
    assert low <= edited.reliability <= high
    assert edited.fluency is not None and edited.fluency_star is not None
    assert summary.arms["base"].fluency_star == pytest.approx(1.0)
    # the verdicts are kept, and the timeline asks about all of its facts
    assert (tmp_path / "run" / "judged.jsonl").read_text().count("\n") == len(set(read))
    last = summary.timeline[-1]
    assert last.facts == summary.timeline[0].facts and last.arms["edited"].locality_true is not None
    assert last.arms["edited"].fluency is None

    table = to_markdown(compare(collect([tmp_path / "run"]), only=["reliability", "locality_true", "fluency"]))
    assert "[" in table and "over the facts that were asked about" in table
    assert "judged by llm:oracle" in table.replace("\\", "") and "answer_contains 2" in table.replace("\\", "")


def test_a_judge_whose_key_is_not_set_is_said_before_anything_starts(
    tiny_checkpoint: Path, stream: Path, tmp_path: Path
) -> None:
    from errata.editing.errors import UserError

    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "NO_SUCH_KEY_HERE"}
    plain = settings(tiny_checkpoint, stream, evaluation={"judge": {"type": "llm", "endpoint": endpoint}})
    with pytest.raises(UserError, match="NO_SUCH_KEY_HERE"):
        go(build_config(plain), tmp_path / "run")
    assert not (tmp_path / "run" / "journal.sqlite").exists()
