"""Single bits of journal and files turned over: seen by `verify`, or without effect; never a traceback."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from errata.editing.errors import ErrataError
from errata.orchestrator.history.log import History
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.text import plain
from errata.orchestrator.history.verify import collect_garbage, verify
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from tests.helpers.small_run import SmallRun, make_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    run = make_run(tmp_path_factory.mktemp("small"))
    with Journal.open(run.directory / JOURNAL_FILE) as journal:
        journal.tag("first", 1)
        journal.record_event("guard", {"what": "resume", "by": "somebody"})
        journal.record_evaluation(run.versions[2], 3, "timeline", {"efficacy": 1.0})
        # what was written is in the file itself, so that a bit of it can be turned over
        journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return run


def told(directory: Path) -> str:
    """Everything that a run says of itself."""
    with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
        history = History(journal)
        stories = [history.request(name) for name in history.rows]
        held = [sorted(history.held(version.sequence)) for version in history.versions]
        return plain([history.log(), stories, held, journal.evaluations(), journal.tags()])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def unseen(original: SmallRun, count: int, seed: int, place: Path) -> list[str]:
    """Turns bits over one at a time, one half in the journal and one half in the files; returns those with an effect
    that nobody sees."""
    random = Random(seed)
    base = BaseCheckpoint(original.model)
    files = sorted(p.relative_to(original.directory) for p in original.directory.rglob("*.*") if p.parent.name != "run")
    files = [name for name in files if name.parent != Path() and (original.directory / name).is_file()]
    sound = verify(original.directory, base)
    assert sound.sound, sound.problems
    want = told(original.directory), [(r.version, r.weights) for r in sound.rebuilt]
    missed = []
    run = replace(original, directory=place)
    for number in range(count):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original.directory, place)
        name = Path(JOURNAL_FILE) if number % 2 == 0 else random.choice(files)
        bit = random.randrange(8 * (place / name).stat().st_size)
        flip(place / name, bit)
        report = verify(place, base)  # what it raises ends the test
        if not report.sound:
            with pytest.raises(ErrataError):
                collect_garbage(run.directory)
            continue
        if (told(place), [(r.version, r.weights) for r in report.rebuilt]) != want:
            missed.append(f"{name}, bit {bit}")
    return missed


def test_a_bit_that_is_turned_over_is_seen_or_without_effect(original: SmallRun, tmp_path: Path) -> None:
    assert unseen(original, 60, 1, tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_bits(original: SmallRun, tmp_path: Path) -> None:
    assert unseen(original, 1000, 2, tmp_path / "run") == []


def test_a_commit_that_was_deleted_is_seen_and_its_files_stay(original: SmallRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(original.directory, run)
    before = sorted(p.name for p in run.rglob("*.safetensors"))
    with Journal.open(run / JOURNAL_FILE) as journal:
        journal._connection.execute("PRAGMA foreign_keys = OFF")
        journal._connection.execute("DELETE FROM commits WHERE sequence = 6")
    problems = {f"{p.where}: {p.what}" for p in verify(run, None).problems}
    assert "commit v6: is a batch without a commit" in problems
    assert "commit 6: is in the chain and not in the journal" in problems
    assert "request munro: is said to be applied in v6, which did not write it" in problems
    with pytest.raises(ErrataError, match="gc: the run is not sound"):
        collect_garbage(run)
    assert sorted(p.name for p in run.rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE requests SET state = 'rejected' WHERE id = 'rome'", "request rome: is rejected, its last fate says"),
        ("UPDATE requests SET applied_in = 2 WHERE id = 'rome'", "request rome: is said to be applied in v2"),
        ("UPDATE requests SET result = '{}' WHERE id = 'rome'", "request rome: has other figures than its last fate"),
        ("UPDATE requests SET superseded_by = 'rome' WHERE id = 'munro'", "request munro: is superseded by an edit of"),
        ("UPDATE counters SET value = 7 WHERE name = 'state.applied'", "counter state.applied: is 7, there are 4"),
        ("UPDATE fates SET at = '2001' WHERE number = 3", "fate 3: was changed after it was written"),
        ("DELETE FROM events", "is in the chain and not in the journal"),
        ("UPDATE tags SET sequence = 2", "tag first: is not what was written last"),
        ("UPDATE refreshes SET seconds = 9", "refresh 3: is not what was written last"),
        ("UPDATE covariances SET tokens = 9", "was changed after it was written"),
        ("UPDATE batches SET request_ids = '[]' WHERE sequence = 2", "v2: names other requests than those"),
        ("DROP INDEX fates_by_batch", "index fates_by_batch: is not that of this release"),
    ],
)
def test_rows_that_do_not_follow_from_the_others_are_seen(
    original: SmallRun, tmp_path: Path, statement: str, words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(original.directory, run)
    with Journal.open(run / JOURNAL_FILE) as journal:
        journal._connection.execute("PRAGMA foreign_keys = OFF")
        journal._connection.execute(statement)
    report = verify(run, None)
    assert any(words in f"{p.where}: {p.what}" for p in report.problems), report.problems
