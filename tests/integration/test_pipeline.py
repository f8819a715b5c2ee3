"""The pipeline that a run and a service share: reverts, snapshots, refreshes on request, and crashes in between.

The actors are called plainly here, as in `test_recovery.py`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.request import EditRequest
from errata.orchestrator.cli import app
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.bisect import candidates
from errata.orchestrator.history.export import edition
from errata.orchestrator.history.rebuild import BaseCheckpoint, weights_digest
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.history.snapshots import snapshots
from errata.orchestrator.history.verify import collect_garbage, verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import ENVIRONMENT_VARIABLE, EXIT_CODE, InjectedCrash, raise_once
from errata.orchestrator.journal.schema import MIGRATIONS
from errata.orchestrator.run.offline import OfflineRun
from errata.orchestrator.run.pipeline import Pipeline
from tests.integration.harness import (
    Outcome,
    PlainCluster,
    Weights,
    asked,
    config,
    facts,
    opened,
    outcome,
    replayed,
    write_all,
    write_stream,
)
from tests.integration.harness import settings as plain_settings

REVERTED = ("fact-4", "fact-7")
"""Of the second and of the third batch; the seventh has overwritten the first, of the first batch."""


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Nothing is sampled and nothing measured: what is looked at are versions."""
    stream = write_stream(tmp_path_factory.mktemp("stream") / "facts.jsonl", facts())
    return config(
        tiny_checkpoint,
        stream,
        covariance={"source": "identity"},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None},
        snapshots={"every": 2},
    )


def course(pipeline: Pipeline) -> None:
    """Nine facts in three batches, two of them reverted in one commit, three more; safe to begin again."""
    requests = asked(facts())
    pipeline.journal.accept(requests[:9])
    write_all(pipeline)
    if any(row.state == "applied" for name in REVERTED if (row := pipeline.journal.request(name))):
        pipeline.revert(REVERTED, reason="wrong", by="on call")
    pipeline.journal.accept(requests[9:])
    write_all(pipeline)


@dataclass(frozen=True)
class Course:
    """What the course comes to."""

    directory: Path
    outcome: Outcome
    weights: Weights
    memory: str


def run(settings: RunConfig, directory: Path) -> Course:
    with opened(settings, directory) as pipeline:
        course(pipeline)
        memory = PlainCluster.last.memory
        assert memory is not None
        return Course(directory, outcome(directory), dict(pipeline.editor.weights()), memory.digest())


@pytest.fixture(scope="module")
def undisturbed_course(settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Course:
    return run(settings, tmp_path_factory.mktemp("course") / "run")


def assert_same(found: Course, expected: Course) -> None:
    assert found.outcome == expected.outcome
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[layer], weight) for layer, weight in expected.weights.items())
    assert found.memory == expected.memory


def test_a_revert_is_a_commit_that_weights_memory_and_history_agree_on(undisturbed_course: Course, tiny_checkpoint):
    result = undisturbed_course.outcome
    assert [len(batch) for batch in result.batches] == [3, 3, 3, 2, 3]
    assert result.edits == (0, 3, 6, 9, 9, 12)
    assert {name: state for name, state in result.states.items() if state != "applied"} == {
        "fact-1": "superseded",
        "fact-4": "reverted",
        "fact-7": "reverted",
    }
    directory = undisturbed_course.directory
    report = verify(directory, BaseCheckpoint(tiny_checkpoint))
    assert report.sound, report.problems
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        fate = journal.fates("fact-4")[-1]
        assert (fate.state, fate.sequence, fate.reason) == ("reverted", 4, "wrong (by on call)")
        assert journal.head().parent == journal.versions()[4].digest


def test_the_memory_holds_no_value_of_a_reverted_fact(settings: RunConfig, undisturbed_course: Course):
    with opened(settings, undisturbed_course.directory):
        memory = PlainCluster.last.memory
        assert memory is not None and memory.digest() == undisturbed_course.memory
        (found,) = memory.search(["Where does Alice Munro 1 work?"], 12)
    # the second and the eighth are one fact; the fifth is gone as well
    assert len(found) == 9


def test_reverting_everything_goes_back_to_the_base_up_to_rounding(settings: RunConfig, tmp_path: Path):
    with opened(settings, tmp_path / "run") as pipeline:
        base = pipeline.editor.weights()
        pipeline.journal.accept(asked(facts(8)))
        write_all(pipeline)
        names = [row.id for row in pipeline.journal.requests("applied")]
        pipeline.revert(names[:3])
        pipeline.revert(names[3:])
        for layer, weight in pipeline.editor.weights().items():
            torch.testing.assert_close(weight, base[layer], rtol=0, atol=1e-6)
        memory = PlainCluster.last.memory
        assert memory is not None and memory.search(["Paris"], 3) == [[]]


# Visits: the fourth commit is the revert; the first batch after it is the fifth.
POINTS = [
    ("after_revert_planned", 1),
    ("after_revert_applied", 1),
    ("after_keys_stored", 4),
    ("after_delta_stored", 4),
    ("commit_in_transaction", 4),
    ("after_commit", 4),
    ("after_memory_remove", 1),
    ("after_snapshot_stored", 1),
    ("after_snapshot_stored", 2),
    ("after_batch_applied", 4),
    ("after_memory_add", 4),
]


@pytest.mark.parametrize(("point", "visit"), POINTS)
def test_a_crash_around_a_revert_or_a_snapshot_changes_nothing(settings, undisturbed_course, tmp_path, point, visit):
    with raise_once(point, visit=visit), pytest.raises(InjectedCrash):
        run(settings, tmp_path / "run")
    assert_same(run(settings, tmp_path / "run"), undisturbed_course)


@pytest.mark.slow
@pytest.mark.parametrize("visit", range(1, 17))
@pytest.mark.parametrize("point", ["artifact_written", "artifact_renamed"])
def test_a_crash_at_any_file_changes_nothing(settings, undisturbed_course, tmp_path, point, visit):
    with raise_once(point, visit=visit), pytest.raises(InjectedCrash):
        run(settings, tmp_path / "run")
    assert_same(run(settings, tmp_path / "run"), undisturbed_course)


@pytest.mark.parametrize(
    "section",
    [
        {"type": "ft_l", "layers": [1], "steps": 2, "lr": 1e-3},
        {"type": "mose", "layers": [1, 2], "values": {"steps": 2, "lr": 0.5}},
        {"type": "grace", "layers": [1], "steps": 3},
        {"type": "gated_kv", "layers": [1], "values": {"steps": 2}},
        {"type": "wise", "layers": [1], "steps": 2, "save_every": 4, "merge_every": 8},
    ],
    ids=lambda section: section["type"],
)
def test_an_editor_that_computes_everything_anew_recovers_to_the_same_bits(tiny_checkpoint, stream, tmp_path, section):
    data = {
        "covariance": {"source": "identity"},
        "refresh": {"every": None},
        "evaluation": {"every": None, "held_out": None},
        "batching": {"size": 4},
    }
    given = plain_settings(tiny_checkpoint, stream, **data)
    given["editor"] = section
    chosen = build_config(given)
    expected = run(chosen, tmp_path / "clean")
    with raise_once("after_revert_applied"), pytest.raises(InjectedCrash):
        run(chosen, tmp_path / "crashed")
    assert_same(run(chosen, tmp_path / "crashed"), expected)
    assert_same(run(chosen, tmp_path / "crashed"), expected)  # and a replay of all of it


# ---------------------------------------------------------------- modules


@pytest.fixture(scope="module")
def module_settings(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    stream = write_stream(tmp_path_factory.mktemp("stream") / "facts.jsonl", facts())
    given = plain_settings(
        tiny_checkpoint,
        stream,
        covariance={"source": "identity"},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None},
        snapshots={"every": 2},
    )
    return build_config({**given, "editor": {"type": "grace", "layers": [1], "steps": 3}})


@pytest.fixture(scope="module")
def module_course(module_settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Course:
    return run(module_settings, tmp_path_factory.mktemp("module") / "run")


@pytest.mark.parametrize(("point", "visit"), [*POINTS, ("artifact_written", 9), ("artifact_renamed", 10)])
def test_a_crash_around_a_module_changes_nothing(module_settings, module_course, tmp_path, point, visit):
    with raise_once(point, visit=visit), pytest.raises(InjectedCrash):
        run(module_settings, tmp_path / "run")
    assert_same(run(module_settings, tmp_path / "run"), module_course)


def test_modules_are_parts_of_versions_that_commands_know(module_course: Course, tiny_checkpoint: Path, tmp_path: Path):
    """Verified, rebuilt, compared, and refused by name where they cannot go."""
    directory, checkpoint = module_course.directory, BaseCheckpoint(tiny_checkpoint)
    report = verify(directory, checkpoint)
    assert report.sound, report.problems
    assert report.rebuilt[-1].weights == weights_digest(module_course.weights)
    with Journal.open(directory / "journal.sqlite", read_only=True) as journal:
        versions = journal.versions()[1:]
        assert all(v.delta is None and len(v.parts.modules) == 1 for v in versions)
        # the revert installs what is left, and takes out what the three batches before it had installed
        assert versions[3].kind == "revert"
        assert versions[3].parts.removed == tuple(v.parts.modules[0] for v in versions[:3])
        assert len({v.digest for v in versions}) == 5
        assert [v.sequence for v in candidates(journal, journal.base(), journal.head())] == [0, 1, 2, 3, 4, 5]
        with pytest.raises(UserError, match=r"v5 has modules in its layers, the first since v1; .* `errata serve`"):
            edition(journal, open_store(directory), checkpoint, journal.head())
    for command in (["checkout", "v5", "--output", str(tmp_path / "out")], ["export", "v5", "--output", str(tmp_path)]):
        refused = CliRunner().invoke(app, [*command, "--run", str(directory)])
        assert refused.exit_code != 0 and not (tmp_path / "out").exists()
    shown = CliRunner().invoke(app, ["diff", "v1", "v5", "--run", str(directory)])
    assert "layer 1 module: norm" in shown.stdout
    damaged = tmp_path / "damaged"
    shutil.copytree(directory, damaged)
    file = damaged / "modules" / f"{versions[1].parts.modules[0]}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert not verify(damaged, checkpoint).sound


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_reverted_is_refused_and_nothing_changes(settings: RunConfig, copy: Path):
    with opened(settings, copy) as pipeline:
        waiting = EditRequest(id="waits", subject="Rome", prompt="{} is", target_new="Paris")
        pipeline.journal.accept([waiting])
        for name, message in {
            "nobody": "there is no edit 'nobody' in this run",
            "waits": "it still waits",
            "fact-1": "edit 'fact-7' has overwritten it",
            "fact-4": "v4 has reverted it already; to have the fact back, submit it again under a new id",
            "v4": "there is no edit 'v4'",
        }.items():
            with pytest.raises(UserError, match=message):
                pipeline.revert(["fact-0", name])
        with pytest.raises(UserError, match="name at least one edit"):
            pipeline.revert([])
        assert pipeline.head().sequence == 5
        pipeline.journal.withdraw("waits", "a test is over")
        with pytest.raises(UserError, match="withdrawn before it was applied"):
            pipeline.revert(["waits"])


# ---------------------------------------------------------------- snapshots


@pytest.fixture
def copy(undisturbed_course: Course, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed_course.directory, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_restart_goes_on_from_the_newest_snapshot_that_is_whole(settings, undisturbed_course, copy, monkeypatch):
    with Journal.open(copy / "journal.sqlite", read_only=True) as journal:
        rows = snapshots(journal)
    assert [row.sequence for row in rows] == [2, 4]
    files = {row.sequence: next((copy / "snapshots").glob(f"{row.digest}.*")) for row in rows}
    seen = replayed(monkeypatch)
    assert_same(run(settings, copy), undisturbed_course)
    assert seen == [5]
    seen.clear()
    files[4].write_bytes(files[4].read_bytes()[:-100])  # torn
    assert_same(run(settings, copy), undisturbed_course)
    assert seen == [3, 4, 5]
    seen.clear()
    files[2].unlink()
    assert_same(run(settings, copy), undisturbed_course)
    assert seen == [1, 2, 3, 4, 5]


def test_gc_keeps_the_newest_snapshots(undisturbed_course, copy, tiny_checkpoint):
    with OfflineRun(copy) as offline:
        version, digest = offline.snapshot()
        assert version.sequence == 5 and offline.snapshot()[1] == digest
    assert {item.path.parent.name for item in collect_garbage(copy)} == {"snapshots"}
    with Journal.open(copy / "journal.sqlite", read_only=True) as journal:
        kept = set(open_store(copy).digests("snapshots"))
        assert kept == {row.digest for row in snapshots(journal)[-2:]}
    assert verify(copy, BaseCheckpoint(tiny_checkpoint)).sound


def test_an_offline_revert_is_the_commit_that_the_pipeline_makes(settings, undisturbed_course, copy, tmp_path):
    with opened(settings, undisturbed_course.directory) as pipeline:
        before = pipeline.head()
    with OfflineRun(copy) as offline:
        version = offline.revert(["fact-10"], reason="typo")
        with pytest.raises(UserError, match="v6 has reverted it already"):
            offline.revert(["fact-10"])
    assert version.parent == before.digest and version.request_ids == ("fact-10",)
    shutil.copytree(undisturbed_course.directory, tmp_path / "other")
    with opened(settings, tmp_path / "other") as pipeline:
        assert pipeline.revert(["fact-10"]).digest == version.digest


# ---------------------------------------------------------------- disks


def test_a_torn_file_of_a_commit_is_named_and_nothing_is_built_on_it(settings, undisturbed_course, copy):
    with Journal.open(copy / "journal.sqlite", read_only=True) as journal:
        delta = journal.versions()[3].delta
    path = next((copy / "deltas").glob(f"{delta}.*"))
    path.write_bytes(path.read_bytes()[:-50])
    # the snapshot of v4 stands for it
    assert_same(run(settings, copy), undisturbed_course)
    shutil.rmtree(copy / "snapshots")
    with pytest.raises(DamagedFileError, match=path.name[:12]), opened(settings, copy):
        pass


@pytest.fixture
def limited_files() -> Iterator[None]:
    """No file of this process may grow beyond what the weights of a batch need: a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_loses_nothing(settings, undisturbed_course, tmp_path, limited_files):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with opened(settings, tmp_path / "run") as pipeline:
        pipeline.journal.accept(asked(facts())[:9])
        first = pipeline.write_next(ended=True)
        assert first is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(Exception, match=r"(?i)too large|I/O|disk|full|os error"):
            pipeline.write_next(ended=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert pipeline.head().sequence == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(Exception, match=r"(?i)too large|I/O|disk|full|os error"):
            pipeline.revert(["fact-0"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        # the revert did not happen, and the batch that takes its number is the one that waits
        assert pipeline.write_next(ended=True) is not None and pipeline.head().request_ids[0] == "fact-3"
    assert_same(run(settings, tmp_path / "run"), undisturbed_course)
    assert not list((tmp_path / "run").glob("*/.tmp-*"))


# ---------------------------------------------------------------- schedules, refreshes on request


def test_a_refresh_on_request_takes_over_at_the_next_boundary_and_survives_a_crash(tiny_checkpoint, stream, tmp_path):
    chosen = config(
        tiny_checkpoint, stream, refresh={"every": None, "max_jsd": None}, evaluation={"every": None, "held_out": None}
    )

    def go(directory: Path, crash: bool) -> Outcome:
        with opened(chosen, directory) as pipeline:
            pipeline.journal.accept(asked(facts(6)))
            if pipeline.head().sequence == 0:
                assert not pipeline.request_refresh(), "nothing was edited"
                pipeline.write_next(ended=True)
                assert pipeline.request_refresh() and not pipeline.request_refresh()
            if crash:
                return outcome(directory)
            write_all(pipeline)
            return outcome(directory)

    expected = go(tmp_path / "clean", False)
    assert [edits for _, _, edits in expected.swaps] == [0, 3]
    assert [(at, state) for at, state, _ in expected.refreshes] == [(3, "swapped")]
    assert [state for _, state, _ in go(tmp_path / "crashed", True).refreshes] == ["started"]
    assert go(tmp_path / "crashed", False) == expected


def test_a_covariance_that_never_changes_is_not_refreshed(settings, undisturbed_course):
    with (
        opened(settings, undisturbed_course.directory) as pipeline,
        pytest.raises(UserError, match=r"covariance.source 'identity' .* has nothing to refresh"),
    ):
        pipeline.request_refresh()


def errata(*arguments: object) -> str:
    """Run a command in this process; what it raises comes through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_the_commands_read_and_write_across_reverts(undisturbed_course, copy, tmp_path):
    log = errata("log", copy)
    assert "revert" in log and "wrong (by on call)" in log
    assert "reverted in v4" in errata("show", "fact-4", "--run", copy)
    assert "superseded in v3" in errata("show", "fact-1", "--run", copy)
    lost = json.loads(errata("diff", "v3", "v4", "--run", copy, "--json"))["lost"]
    assert {fact["id"] for fact in lost} == set(REVERTED)
    errata("export", "head", "--format", "delta", "--output", tmp_path / "head.safetensors", "--run", copy)
    errata("export", "head", "--format", "lora", "--output", tmp_path / "lora", "--run", copy)
    errata("checkout", "head", "--output", tmp_path / "head", "--run", copy)
    model = load_model(str(tmp_path / "head"))
    assert all(torch.equal(model.weight(layer), weight) for layer, weight in undisturbed_course.weights.items())
    printed = errata("revert", "fact-10", "fact-11", "--run", copy, "--reason", "typo")
    assert printed.startswith("v6 ") and "reverts fact-10, fact-11" in printed
    assert "typo" in errata("show", "fact-10", "--run", copy)
    assert "kept as snapshots/" in errata("snapshot", "--run", copy)
    assert f"schema {len(MIGRATIONS)} to {len(MIGRATIONS)}, nothing to do" in errata("migrate", "--run", copy)
    assert "sound" in errata("verify", copy)
    with pytest.raises(UserError, match="v6 has reverted it already"):
        errata("revert", "fact-10", "--run", copy)
    with Journal.open(copy / "journal.sqlite"), pytest.raises(UserError, match="is being written by process"):
        errata("revert", "fact-9", "--run", copy)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "point",
    [
        "after_revert_planned",
        "after_revert_applied",
        "artifact_written",
        "artifact_renamed",
        "after_keys_stored",
        "after_delta_stored",
        "commit_in_transaction",
        "after_commit",
    ],
)
def test_a_revert_whose_process_vanishes_is_made_once(undisturbed_course, copy, tmp_path, point):
    shutil.copytree(undisturbed_course.directory, tmp_path / "clean")
    command = [sys.executable, "-m", "errata.orchestrator.cli", "revert", "fact-10", "fact-2", "--run"]
    subprocess.run([*command, str(tmp_path / "clean")], check=True, timeout=120)
    environment = {**os.environ, ENVIRONMENT_VARIABLE: f"{point}:exit"}
    assert subprocess.run([*command, str(copy)], env=environment, timeout=120).returncode == EXIT_CODE
    again = subprocess.run([*command, str(copy)], timeout=120, capture_output=True, text=True)
    assert again.returncode == (2 if point == "after_commit" else 0), again.stderr
    assert outcome(copy) == outcome(tmp_path / "clean")
    assert verify(copy, None).sound and not list(copy.glob("*/.tmp-*"))
