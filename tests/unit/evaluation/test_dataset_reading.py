"""Reading data files: layouts, positions, limits, and what a user is told about a broken one."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.evaluation.datasets import DATASETS, BadRecord, ValidRecord, open_dataset

RECORDS = [{"subject": f"City {n}", "prompt": "The mayor of {} is", "target_new": f"Person {n}"} for n in range(1, 6)]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def subjects(path: Path | str, **settings: Any) -> list[str]:
    found = list(open_dataset(path, **settings))
    assert all(isinstance(record, ValidRecord) for record in found)
    return [record.request.subject for record in found if isinstance(record, ValidRecord)]


def test_array_lines_and_gzip_give_the_same_records(tmp_path: Path) -> None:
    array = tmp_path / "a.json"
    array.write_text(json.dumps(RECORDS, indent=1))
    lines = write_lines(tmp_path / "b.jsonl", RECORDS)
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    want = [record["subject"] for record in RECORDS]
    assert subjects(array) == subjects(lines) == subjects(packed) == want


def test_positions_name_the_line_or_the_number(tmp_path: Path) -> None:
    lines = tmp_path / "b.jsonl"
    lines.write_text("\n" + json.dumps(RECORDS[0]) + "\n\n" + json.dumps(RECORDS[1]))
    array = tmp_path / "a.json"
    array.write_text(json.dumps(RECORDS[:2]))
    assert [r.position for r in open_dataset(lines)] == [f"{lines}:2", f"{lines}:4"]
    assert [r.position for r in open_dataset(array)] == [f"{array}#1", f"{array}#2"]


def test_unicode_line_separators_do_not_end_a_record(tmp_path: Path) -> None:
    record = {**RECORDS[0], "target_new": "one\u2028two\x85three"}
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = open_dataset(path)
    assert isinstance(found, ValidRecord) and found.request.target_new == record["target_new"]


@pytest.mark.parametrize(
    ("skip", "limit", "want"),
    [(0, None, [1, 2, 3, 4, 5]), (0, 2, [1, 2]), (3, None, [4, 5]), (1, 2, [2, 3]), (9, 9, [])],
)
def test_skip_and_limit(tmp_path: Path, skip: int, limit: int | None, want: list[int]) -> None:
    path = write_lines(tmp_path / "b.jsonl", RECORDS)
    assert subjects(path, skip=skip, limit=limit) == [f"City {n}" for n in want]


def test_a_bad_record_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    bad: list[Any] = [
        RECORDS[0],
        {**RECORDS[1], "target_new": " "},
        {**RECORDS[1], "prompt": "Nobody is"},
        {**RECORDS[1], "color": "red"},
        {"subject": "x", "prompt": "{}"},
        [1, 2],
        RECORDS[2],
    ]
    path = write_lines(tmp_path / "b.jsonl", bad)
    found = list(open_dataset(path))
    assert [type(record) for record in found] == [ValidRecord, *[BadRecord] * 5, ValidRecord]
    reasons = [record.reason for record in found if isinstance(record, BadRecord)]
    assert "target_new" in reasons[0] and "blank" in reasons[0]
    assert "neither the slot" in reasons[1] and "'City 2'" in reasons[1]
    assert "color" in reasons[2]
    assert "target_new" in reasons[3]
    assert reasons[4] == "a record must be an object, got list"
    assert [record.position for record in found] == [f"{path}:{n}" for n in range(1, 8)]
    assert all("\n" not in reason for reason in reasons)


def test_a_bad_first_record_does_not_hide_the_schema(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [{"nothing": 1}, *RECORDS])
    assert [type(record) for record in open_dataset(path)] == [BadRecord, *[ValidRecord] * 5]


def test_malformed_line_is_named_at_the_call(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps(RECORDS[1]) + "\n{broken\n")
    with pytest.raises(UserError, match=r"b\.jsonl:3: malformed JSON"):
        open_dataset(path)


@pytest.mark.parametrize("opening", ["", "["])
def test_absurd_nesting_is_malformed(tmp_path: Path, opening: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text(opening + '{"a":' + "[" * 200_000)
    with pytest.raises(UserError, match="nested too deeply"):
        open_dataset(path)


def test_what_no_digest_can_be_made_of_is_a_bad_record(tmp_path: Path) -> None:
    zsre = '{"subject": "X", "src": "Who is X?", "answers": ["Y"], "loc": "%s", "loc_ans": "Z", "pred": %s}\n'
    path = tmp_path / "odd.jsonl"
    path.write_text(zsre % ("\\ud800", "1") + zsre % ("q", "NaN") + zsre % ("q", "1"))
    assert [type(record) for record in open_dataset(path)] == [BadRecord, BadRecord, ValidRecord]


def test_malformed_array_is_named_at_the_call(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"subject": "x"},\n{"subject" "y"}]')
    with pytest.raises(UserError, match=r"a\.json:3: malformed JSON"):
        open_dataset(path)


@pytest.mark.parametrize("content", ["", "  \n\n", "[]"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no record"):
        open_dataset(path)


def test_other_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json' does not exist"):
        open_dataset(tmp_path / "none.json")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"subject": "Zürich"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        open_dataset(latin)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(write_lines(tmp_path / "w.jsonl", RECORDS * 99).read_bytes())[:60])
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(cut)


def test_unknown_schema_target_and_bounds(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", RECORDS)
    with pytest.raises(UserError, match=r"schema 'csv' is unknown; allowed: auto, .*own"):
        open_dataset(path, "csv")
    with pytest.raises(UserError, match="target 'alt' is unknown to own; allowed: default, target_new"):
        open_dataset(path, target="alt")
    with pytest.raises(UserError, match="must not be negative"):
        open_dataset(path, limit=-1)
    strange = write_lines(tmp_path / "s.jsonl", [{"foo": 1, "bar": 2}])
    with pytest.raises(UserError, match=r"no schema fits .*bar.*foo.*name one of: counterfact"):
        open_dataset(strange)


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package 'datasets'"):
        open_dataset("hub:someone/facts")


def test_hub_rows_are_records(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str, streaming: bool) -> list[dict[str, str]]:
        assert streaming
        asked.append((name, split))
        if name == "gone":
            raise RuntimeError("no such\ndata set")
        return RECORDS

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert subjects("hub:someone/facts:test", limit=1) == ["City 1"]
    assert subjects("hub:someone/facts")[-1] == "City 5"
    assert asked == [("someone/facts", "test"), ("someone/facts", "train")]
    with pytest.raises(UserError, match="'hub:gone' could not be loaded: no such data set"):
        open_dataset("hub:gone")
    with pytest.raises(UserError, match="names no data set"):
        open_dataset("hub:")


def test_a_hub_data_set_is_streamed_by_the_library_itself(tmp_path: Path) -> None:
    """A folder of data files, as a repository of the Hub is one; the second is never opened for edits of the first."""
    pytest.importorskip("datasets", reason="the extra 'hub' is not installed here")
    folder = tmp_path / "facts"
    (folder / "data").mkdir(parents=True)
    write_lines(folder / "data" / "train-0.jsonl", RECORDS * 60)
    (folder / "data" / "train-1.jsonl").write_text("{ this is no JSON\n")
    assert subjects(f"hub:{folder}", limit=3) == ["City 1", "City 2", "City 3"]
    with pytest.raises(UserError, match=r"broke off after record \d+: "):
        subjects(f"hub:{folder}")


def test_every_loader_is_registered_under_its_name() -> None:
    assert all(name == loader.name for name, loader in DATASETS.items())
    assert list(DATASETS)[-1] == "own"
