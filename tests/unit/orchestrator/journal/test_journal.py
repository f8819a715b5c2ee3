"""The journal: idempotent acceptance, fates, versions, recovery at every commit point, one writer."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.editing.errors import UserError
from errata.editing.request import EditRequest, Provenance
from errata.orchestrator.journal import Journal, fail_points
from errata.orchestrator.journal.rows import (
    CommitData,
    CovarianceRow,
    JournalMeta,
    RequestOutcome,
    version_digest,
)
from errata.orchestrator.journal.schema import MIGRATIONS, V1, Migration, migrate, schema_version
from tests.helpers.journals import RECORDED, restored
from tests.helpers.processes import PROCESSES

META = JournalMeta(run_id="run-1", base_digest="b" * 64, editor_digest="e" * 64, config={"editor": {"type": "memit"}})


def ask(name: str, subject: str = "France", target: str = "Lyon", relation: str = "capital") -> EditRequest:
    return EditRequest(id=name, subject=subject, prompt="The capital of {} is", target_new=target, relation=relation)


def done(*names: str) -> tuple[RequestOutcome, ...]:
    return tuple(RequestOutcome(name, True, result={"loss": 0.25, "steps": 3}) for name in names)


def states(journal: Journal) -> dict[str, str]:
    return {row.id: row.state for row in journal.requests()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


# -------------------------------------------------------------------- making and opening


def test_a_new_journal_keeps_its_meta_and_syncs_fully(path):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    with Journal.create(path, META, clock=lambda: at) as journal:
        pragmas = [
            journal._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    assert pragmas == ["wal", 2]
    with Journal.open(path, read_only=True) as journal:
        assert (journal.meta.run_id, journal.meta.base_digest) == ("run-1", "b" * 64)
        assert journal.meta.config == {"editor": {"type": "memit"}}
        assert journal.meta.created_at == at
        assert journal.head().sequence == 0 and journal.next_sequence() == 1
        assert journal.head().digest == version_digest("b" * 64)


def test_a_second_run_cannot_be_made_in_the_same_file(path):
    Journal.create(path, META).close()
    with pytest.raises(UserError, match="already holds the journal of a run"):
        Journal.create(path, META)
    assert Journal.exists(path)


def test_what_is_no_journal_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no journal"):
        Journal.open(tmp_path / "absent")
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 10)
    for read_only in (True, False):
        with pytest.raises(UserError, match="is not a journal"):
            Journal.open(tmp_path / "text", read_only=read_only)
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="empty: no run was begun"):
        Journal.open(tmp_path / "empty")
    assert not Journal.exists(tmp_path / "text")
    assert not Journal.exists(tmp_path / "empty")


def test_a_crash_while_the_journal_was_made_leaves_the_place_free(path):
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection)  # tables, but no first row
    connection.close()
    assert not Journal.exists(path)
    with Journal.create(path, META) as journal:
        assert journal.meta.run_id == "run-1"


def test_one_writer_and_any_number_of_readers(path):
    with Journal.create(path, META) as journal:
        with pytest.raises(UserError, match=rf"being written by process {os.getpid()};"):
            Journal.open(path)
        with Journal.open(path, read_only=True) as reader:
            journal.accept([ask("a")])
            assert states(reader) == {"a": "accepted"}
            with pytest.raises(UserError, match="reading only"):
                reader.accept([ask("b")])
    Journal.open(path).close()


def hold(path, opened) -> None:
    """In a process of its own: keep the journal open until killed."""
    with Journal.open(path):
        opened.set()
        threading.Event().wait(60)


def live_until(path, point: str) -> None:
    """In a process of its own: accept and commit, and end without a word at ``point``."""
    os.environ[fail_points.ENVIRONMENT_VARIABLE] = f"{point}:exit"
    journal = Journal.create(path, META)
    journal.accept([ask("a")])
    journal.commit(CommitData(1, done("a"), "1" * 64))


def test_the_lock_is_free_when_its_process_is_killed(path):
    Journal.create(path, META).close()
    opened = PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(path, opened))
    process.start()
    try:
        assert opened.wait(30)
        with pytest.raises(UserError, match=f"process {process.pid};"):
            Journal.open(path)
    finally:
        process.kill()
        process.join()
    Journal.open(path).close()


# -------------------------------------------------------------------- schema


def test_migrations_run_once_in_order_and_entirely_or_not_at_all(path):
    connection = sqlite3.connect(path, isolation_level=None)
    steps = [*MIGRATIONS, Migration("ALTER TABLE meta ADD COLUMN motto TEXT; UPDATE meta SET motto = 'none';")]
    assert migrate(connection, MIGRATIONS) == len(MIGRATIONS)
    assert migrate(connection, steps) == 1
    assert migrate(connection, steps) == 0
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [*steps, Migration("CREATE TABLE half (x); SELECT * FROM nowhere;")])
    assert schema_version(connection) == len(steps)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone()
    connection.close()
    with pytest.raises(UserError, match="use a newer release"):
        Journal.open(path)


def test_a_journal_recorded_by_the_first_release_reads_the_same(path):
    restored(RECORDED / "v1.sql", path)
    with Journal.open(path, read_only=True) as journal:
        assert states(journal) == {
            "a": "superseded", "b": "reverted", "c": "applied", "record:s.jsonl:4": "rejected",
            "d": "rejected",
            "e": "accepted",
        }  # fmt: skip
        assert [version.kind for version in journal.versions()] == ["base", "edit", "edit", "revert"]
        want = version_digest("b" * 64, ["1" * 64, "2" * 64, "3" * 64])
        assert journal.head().digest == want
        assert journal.head().norms == {4: 3.5, 5: None}
        assert journal.covariance_for(2) == "c" * 64


# -------------------------------------------------------------------- acceptance


def test_accepting_is_idempotent_and_keeps_the_order(path):
    with Journal.create(path, META) as journal:
        first = journal.accept([ask("a"), ask("b", "Spain"), ask("a")])
        assert [(answer.seq, answer.duplicate) for answer in first] == [(1, False), (2, False), (1, True)]
        again = ask("b", "Spain").model_copy(update={"provenance": Provenance(who="on call")})
        assert journal.accept([again])[0].duplicate, "who asks may differ between attempts"
        other = journal.accept([ask("a", target="Nice"), ask("c", "Italy")])
        assert other[0].seq is None and "'a' was used before" in (other[0].refused or "")
        assert other[1].seq == 3, "the others of the same call go in"
        assert [row.request for row in journal.pending()] == [ask("a"), ask("b", "Spain"), ask("c", "Italy")]
        assert [row.id for row in journal.pending(2)] == ["a", "b"]
        assert journal.counts().accepted == 3


def test_a_record_that_is_no_request_is_kept_once_with_its_reason(path):
    with Journal.create(path, META) as journal:
        assert journal.reject("s.jsonl:7", "target_new is empty", {"subject": "x", "odd": {1, 2}}).seq == 1
        assert journal.reject("s.jsonl:7", "target_new is empty").duplicate
        assert journal.accept([ask("s.jsonl:7")])[0].seq == 2, "a client's id cannot collide with it"
        row = journal.request("record:s.jsonl:7")
        assert row is not None
        assert (row.state, row.reason, row.fact_key) == ("rejected", "target_new is empty", None)


def test_a_record_that_is_not_unicode_can_be_kept(path):
    with Journal.create(path, META) as journal:
        journal.reject("odd \udfff name", "odd \ud800 reason", {"subject": "lone \ud800 half"})
        row = journal.request("record:odd ? name")
        assert row and (row.reason, row.payload) == ("odd ? reason", {"subject": "lone \ud800 half"})


# -------------------------------------------------------------------- commits


def test_a_version_is_the_hash_of_base_and_deltas_in_order(path):
    plain = hashlib.sha256(("errata version 1\n" + "b" * 64 + "\n" + "1" * 64 + "\n" + "2" * 64 + "\n").encode())
    assert version_digest("b" * 64, ["1" * 64, "2" * 64]) == plain.hexdigest()
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", "Spain")])
        first = journal.commit(CommitData(1, done("a"), "1" * 64))
    with Journal.open(path) as journal:  # the running hash is rebuilt
        second = journal.commit(CommitData(2, done("b"), "2" * 64, norms={4: 2.0}, seconds=1.5))
        assert second.digest == plain.hexdigest() and second.parent == first.digest
        assert (second.edits, second.norms, second.seconds) == (2, {4: 2.0}, 1.5)
        assert journal.versions()[1:] == [first, second]


def test_a_commit_settles_every_request_of_its_batch(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", "Spain"), ask("c", target="Nice"), ask("d", "Italy")])
        journal.commit(
            CommitData(
                1,
                (*done("c"), RequestOutcome("b", False, "subject not in the prompt's tokens")),
                "1" * 64,
                superseded=(("a", "c"),),
            )
        )
        assert states(journal) == {"a": "superseded", "b": "rejected", "c": "applied", "d": "accepted"}
        older, failed, newer = (journal.request(name) for name in "abc")
        assert older and failed and newer
        assert (older.superseded_by, older.applied_in, older.ended_in) == ("c", None, 1)
        assert (failed.reason, failed.ended_in) == ("subject not in the prompt's tokens", 1)
        assert (newer.applied_in, newer.result) == (1, {"loss": 0.25, "steps": 3})
        counts = journal.counts()
        assert (counts.applied, counts.rejected, counts.superseded, counts.accepted) == (1, 1, 1, 1)
        assert counts.requests == 4 and counts.batches == 1


def test_a_later_edit_of_the_same_fact_supersedes_the_applied_one(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", target="Nice")])
        journal.commit(CommitData(1, done("a"), "1" * 64))
        journal.commit(CommitData(2, done("b"), "2" * 64))
        older = journal.request("a")
        assert older and (older.state, older.superseded_by) == ("superseded", "b")
        assert (older.applied_in, older.ended_in) == (1, 2)
        assert [(fate.state, fate.sequence) for fate in journal.fates("a")] == [
            ("accepted", None),
            ("applied", 1),
            ("superseded", 2),
        ]


def test_the_older_request_stays_when_the_newer_one_fails(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", target="Nice")])
        failed = (RequestOutcome("b", False, "diverged", {"loss": float("nan")}),)
        version = journal.commit(CommitData(1, failed, None, superseded=(("a", "b"),)))
        assert states(journal) == {"a": "accepted", "b": "rejected"}
        assert version.digest == journal.base().digest and version.sequence == 1, "no delta, the same version"
        row = journal.request("b")
        assert row and row.result == {"loss": None}


def test_a_revert_is_a_commit_and_brings_back_what_it_had_superseded(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", target="Nice")])
        journal.commit(CommitData(1, done("a"), "1" * 64))
        before = journal.commit(CommitData(2, done("b"), "2" * 64))
        after = journal.commit(CommitData(3, (), "3" * 64, kind="revert", reverts=("b",), restores=("a",)))
        assert states(journal) == {"a": "applied", "b": "reverted"}
        assert after.kind == "revert" and after.parent == before.digest and after.digest != before.digest
        assert after.edits == 2 and after.request_ids == ("b", "a")
        row = journal.request("a")
        assert row and (row.applied_in, row.ended_in, row.superseded_by) == (1, None, None)
        assert journal.accept([ask("b", target="Nice")])[0].duplicate, "the same request again stays reverted"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CommitData(3, done("a"), "1" * 64), "next commit has sequence 2"),
        (CommitData(1, done("a"), "9" * 64), "next commit has sequence 2"),
        (CommitData(2, done("zzz"), "1" * 64), "'zzz' cannot become applied: it is unknown"),
        (CommitData(2, done("a"), "1" * 64), "'a' cannot become applied: it is applied"),
        (
            CommitData(2, (), "1" * 64, kind="revert", reverts=("b",)),
            "'b' cannot become reverted: it is accepted",
        ),
    ],
)
def test_a_commit_that_does_not_fit_leaves_no_trace(path, data, message):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", "Spain")])
        head = journal.commit(CommitData(1, done("a"), "1" * 64))
        assert journal.commit(CommitData(1, done("a"), "1" * 64)) == head, "the same commit again is harmless"
        with pytest.raises(ValueError, match=message):
            journal.commit(data)
        assert journal.head() == head and states(journal) == {"a": "applied", "b": "accepted"}
        assert journal.commit(CommitData(2, done("b"), "2" * 64)).digest == version_digest(
            "b" * 64, ["1" * 64, "2" * 64]
        )


def test_versions_are_found_by_name_number_and_prefix(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a"), ask("b", "Spain")])
        first = journal.commit(CommitData(1, done("a"), "1" * 64))
        journal.commit(CommitData(2, (RequestOutcome("b", False, "no"),), None))
        assert journal.find_version("head").sequence == 2
        assert journal.find_version("v0") == journal.base()
        assert journal.find_version(first.digest[:8]) == first
        for name in ("v3", "v-1", first.digest[:3], "zzzzzz", ""):
            with pytest.raises(UserError, match="there is no version"):
                journal.find_version(name)


# -------------------------------------------------------------------- crashes


def test_the_file_is_as_before_when_a_transaction_is_cut(path):
    with Journal.create(path, META) as journal:
        with fail_points.raise_once("accept_in_transaction"), pytest.raises(fail_points.InjectedCrash):
            journal.accept([ask("a")])
        assert journal.counts().requests == 0
        journal.accept([ask("a")])
        with fail_points.raise_once("commit_in_transaction"), pytest.raises(fail_points.InjectedCrash):
            journal.commit(CommitData(1, done("a"), "1" * 64))
        assert states(journal) == {"a": "accepted"} and journal.next_sequence() == 1
        with fail_points.raise_once("after_commit"), pytest.raises(fail_points.InjectedCrash):
            journal.commit(CommitData(1, done("a"), "1" * 64))
        assert journal.commit(CommitData(1, done("a"), "1" * 64)).edits == 1, "recovery finds it done"


@pytest.mark.parametrize(
    ("point", "want"),
    [
        ("accept_in_transaction", (0, 0)),
        ("after_accept", (1, 0)),
        ("commit_in_transaction", (1, 0)),
        ("after_commit", (1, 1)),
    ],
)
def test_a_process_that_dies_at_a_commit_point_left_all_or_nothing(path, point, want):
    process = PROCESSES.Process(target=live_until, args=(path, point))
    process.start()
    process.join()
    assert process.exitcode == fail_points.EXIT_CODE
    with Journal.open(path) as journal:
        assert (journal.counts().requests, journal.head().sequence) == want
        assert journal.accept([ask("a")])[0].duplicate == (want[0] == 1)


def test_a_full_disk_is_an_error_and_not_half_a_commit(path):
    with Journal.create(path, META) as journal:
        journal.accept([ask("a")])
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            journal.accept([ask(f"r{number}", f"land {number}") for number in range(2_000)])
        journal._connection.execute("PRAGMA max_page_count = 1000000")
        assert states(journal) == {"a": "accepted"}
        journal.commit(CommitData(1, done("a"), "1" * 64))


# -------------------------------------------------------------------- covariances and the rest


def test_swaps_say_which_covariance_a_batch_used(path):
    with Journal.create(path, META) as journal:
        for digest in ("c" * 64, "d" * 64):
            row = CovarianceRow(digest, {"kind": "self"}, 4096, (4, 5), journal.head().digest, f"{digest}.safetensors")
            journal.record_covariance(row)
            journal.record_covariance(row)
        assert [row.layers for row in journal.covariances()] == [(4, 5), (4, 5)]
        assert journal.covariance_for(1) is None
        journal.record_swap(0, "c" * 64, 0)
        journal.accept([ask("a"), ask("b", "Spain")])
        journal.commit(CommitData(1, done("a"), "1" * 64))
        with fail_points.raise_once("swap_in_transaction"), pytest.raises(fail_points.InjectedCrash):
            journal.record_swap(1, "d" * 64, 1)
        journal.record_swap(1, "d" * 64, 1)
        journal.record_swap(1, "d" * 64, 1)
        assert [journal.covariance_for(number) for number in (1, 2, 3)] == ["c" * 64, "d" * 64, "d" * 64]
        with pytest.raises(ValueError, match="after the newest batch 1"):
            journal.record_swap(1, "c" * 64, 1)
        with pytest.raises(ValueError, match="after the newest batch 1"):
            journal.record_swap(5, "c" * 64, 1)
        journal.commit(CommitData(2, done("b"), "2" * 64))
        with pytest.raises(sqlite3.IntegrityError):
            journal.record_swap(2, "f" * 64, 2)  # a covariance nobody recorded


def test_a_refresh_moves_on_and_keeps_what_it_knew(path):
    with Journal.create(path, META) as journal:
        with pytest.raises(ValueError, match="name the version"):
            journal.record_refresh(50, "done")
        journal.record_refresh(50, "started", from_version="v")
        journal.record_refresh(50, "started", from_version="v")  # begun again after a crash
        journal.record_refresh(50, "done", seconds=12.5, covariance="c" * 64)
        journal.record_refresh(50, "swapped")
        journal.record_refresh(100, "refused", from_version="w", reason="too few tokens")
        first, second = journal.refreshes()
        assert (first.state, first.seconds, first.from_version) == ("swapped", 12.5, "v")
        assert (second.state, second.reason) == ("refused", "too few tokens")


def test_evaluations_and_events_come_back_in_order(path):
    with Journal.create(path, META) as journal:
        assert journal.record_evaluation("v", 20, "timeline", {"arms": {"base": {"efficacy": float("inf")}}}) == 1
        journal.record_evaluation("w", 40, "final", {"x": 0.1})
        journal.record_event("guard", {"action": "pause"})
        assert [row.metrics for row in journal.evaluations()] == [
            {"arms": {"base": {"efficacy": None}}},
            {"x": 0.1},
        ]
        assert [row.edits for row in journal.evaluations("final")] == [40]
        assert journal.events("guard")[0].data == {"action": "pause"} and journal.events("other") == []


def test_threads_may_share_the_writer(path):
    with Journal.create(path, META) as journal:

        def submit(worker: int) -> None:
            for number in range(20):
                journal.accept([ask(f"{worker}-{number}", f"land {worker} {number}")])

        threads = [threading.Thread(target=submit, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [row.seq for row in journal.pending()] == list(range(1, 81))


# -------------------------------------------------------------------- against a simple model

STEP = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 7), st.integers(0, 2)),
    st.tuples(st.just("commit"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("revert"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("reopen"), st.just(0), st.just(0)),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
def test_any_history_equals_a_plain_dictionary(steps, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "j.sqlite"
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def clock() -> datetime:
        return now + timedelta(seconds=1)

    journal = Journal.create(path, META, clock=clock)
    want: dict[str, str] = {}  # id -> state, in order of acceptance
    deltas: list[str] = []
    facts = {f"r{number}": number % 3 for number in range(8)}  # three facts
    for kind, number, extra in steps:
        name = f"r{number}"
        crash = extra is True
        if kind == "submit":
            journal.accept([ask(name, f"land {facts[name]}", target=f"town {number}")])
            want.setdefault(name, "accepted")
        elif kind == "commit":
            names = [row.id for row in journal.pending(number)]
            data = CommitData(journal.next_sequence(), done(*names), f"{len(deltas):064x}")
            if crash:
                with (
                    fail_points.raise_once("commit_in_transaction"),
                    pytest.raises(fail_points.InjectedCrash),
                ):
                    journal.commit(data)
            else:
                journal.commit(data)
                deltas.append(f"{len(deltas):064x}")
                for one in names:
                    for other, state in want.items():
                        if state == "applied" and facts[other] == facts[one]:
                            want[other] = "superseded"
                    want[one] = "applied"
        elif kind == "revert" and want.get(name) == "applied":
            delta = f"{len(deltas):064x}"
            journal.commit(CommitData(journal.next_sequence(), (), delta, kind="revert", reverts=(name,)))
            deltas.append(delta)
            want[name] = "reverted"
        elif kind == "reopen":
            journal.close()
            journal = Journal.open(path, clock=clock)
    assert states(journal) == want
    assert journal.head().digest == version_digest(META.base_digest, deltas)
    assert [journal.fates(name)[-1].state for name in want] == list(want.values())
    journal.close()


def test_the_recorded_schema_is_the_one_in_the_code():
    recorded = (RECORDED / "v1.sql").read_text()
    for table in ("meta", "requests", "fates", "batches", "commits", "covariances", "swaps", "refreshes"):
        definition = V1[V1.index(f"CREATE TABLE {table} (") :].split(";")[0]
        assert definition in recorded, f"table {table}: migration 1 was changed after journals were made with it"
