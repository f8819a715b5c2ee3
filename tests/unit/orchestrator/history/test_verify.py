"""Every kind of damage is found and named; only what nothing names is deleted."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.errors import UserError
from errata.orchestrator.history.rebuild import BaseCheckpoint, weights_digest
from errata.orchestrator.history.verify import Report, collect_garbage, named_files, verify
from errata.orchestrator.journal import JOURNAL_FILE, Journal, fail_points
from errata.orchestrator.journal.rows import CovarianceRow
from tests.helpers.small_run import SmallRun, make_run
from tests.helpers.tiny import save_tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def run(original: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy to be damaged."""
    shutil.copytree(original.directory, tmp_path / "run")
    return replace(original, directory=tmp_path / "run")


def check(run: SmallRun) -> Report:
    return verify(run.directory, BaseCheckpoint(run.model))


def said(report: Report) -> str:
    return "\n".join(f"{problem.where}: {problem.what}" for problem in report.problems)


def change_journal(run: SmallRun, statement: str, *values: object) -> None:
    connection = sqlite3.connect(run.directory / JOURNAL_FILE)
    with connection:
        connection.execute(statement, values)
    connection.close()


def delta_of(run: SmallRun, sequence: int) -> Path:
    with run.journal() as journal:
        return run.store().get("deltas", str(journal.versions()[sequence].delta), verify=False)


def test_a_sound_run_is_sound_and_every_version_is_rebuilt(run: SmallRun) -> None:
    report = check(run)
    assert report.sound and said(report) == ""
    assert [(r.sequence, r.version) for r in report.rebuilt] == list(enumerate(run.versions))
    assert [r.weights for r in report.rebuilt] == [weights_digest(weights) for weights in run.weights]
    assert (report.versions, report.requests, report.orphans, report.leftovers) == (7, 9, [], [])
    assert report.files == sum(1 for kind in named_files(run.journal()) for _ in run.store().digests(kind)) > 10
    assert verify(run.directory, None).rebuilt == []


@pytest.mark.parametrize("kind", ["deltas", "keys", "covariances", "contexts"])
def test_one_changed_byte_is_found_in_every_kind_of_file(run: SmallRun, kind: str) -> None:
    path = sorted((run.directory / kind).iterdir())[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    report = check(run)
    assert not report.sound and f"{kind}/{path.name}: " in said(report)


@pytest.mark.parametrize("kind", ["deltas", "keys", "covariances", "contexts"])
def test_a_missing_file_is_found(run: SmallRun, kind: str) -> None:
    path = sorted((run.directory / kind).iterdir())[0]
    path.unlink()
    assert f"{kind}/{path.name.split('.')[0]}: is missing" in said(check(run))


def test_after_a_torn_delta_the_versions_before_it_are_still_rebuilt(run: SmallRun) -> None:
    path = delta_of(run, 3)
    path.write_bytes(path.read_bytes()[:100])
    report = check(run)
    assert [r.sequence for r in report.rebuilt] == [0, 1, 2]
    assert "v3: cannot be rebuilt, nor can v4 to v6: v3: " in said(report)


def test_a_delta_put_in_the_place_of_another_is_found(run: SmallRun) -> None:
    delta_of(run, 2).write_bytes(delta_of(run, 1).read_bytes())
    assert "holds " in said(check(run))


@pytest.mark.parametrize(
    ("statement", "values", "words"),
    [
        (
            "UPDATE commits SET version = ? WHERE sequence = 2",
            ("f" * 64,),
            "v2: is called ffffffffffff, base and deltas",
        ),
        ("UPDATE commits SET parent = ? WHERE sequence = 3", ("f" * 64,), "v3: names the parent ffffffffffff, v2 is"),
        ("UPDATE commits SET edits = 9 WHERE sequence = 1", (), "v1: counts 9 edits, 2 requests were applied"),
        ("UPDATE requests SET payload = replace(payload, 'Lyon', 'Nice')", (), "request lyon: its content is not what"),
        ("UPDATE commits SET norms = '{\"0\":1.0}' WHERE sequence = 2", (), "v2: layer 0: the matrix has norm 4."),
        ("UPDATE commits SET norms = '{\"0\":null}' WHERE sequence = 2", (), "v2: layer 0: the matrix has no recorded"),
        ("UPDATE commits SET delta_norms = '{\"1\":1.0}' WHERE sequence = 1", (), "v1: layer 1: the change has norm"),
        (
            "UPDATE commits SET covariance = ? WHERE sequence = 3",
            ("a" * 64,),
            "v3: was made on covariance aaaaaaaaaaaa",
        ),
        ("UPDATE requests SET applied_in = 77 WHERE id = 'rome'", (), "needs a row of batches that is gone"),
        ("DELETE FROM fates WHERE sequence = 1 AND seq = 2", (), "v1: its receipt names the edits ['lyon', 'rome']"),
    ],
)
def test_a_journal_that_was_tampered_with_is_found(
    run: SmallRun, statement: str, values: tuple[object, ...], words: str
) -> None:
    change_journal(run, statement, *values)
    report = check(run)
    assert not report.sound and words in said(report)


def test_another_base_model_does_not_give_the_recorded_norms(run: SmallRun, tmp_path: Path) -> None:
    other = BaseCheckpoint(save_tiny(tmp_path / "other", layers=3, seed=5))
    report = verify(run.directory, other)
    assert "v1: layer 0: the matrix has norm" in said(report)


# ---------------------------------------------------------------- garbage


def add_garbage(run: SmallRun) -> set[Path]:
    """An orphan, as a crash before the commit leaves it, and a half-written file."""
    store = run.store()
    delta = WeightDelta({0: LayerDelta("dense", torch.ones(2, 2))}, "memit")
    orphan = store.get("deltas", store.put_file("deltas", delta.save))
    with fail_points.raise_once("artifact_written"), pytest.raises(fail_points.InjectedCrash):
        store.put_bytes("contexts", b"half", suffix=".json")
    half = next((run.directory / "contexts").glob(".tmp-*"))
    return {orphan, half}


def test_orphans_are_told_but_harm_nothing(run: SmallRun) -> None:
    garbage = add_garbage(run)
    report = check(run)
    assert report.sound
    assert {*report.orphans, *report.leftovers} == {
        f"{path.parent.name}/{path.name if path.name.startswith('.') else path.stem}" for path in garbage
    }


def test_garbage_collection_deletes_that_and_nothing_else(run: SmallRun) -> None:
    (run.directory / "deltas" / "notes.txt").write_text("a person's file")
    before = {path for path in run.directory.rglob("*") if path.is_file() and JOURNAL_FILE not in path.name}
    garbage = add_garbage(run)
    planned = collect_garbage(run.directory, dry_run=True)
    assert {item.path for item in planned} == garbage and all(path.is_file() for path in garbage)
    assert sum(item.size for item in planned) == sum(path.stat().st_size for path in garbage)
    assert {item.path for item in collect_garbage(run.directory)} == garbage
    assert {path for path in run.directory.rglob("*") if path.is_file() and JOURNAL_FILE not in path.name} == before
    assert check(run).sound and collect_garbage(run.directory) == []


def test_an_estimate_that_was_recorded_but_never_used_stays(run: SmallRun) -> None:
    offered = KeyCovariance({0: torch.eye(2, dtype=torch.float64)}, 9, {"kind": "random"})
    refused = KeyCovariance({0: torch.eye(2, dtype=torch.float64)}, 8, {"kind": "random"})
    for covariance in (offered, refused):
        run.store().put_file("covariances", covariance.save)
    assert {item.path.stem for item in collect_garbage(run.directory, dry_run=True)} == {offered.digest, refused.digest}
    with Journal.open(run.directory / JOURNAL_FILE) as journal:
        journal.record_covariance(CovarianceRow(offered.digest, {}, 9, (0,), run.versions[0], "there"))
        journal.record_refresh(5, "refused", from_version=run.versions[3], covariance=refused.digest)
    assert collect_garbage(run.directory) == []


def test_a_run_that_is_being_written_is_left_alone(run: SmallRun) -> None:
    garbage = add_garbage(run)
    with (
        Journal.open(run.directory / JOURNAL_FILE),
        pytest.raises(UserError, match=r"is being written by process \d+"),
    ):
        collect_garbage(run.directory)
    assert all(path.is_file() for path in garbage)
    assert {item.path for item in collect_garbage(run.directory)} == garbage
