"""What a run says when it has ended: its figures, and what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.editing.request import EditRequest
from errata.orchestrator.cli.main import _print_result
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.rows import JournalMeta
from tests.helpers.sample_report import sample_summary

META = JournalMeta(run_id="r", base_digest="b" * 64, editor_digest="e" * 64, config={})


@pytest.mark.parametrize(
    "rejected, skipped, said",
    [
        (0, 0, []),
        (1, 0, ["1 record rejected: the warnings above say why"]),
        (3, 0, ["3 records rejected"]),
        (0, 2, ["2 questions not asked: the model cannot take them in"]),
        (2, 1, ["2 records rejected", "1 question not asked"]),
    ],
)
def test_rejected_records_are_counted_under_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rejected: int, skipped: int, said: list[str]
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(sample_summary() | {"skipped_probes": skipped}))
    with Journal.create(tmp_path / JOURNAL_FILE, META) as journal:
        journal.accept([EditRequest(id="a", subject="Rome", prompt="{} lies in", target_new="France")])
        for number in range(rejected):
            journal.reject(f"facts.jsonl:{number + 2}", "subject is missing")
    _print_result(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    for line in said:
        assert line in printed
    assert ("rejected:" in printed) == bool(rejected)
    assert ("not asked:" in printed) == bool(skipped)
