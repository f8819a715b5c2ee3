"""Compaction and erasure on real parts: what is to stay stays, what goes is gone, a death anywhere changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.cli import app
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.history.gaps import Gaps
from errata.orchestrator.history.rebuild import BaseCheckpoint, edited_layers, weights_at
from errata.orchestrator.history.receipts import load_receipt, old_keys, open_store, read_receipt
from errata.orchestrator.history.verify import collect_garbage, verify
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import ENVIRONMENT_VARIABLE, EXIT_CODE, InjectedCrash, raise_once
from errata.orchestrator.run.compacting import compact, plan_compaction
from errata.orchestrator.run.erasing import ERASE, erase, plan_erasure
from errata.orchestrator.run.offline import OfflineRun
from tests.integration.harness import asked, fact, facts, opened, settings, write_all, write_stream

LATER = datetime.now(UTC) + timedelta(days=400)


@pytest.fixture(scope="module")
def chosen(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    stream = write_stream(tmp_path_factory.mktemp("stream") / "facts.jsonl", facts(1))
    plain = settings(
        tiny_checkpoint,
        stream,
        covariance={"tokens": 40},
        refresh={"every": None},
        evaluation={"every": None, "held_out": None},
        snapshots={"every": 2},
    )
    return build_config(plain)


@pytest.fixture(scope="module")
def lived(chosen: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven commits: 18 edits, the eighth of which overwrites the second."""
    run = tmp_path_factory.mktemp("lived") / "run"
    with opened(chosen, run) as pipeline:
        pipeline.journal.accept(asked(facts(18)))
        write_all(pipeline)
        pipeline.revert(["fact-5"])
    return run


@pytest.fixture
def run(lived: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lived, tmp_path / "run"))


def weights(run: Path, tiny: Path, version: str) -> dict[int, torch.Tensor]:
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        base = {layer: BaseCheckpoint(tiny).map(layer) for layer in edited_layers(journal)}
        return weights_at(journal, open_store(run), base, journal.find_version(version))


def equal(left: dict[int, torch.Tensor], right: dict[int, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[layer], right[layer]) for layer in left)


def sound(run: Path, tiny: Path) -> None:
    report = verify(run, BaseCheckpoint(tiny))
    assert report.sound, report.problems


def errata(*arguments: object) -> str:
    """What a command prints, run in this process; what it raises comes through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run but SQLite's index of its log, which readers write too."""
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(("-shm", "-wal", ".lock"))}


# ---------------------------------------------------------------- compaction


def squeeze(run: Path, *, reverts: bool = False, days: float = 1) -> None:
    with OfflineRun(run) as offline:
        plan = plan_compaction(offline.journal, offline.store, days=days, now=LATER, reverts=reverts)
        compact(offline, plan)


def test_a_compaction_keeps_tags_and_the_newest_and_drops_the_rest(
    run: Path, tiny_checkpoint: Path, chosen: Any
) -> None:
    before = {name: weights(run, tiny_checkpoint, name) for name in ("v3", "head")}
    with Journal.open(run / "journal.sqlite") as journal:
        journal.tag("good", 3)
        head = journal.head()
        plan = plan_compaction(journal, open_store(run), days=1, now=LATER, reverts=False)
        assert plan.floors == (3, 7) and plan.versions == 5 and plan.size > 0
    stored = sum(path.stat().st_size for path in (run / "deltas").iterdir())
    squeeze(run)
    assert sum(path.stat().st_size for path in (run / "deltas").iterdir()) < stored
    sound(run, tiny_checkpoint)
    for name, wanted in before.items():
        assert equal(weights(run, tiny_checkpoint, name), wanted)
    for name in ("v1", "v2", "v4", "v6"):
        with pytest.raises(UserError, match=f"{name} cannot be rebuilt any more"):
            weights(run, tiny_checkpoint, name)
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        assert [mark.sequence for mark in journal.marks()] == [1, 2, 4, 5, 6]
        assert journal.head() == head, "digests stay as names"
        assert plan_compaction(journal, open_store(run), days=1, now=LATER, reverts=False).floors == ()
    assert collect_garbage(run) == []
    sound(run, tiny_checkpoint)
    with opened(chosen, run) as pipeline:  # restarts from the floor, supersedes an old fact, writes on
        assert equal(pipeline.editor.weights(), before["head"])
        more = [fact(30), fact(31, subject=facts(18)[1]["subject"], target="Rome")]
        pipeline.journal.accept(asked(more))
        write_all(pipeline)
        with pytest.raises(UserError, match=r"fact-0.*was written in v1.*compacted"):
            pipeline.revert(["fact-0"])
        pipeline.revert(["fact-30"])
        assert pipeline.journal.request("fact-7").state == "superseded"
    sound(run, tiny_checkpoint)


def test_what_reverts_need_stays_unless_it_is_let_go(run: Path, tiny_checkpoint: Path) -> None:
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        plan = plan_compaction(journal, open_store(run), days=1, now=LATER)
        assert plan.floors == () and plan.kept_for_reverts == 7, "the first edit is in the weights still"
    with OfflineRun(run) as offline:
        offline.revert([f"fact-{number}" for number in (0, 2, 3, 4)])
        plan = plan_compaction(offline.journal, offline.store, days=1, now=LATER)
        assert plan.floors == (2,)
        compact(offline, plan)
        offline.revert(["fact-6"])
    sound(run, tiny_checkpoint)


def test_versions_of_the_last_days_stay(run: Path) -> None:
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        plan = plan_compaction(journal, open_store(run), days=1, now=datetime.now(UTC), reverts=False)
    assert plan.floors == () and plan.files == ()


COMPACTION = ("artifact_renamed", "after_floors_stored", "gap_in_transaction", "after_gap", "after_first_dropped")


COMPACT = ("compact", "--days", 0, "--no-reverts", "--run")


def test_the_commands_tag_and_compact(run: Path, tiny_checkpoint: Path) -> None:
    assert errata("tag", "good", "v3", "--run", run).endswith(" is good\n")
    for name, version, words in (
        (" ", "v3", "must be printable and not blank"),
        ("base", "v0", "v0 is the base model"),
        ("late", "v99", "there is no version v99"),
    ):
        with pytest.raises(UserError, match=words):
            errata("tag", name, version, "--run", run)
    assert "nothing to do" in errata("compact", "--run", run), "versions of the last thirty days stay"
    assert "those from the first edit" in errata("compact", "--days", 0, "--run", run), "and what reverts need"
    before = content(run)
    planned = errata(*COMPACT, run, "--dry-run").splitlines()
    assert planned[0] == "5 versions would become names only; snapshots of v3, v7 would be kept"
    assert planned[1].endswith("would be deleted") and content(run) == before
    done = errata(*COMPACT, run).splitlines()
    assert done[0] == "5 versions are names only; snapshots of v3, v7 are kept"
    assert done[1] == planned[1].replace("would be deleted", "deleted"), "what the plan told"
    assert errata(*COMPACT, run) == "nothing to do\n"
    sound(run, tiny_checkpoint)
    with pytest.raises(UserError, match="v1 cannot be rebuilt any more"):
        errata("tag", "old", "v1", "--run", run)


@pytest.mark.parametrize("point", COMPACTION)
def test_a_compaction_that_is_killed_is_ended_by_the_next(run: Path, tiny_checkpoint: Path, point: str) -> None:
    before = weights(run, tiny_checkpoint, "head")
    with raise_once(point), pytest.raises(InjectedCrash):
        errata(*COMPACT, run)
    sound(run, tiny_checkpoint)
    assert equal(weights(run, tiny_checkpoint, "head"), before)
    errata(*COMPACT, run)
    sound(run, tiny_checkpoint)
    assert equal(weights(run, tiny_checkpoint, "head"), before)
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        assert Gaps.of(journal).newest == 7
        kept = {version.delta for version in journal.versions()} & set(open_store(run).digests("deltas"))
    assert not kept


# ---------------------------------------------------------------- erasure


def secret() -> dict[str, Any]:
    record = fact(40, subject="Zdenka Quorbix", target="Angola")
    return {
        **record,
        "id": "zq@example.org",
        "paraphrases": ["Where Zdenka Quorbix earns a living is"],
        "neighborhood": [{"prompt": "Bolko Wimmerzahn works in", "answer": "Rome"}],
        "provenance": {"who": "Dr. Ottokar Vlk", "why": "a complaint of Zdenka Quorbix"},
    }


WORDS = ("Quorbix", "zq@example.org", "Wimmerzahn", "Ottokar")


@pytest.fixture(scope="module")
def with_secret(lived: Path, chosen: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with one more batch, and files of which a person reads; the memory is kept on disk."""
    run = Path(shutil.copytree(lived, tmp_path_factory.mktemp("secret") / "run"))
    with opened(chosen, run) as pipeline:
        neighbors = [fact(41), fact(42)]
        pipeline.journal.accept([EditRequest.model_validate(secret()), *asked(neighbors)])
        write_all(pipeline)
        keep_memory(pipeline, run)
        pipeline.snapshot()
        pipeline.journal.record_event("revert_requested", {"ids": ["zq@example.org"], "reason": "Quorbix", "by": None})
        pipeline.journal.record_event("place", {"at": 3})
    line = {"id": "zq@example.org", "subject": "Zdenka Quorbix", "prompt": "x", "target_new": "y", "sequence": 8}
    other = {"id": "fact-41", "subject": "Alice", "prompt": "x", "target_new": "y", "sequence": 8}
    (run / "facts.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    (run / "report.html").write_text("<p>Zdenka Quorbix works in Angola</p>")
    (run / "tracking.jsonl").write_text('{"m": 1}\n{"note": "Zdenka Quorbix"}\n')
    (run / "notes.txt").write_text("about Zdenka Quorbix")
    (run / "mlruns").mkdir()
    (run / "mlruns" / "facts.jsonl").write_text(json.dumps(line) + "\n")
    return run


def keep_memory(pipeline: Any, run: Path) -> None:
    from errata.orchestrator.history.receipts import memory_entries
    from errata.retrieval.embedder import HashEmbedder
    from errata.retrieval.memory import FactMemory
    from errata.retrieval.vectors import KeptVectors

    memory, head = FactMemory(HashEmbedder()), pipeline.head()
    entries = memory_entries(pipeline.journal)
    memory.add(entries)
    memory.save(run / "memory" / "state", {"sequence": head.sequence, "version": head.digest})
    KeptVectors(HashEmbedder(), run / "memory").embed([entry.statement for entry in entries])


def found(run: Path) -> list[str]:
    """Files that hold a word, or one of the vectors, in any spelling."""
    needles = [word.encode() for word in WORDS]
    needles += vectors_of(run.parent / "whole") if (run.parent / "whole").exists() else []
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    )


def vectors_of(run: Path) -> list[bytes]:
    """Bytes of the secret edit's key, target, delta columns and statement vector, as the whole run stores them."""
    from errata.editing.delta import WeightDelta
    from errata.editing.tensors import read_tensors
    from errata.orchestrator.history.receipts import RECEIPTS
    from errata.retrieval.embedder import HashEmbedder

    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        row = journal.request("zq@example.org")
        assert row is not None and row.applied_in is not None
        version = journal.version(row.applied_in)
    store = open_store(run)
    metadata, tensors = read_tensors(store.get("keys", version.keys), RECEIPTS, "receipt file")
    column = json.loads(metadata["request_ids"]).index("zq@example.org")
    delta = WeightDelta.load(store.get("deltas", version.delta))
    rows = [delta.layers[layer].right[column] for layer in delta.layers]
    rows += [tensors["targets"][column], torch.from_numpy(HashEmbedder().embed([row.request.statement])[0])]
    return [bytes(part.contiguous().numpy().tobytes()) for part in rows]


@pytest.fixture
def told(with_secret: Path, tmp_path: Path) -> Path:
    shutil.copytree(with_secret, tmp_path / "whole")
    return Path(shutil.copytree(with_secret, tmp_path / "run"))


def test_an_erasure_leaves_neither_text_nor_vectors(told: Path, tiny_checkpoint: Path, chosen: Any) -> None:
    assert {"journal.sqlite", "facts.jsonl", "notes.txt", "memory/state/parts"} <= {
        name if "parts" not in name else "memory/state/parts" for name in found(told)
    }
    with Journal.open(told / "journal.sqlite", read_only=True) as journal:
        plan = plan_erasure(journal, ["zq@example.org"])
        assert (plan.first, plan.reverts, [row.id for row in plan.rows]) == (8, ("zq@example.org",), ["zq@example.org"])
    assert found(told) == found(told.parent / "whole"), "a plan changes nothing"
    with OfflineRun(told) as offline:
        _, scrubbed = erase(offline, told, ["zq@example.org"], reason="asked for by Zdenka Quorbix")
    assert found(told) == []
    assert set(scrubbed.changed) == {"facts.jsonl", "tracking.jsonl", "mlruns/facts.jsonl"}
    assert set(scrubbed.deleted) == {"notes.txt", "report.html"} and scrubbed.left == []
    assert (told / "tracking.jsonl").read_text() == '{"m": 1}\n'
    sound(told, tiny_checkpoint)
    with Journal.open(told / "journal.sqlite", read_only=True) as journal:
        assert journal.version(9).kind == ERASE
        (row,) = journal.requests_by_number([plan.rows[0].seq])
        assert (row.id, row.state, dict(row.payload), row.fact_key) == (f"erased:{row.seq}", "reverted", {}, None)
        assert [(mark.sequence, mark.state) for mark in journal.marks()] == [(8, "unprovable")]
        assert [event.data for event in journal.events("place")] == [{"at": 3}]
        assert journal.events("revert_requested") == []
    for name in ("v7", "head"):
        weights(told, tiny_checkpoint, name)
    with pytest.raises(UserError, match="v8 cannot be rebuilt any more"):
        weights(told, tiny_checkpoint, "v8")
    expected = weights(told, tiny_checkpoint, "head")
    with opened(chosen, told) as pipeline:
        assert equal(pipeline.editor.weights(), expected)
        assert "erased" not in " ".join(pipeline.editor._worker.session().state.request_ids)
        pipeline.journal.accept(asked([fact(50), fact(51, subject=fact(41)["subject"], target="yes")]))
        write_all(pipeline)
        assert pipeline.journal.request("fact-41").state == "superseded"
        pipeline.revert(["fact-42"])  # of the same batch: computed from what is left of it
        pipeline.revert(["fact-9"])  # written before
        held = pipeline.editor._worker.session().state.request_ids
        assert not {"fact-42", "fact-9"} & set(held)
    sound(told, tiny_checkpoint)
    assert found(told) == []


def keys_like(run: Path, wanted: torch.Tensor) -> list[str]:
    """Matrices of stored receipts of which a column is a key, or nearly."""
    store = open_store(run)
    return [
        f"{digest[:8]}:{name}"
        for digest in store.digests("keys")
        for name, matrix in read_receipt(store, digest)[1].items()
        if matrix.ndim == 2 and matrix.shape[0] == len(wanted)
        for column in matrix.T
        if torch.allclose(column, wanted, rtol=1e-3)
    ]


def test_an_erasure_takes_a_key_out_of_the_receipt_that_it_left_with(
    told: Path, tiny_checkpoint: Path, chosen: Any
) -> None:
    newer = {**secret(), "id": "zq2@example.org", "target_new": "Italy"}
    with opened(chosen, told) as pipeline:
        pipeline.journal.accept(asked(facts(58)[43:]))
        pipeline.journal.accept(asked(facts(40)[18:]))
        write_all(pipeline)
        assert pipeline.editor._worker.session().state.wants_keys, "past d_in edits the raw keys are given up"
        key = old_keys(pipeline.journal, pipeline.store, ["zq@example.org"], before=10**6)["zq@example.org"]
        pipeline.journal.accept([EditRequest.model_validate(newer), *asked([fact(90, subject=fact(41)["subject"])])])
        write_all(pipeline)
        wrote = pipeline.head().sequence
        left = load_receipt(pipeline.store, pipeline.head()).old_keys
        assert set(left) == {"zq@example.org", "fact-41"}
        expected = pipeline.editor.weights()
    layer = next(iter(key))
    assert torch.equal(left["zq@example.org"][layer], key[layer]) and len(keys_like(told, key[layer])) >= 2
    sound(told, tiny_checkpoint)
    assert equal(weights(told, tiny_checkpoint, "head"), expected)
    with OfflineRun(told) as offline:
        erase(offline, told, ["zq2@example.org"])
    assert found(told) == [] and keys_like(told, key[layer]) == []
    sound(told, tiny_checkpoint)
    with opened(chosen, told) as pipeline:  # the other fact of that batch can still be taken back, its old key as well
        assert pipeline.journal.version(wrote).kind == "edit"
        pipeline.revert(["fact-90"])
    sound(told, tiny_checkpoint)


ERASURE = (
    "after_erase_begun",
    "after_revert_applied",
    "commit_in_transaction",
    "after_erase_reverted",
    "after_snapshot_stored",
    "after_receipts_cut",
    "gap_in_transaction",
    "after_gap",
    "after_first_dropped",
    "after_dropped",
    "after_memory_forgotten",
    "after_scrubbed",
    "erase_in_transaction",
    "after_erase_rows",
    "after_vacuum",
)


@pytest.mark.parametrize("point", ERASURE)
def test_an_erasure_that_is_killed_is_ended_by_the_next(told: Path, tiny_checkpoint: Path, point: str) -> None:
    with raise_once(point), pytest.raises(InjectedCrash):
        errata("erase", "zq@example.org", "--run", told)
    report = verify(told, None)
    assert report.sound, report.problems
    assert errata("erase", "--run", told) != "no erasure was cut short\n"
    assert errata("erase", "--run", told) == "no erasure was cut short\n"
    assert found(told) == []
    sound(told, tiny_checkpoint)
    with Journal.open(told / "journal.sqlite", read_only=True) as journal:
        assert [version.kind for version in journal.versions()][-1] == ERASE
        assert journal.head().sequence == 9, "reverted once"


def test_the_command_erase(told: Path, tiny_checkpoint: Path) -> None:
    before = content(told)
    planned = errata("erase", "zq@example.org", "--run", told, "--dry-run").splitlines()
    assert planned[:2] == [
        "zq@example.org\tapplied\twould be erased",
        "versions from v8 to the newest would become names only",
    ]
    assert planned[2].endswith("would be deleted at least") and content(told) == before
    for name, words in (("none", "there is no edit 'none'"), ("fact-1", "name 'fact-7' as well")):
        with pytest.raises(UserError, match=words):
            errata("erase", name, "--run", told)
    assert content(told) == before
    both = errata("erase", "fact-1", "fact-7", "--run", told, "--dry-run").splitlines()
    assert both[:2] == ["fact-1\tsuperseded\twould be erased", "fact-7\tapplied\twould be erased"]
    done = errata("erase", "zq@example.org", "--run", told, "--reason", "request 7").splitlines()
    assert done[-1] == "1 edit erased, 1 of them out of the weights"
    assert {"facts.jsonl\trewritten", "notes.txt\tdeleted"} <= set(done)
    assert found(told) == []
    sound(told, tiny_checkpoint)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("point", "command"),
    [
        *((point, ("compact", "--days", "0", "--no-reverts")) for point in COMPACTION),
        *((point, ("erase", "zq@example.org")) for point in ERASURE),
    ],
)
def test_a_command_whose_process_vanishes_is_ended_by_the_next(
    told: Path, tiny_checkpoint: Path, point: str, command: tuple[str, ...]
) -> None:
    def errata_process(*arguments: str, dies_at: str | None = None) -> int:
        environment = {**os.environ, **({ENVIRONMENT_VARIABLE: f"{dies_at}:exit"} if dies_at else {})}
        line = [sys.executable, "-m", "errata.orchestrator.cli", *arguments, "--run", str(told)]
        return subprocess.run(line, env=environment, timeout=600, capture_output=True).returncode

    assert errata_process(*command, dies_at=point) == EXIT_CODE
    assert verify(told, None).sound
    assert errata_process(*(command if command[0] == "compact" else command[:1])) == 0
    sound(told, tiny_checkpoint)
    assert not list(told.glob("*/.tmp-*"))
    if command[0] == "erase":
        assert found(told) == []


def test_waiting_rejected_and_reverted_edits_are_erased_too(told: Path, tiny_checkpoint: Path, chosen: Any) -> None:
    with Journal.open(told / "journal.sqlite") as journal:
        journal.accept([EditRequest(id="w", subject="Jaromir Xilp", prompt="{} lives in", target_new="Rome")])
        journal.reject("file:7", "no Wanda Pfnuer")
    with OfflineRun(told) as offline:
        offline.revert(["zq@example.org"])
        erase(offline, told, ["w", "record:file:7", "zq@example.org"])
    data = b"".join(path.read_bytes() for path in told.rglob("*") if path.is_file())
    assert b"Xilp" not in data and b"Pfnuer" not in data
    assert found(told) == []
    sound(told, tiny_checkpoint)


def test_what_was_overwritten_goes_only_with_what_overwrote_it(run: Path) -> None:
    with Journal.open(run / "journal.sqlite", read_only=True) as journal:
        with pytest.raises(UserError, match=r"'fact-7' has overwritten 'fact-1'.*name 'fact-7' as well"):
            plan_erasure(journal, ["fact-1"])
        assert [row.id for row in plan_erasure(journal, ["fact-7"]).rows] == ["fact-1", "fact-7"]
        with pytest.raises(UserError, match="there is no edit 'none'"):
            plan_erasure(journal, ["none"])


def test_two_erasures_of_one_batch(told: Path, tiny_checkpoint: Path) -> None:
    with OfflineRun(told) as offline:
        erase(offline, told, ["fact-41"])
    assert found(told) != []
    sound(told, tiny_checkpoint)
    with OfflineRun(told) as offline:
        erase(offline, told, ["zq@example.org"])
        offline.revert(["fact-42"])
    assert found(told) == []
    sound(told, tiny_checkpoint)


@pytest.fixture(autouse=True)
def closed_databases() -> Iterator[None]:
    yield
    sqlite3.connect(":memory:").close()
