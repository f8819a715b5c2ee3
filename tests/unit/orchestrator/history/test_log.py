"""What the journal tells: facts by version, the log, stories of edits and versions, differences."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.history import text
from errata.orchestrator.history.export import change_norms
from errata.orchestrator.history.log import (
    CommitEntry,
    History,
    RefreshEntry,
    RequestStory,
    SwapEntry,
    VersionStory,
    find_run,
)
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome
from tests.helpers.small_run import LAYERS, SmallRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def history(run: SmallRun) -> History:
    return History(run.journal())


def test_which_facts_a_version_holds(history: History) -> None:
    held = [list(history.held(sequence)) for sequence in range(7)]
    assert held == [
        [],
        ["lyon", "rome"],
        ["lyon", "rome", "angola"],
        ["rome", "angola", "paris"],
        ["rome", "angola", "paris"],
        ["lyon", "rome", "angola"],
        ["lyon", "rome", "angola", "munro"],
    ]


# a program: each step edits one of three facts anew, or takes back one that holds
_STEPS = st.lists(st.tuples(st.sampled_from(["edit", "revert", "refuse"]), st.integers(0, 2)), max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=_STEPS)
def test_held_facts_agree_with_a_plain_dictionary(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        meta = JournalMeta(run_id="r", base_digest="b" * 64, editor_digest="e" * 64, config={})
        holds: dict[int, str] = {}
        replaced: dict[str, str | None] = {}
        want: list[set[str]] = [set()]
        with Journal.create(Path(folder) / "journal.sqlite", meta) as journal:
            for number, (what, fact) in enumerate(steps, 1):
                name = f"e{number}"
                if what == "revert" and fact in holds:
                    older = replaced[holds[fact]]
                    back = (holds.pop(fact),)
                    if older is not None:
                        holds[fact] = older
                    restores = () if older is None else (older,)
                    data = CommitData(number, (), f"{number:064x}", kind="revert", reverts=back, restores=restores)
                else:
                    request = EditRequest(id=name, subject=f"s{fact}", prompt="{} is", target_new=name)
                    journal.accept([request])
                    applied = what != "refuse"
                    if applied:
                        replaced[name], holds[fact] = holds.get(fact), name
                    outcome = RequestOutcome(name, applied, None if applied else "no")
                    data = CommitData(number, (outcome,), f"{number:064x}" if applied else None)
                journal.commit(data)
                want.append(set(holds.values()))
            found = History(journal)
            assert [set(found.held(sequence)) for sequence in range(len(want))] == want


# ---------------------------------------------------------------- the log


def test_the_log_is_newest_first_with_refreshes_and_swaps_between(history: History) -> None:
    entries = history.log()
    order = [e.sequence if isinstance(e, CommitEntry) else e.entry for e in entries]
    assert order == [6, 5, 4, 3, "swap", "refresh", 2, 1, "swap"]
    swap, refresh = entries[4], entries[5]
    assert isinstance(swap, SwapEntry) and isinstance(refresh, RefreshEntry)
    assert (swap.after_sequence, swap.edits, swap.tokens) == (2, 3, 300)
    assert (refresh.triggered_at, refresh.after_sequence, refresh.state) == (3, 2, "swapped")
    assert swap.covariance == refresh.covariance
    assert [e.sequence for e in history.log(2) if isinstance(e, CommitEntry)] == [6, 5]
    assert len(history.log(2)) == 2


def test_a_commit_says_what_became_of_every_request_it_touched(run: SmallRun, history: History) -> None:
    third, fourth, fifth = history.commit(3), history.commit(4), history.commit(5)
    assert [fact.id for fact in third.applied] == ["paris"]
    assert [ending.fact.id for ending in third.superseded] == ["lyon"]
    assert [(e.fact.id, e.reason) for e in third.rejected] == [("odd\x1b[2J", "the subject is unknown")]
    assert third.version == fourth.version == run.versions[3] and fourth.applied == ()
    assert [fact.id for fact in fifth.applied] == ["lyon"] and fifth.kind == "revert"
    assert [ending.fact.id for ending in fifth.reverted] == ["paris"]
    assert (fifth.edits, third.edits) == (4, 4)
    assert sorted(third.norms) == sorted(third.delta_norms) == list(LAYERS)


def test_the_log_as_text_cannot_steer_the_terminal(history: History) -> None:
    lines = list(text.log_lines(history.log()))
    assert all(line.isprintable() for line in lines)
    joined = "\n".join(lines)
    assert r"x no\nbody -> x  [odd\x1b[2J] rejected: the subject is unknown" in joined
    assert "+ France -> Paris  [paris] (later reverted in v5)" in joined
    assert "- France -> Paris  [paris] reverted" in joined
    assert "v5" in joined and "revert" in joined and "triggered at 3 edits: swapped" in joined
    short = list(text.log_lines(history.log(), facts=1))
    assert sum("... and 1 more: errata show v1" in line for line in short) == 1


def test_everything_is_also_json(history: History) -> None:
    log = json.loads(text.plain(history.log()))
    assert [entry["entry"] for entry in log].count("commit") == 6
    assert log[0]["applied"][0]["target"] == "subject" and "T" in log[0]["at"]
    story = json.loads(text.plain(history.show("paris")))
    assert story["fact"]["state"] == "reverted" and [f["state"] for f in story["fates"]][-1] == "reverted"


# ---------------------------------------------------------------- stories


def test_the_story_of_an_edit(history: History) -> None:
    story = history.show("lyon")
    assert isinstance(story, RequestStory)
    assert [(fate.state, fate.sequence) for fate in story.fates] == [
        ("accepted", None),
        ("applied", 1),
        ("superseded", 3),
        ("applied", 5),
    ]
    assert [fact.id for fact in story.batch] == ["lyon", "rome"]
    assert story.commit is not None and story.commit.sequence == 1
    assert story.result is not None and story.result["steps"] == 3
    lines = "\n".join(text.request_lines(story))
    for part in ("edit lyon: applied", "desk 4", "a reader wrote", "superseded in v3", "* France -> Lyon", "loss "):
        assert part in lines


def test_the_story_of_an_edit_that_waits_and_of_a_record_that_was_none(history: History) -> None:
    waiting = history.show("later")
    assert isinstance(waiting, RequestStory) and waiting.commit is None and waiting.batch == ()
    refused = history.show("record:stream.jsonl:9")
    assert isinstance(refused, RequestStory) and refused.reason == "no target"
    assert "rejected: no target" in "\n".join(text.request_lines(refused))


def test_the_story_of_a_version(run: SmallRun, history: History) -> None:
    story = history.show(run.versions[5][:8])
    assert isinstance(story, VersionStory) and story.version.sequence == 5
    assert [fact.id for fact in story.facts] == ["lyon", "rome", "angola"]
    lines = list(text.version_lines(story, facts=2))
    assert lines[0] == f"v5 {run.versions[5]}" and "... and 1 more: use --all" in lines[-1]
    base = history.show("v0")
    assert isinstance(base, VersionStory) and base.commit is None and base.facts == ()
    assert "unedited" in "\n".join(text.version_lines(base))
    head = history.show("head")
    assert isinstance(head, VersionStory) and head.version.sequence == 6


def test_names_that_mean_nothing_or_too_much(history: History, tmp_path: Path) -> None:
    found = history.show("ango")
    assert isinstance(found, RequestStory) and found.fact.id == "angola"
    for name in ("xyz", "ly", "ffffffffffff"):
        with pytest.raises(UserError, match=f"neither an edit nor a version '{name}'"):
            history.show(name)
    with pytest.raises(UserError, match="there is no version v7; the newest is v6"):
        history.show("v7")
    request = EditRequest(subject="Rome", prompt="{} lies in", target_new="Canada")
    with Journal.create(tmp_path / "journal.sqlite", JournalMeta("many", "b" * 64, "e" * 64, {})) as journal:
        journal.accept([request.model_copy(update={"id": f"same-{i}"}) for i in range(9)])
        with pytest.raises(UserError, match=r"9 edits and versions start with 'same': same-0, .*, \.\.\.; give more"):
            History(journal).show("same")


# ---------------------------------------------------------------- differences


def test_the_difference_of_two_versions_and_its_reverse(run: SmallRun, history: History) -> None:
    v1, v3, v6 = (history.versions[i] for i in (1, 3, 6))
    there = history.diff(v1, v3)
    assert [f.id for f in there.gained] == ["angola"] and there.lost == ()
    assert [(old.id, new.id) for old, new in there.superseded] == [("lyon", "paris")]
    assert [swap.after_sequence for swap in there.covariances] == [2]
    back = history.diff(v3, v1)
    assert [f.id for f in back.lost] == ["angola"] and back.gained == ()
    assert [(old.id, new.id) for old, new in back.superseded] == [("paris", "lyon")]
    assert history.diff(v3, v6).covariances == ()
    assert history.diff(v3, history.versions[4]).norms[0][0] == there.norms[0][1]
    base = history.diff(history.versions[0], v1)
    assert [swap.after_sequence for swap in base.covariances] == [0]
    assert base.norms[0][0] is None
    assert "the same facts" in list(text.diff_lines(history.diff(v3, v3)))
    assert any("Lyon -> Paris  [lyon -> paris]" in line for line in text.diff_lines(there))


@pytest.mark.parametrize(("first", "second"), [(0, 2), (0, 6), (6, 1), (3, 4), (2, 5)])
def test_the_norm_of_the_difference_is_that_of_the_matrices(run: SmallRun, first: int, second: int) -> None:
    with run.journal() as journal:
        versions = journal.versions()
        found = change_norms(journal, run.store(), versions[first], versions[second])
    want = {
        layer: float((run.weights[second][layer].double() - run.weights[first][layer].double()).norm())
        for layer in LAYERS
    }
    assert {layer: found.get(layer, 0.0) for layer in LAYERS} == pytest.approx(want, rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------- finding a run


def test_a_run_is_found_by_directory_journal_or_name_and_by_default_the_newest(run: SmallRun, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="there is no run under"):
        find_run(runs=runs)
    for name, age in (("old", 300), ("new", 100), ("older", 900)):
        shutil.copytree(run.directory, runs / name)
        for file in (runs / name).glob("journal.sqlite*"):
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    (runs / "empty").mkdir()
    with Journal.open(runs / "old" / "journal.sqlite", read_only=True) as journal:
        journal.head()  # reading an old run does not make it the newest
    assert find_run(runs=runs) == runs / "new"
    assert find_run("old", runs=runs) == find_run(runs / "old" / "journal.sqlite") == runs / "old"
    with pytest.raises(UserError, match=r"no run in 'empty': want a directory that holds journal\.sqlite"):
        find_run("empty", runs=runs)
