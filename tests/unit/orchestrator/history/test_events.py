"""What the guard and publications have done stands in the log between the commits where it happened."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from errata.editing.request import EditRequest
from errata.orchestrator.history.log import History
from errata.orchestrator.history.text import log_lines, plain
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome

CHECK = {"sequence": 1, "kept": 0.5, "ratio": 1.5, "good": True, "reasons": [], "paused": None, "reverting": []}


def test_events_stand_where_they_happened(tmp_path: Path) -> None:
    seconds = count()
    clock = lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(seconds))
    with Journal.create(tmp_path / "j.sqlite", JournalMeta("r", "b" * 64, "e" * 64, {}), clock=clock) as journal:
        for sequence in (1, 2):
            name = f"e{sequence}"
            journal.accept([EditRequest(id=name, subject=name, prompt="{} is", target_new="x")])
            journal.commit(CommitData(sequence, (RequestOutcome(name, True),), delta=f"{sequence:064x}"))
            if sequence == 1:
                journal.record_event("guard", {"what": "baseline", "key": "k", "answers": [], "perplexity": 1.0})
                journal.record_event("guard", {"what": "check", **CHECK})
                place = {"sequence": 1, "version": "a", "server": "http://a"}
                journal.record_event("publication", {"what": "loading", **place})
                journal.record_event("publication", {"what": "switched", **place})
        bad = {
            **CHECK,
            "sequence": 2,
            "good": False,
            "reasons": ["too much\x1b[2J"],
            "paused": "v2",
            "reverting": ["e2"],
        }
        journal.record_event("guard", {"what": "check", **bad})
        journal.record_event("guard", {"what": "reverted", "sequence": 3, "to": 1, "requests": ["e2"]})
        journal.record_event("guard", {"what": "resume", "by": "desk 4"})
        journal.record_event("stream_place", {"file": "x"})
        entries = History(journal).log()
    lines = [line.partition("  ")[2] for line in log_lines(entries) if line.startswith("--")]
    assert lines == [
        "guard resumed by desk 4",
        "guard reverted 1 edit: v3 is v1 again",
        "guard BREACH at v2: too much\\x1b[2J (paused, reverting 1 edit)",
        "publication v1 to http://a",
        "guard v1 is good: 50% of the sentinels hold, perplexity 1.5 times the base's",
    ]
    kinds = [entry.entry for entry in entries]
    assert kinds == ["event"] * 3 + ["commit"] + ["event"] * 2 + ["commit"]
    assert '"what": "switched"' in plain(entries)
