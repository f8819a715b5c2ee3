"""The shapes that people's files have: read, or refused with what was recognized and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.datasets import ValidRecord, open_dataset

PLAIN = {"subject": "France", "prompt": "The capital of {} is", "target_new": "Lyon"}
FLAT = {"subject": "France", "prompt": "The capital of France is", "target_new": "Lyon"}


def read(path: str | Path, **options: Any) -> list[EditRequest]:
    records = list(open_dataset(path, **options))
    assert all(isinstance(record, ValidRecord) for record in records), records
    return [record.request for record in records if isinstance(record, ValidRecord)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PLAIN, indent=2),
        json.dumps({"edits": [PLAIN]}),
        json.dumps({"edits": [PLAIN]}, indent=4),
        "\n\n" + json.dumps(PLAIN) + "\n",
        "\ufeff" + json.dumps(PLAIN, indent=1),
        "\ufeff" + json.dumps([PLAIN]),
        json.dumps(PLAIN) + "\n\ufeff\n",
    ],
)
def test_one_request_however_it_is_laid_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text, encoding="utf-8")
    (request,) = read(path)
    assert request.text == "The capital of France is" and request.target_new == "Lyon"


def test_byte_order_marks_of_files_that_were_put_together(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps({**PLAIN, "subject": name}) for name in ("France", "Spain", "Italy")]
    path.write_text("\ufeff" + "\n\ufeff".join(lines) + "\n", encoding="utf-8")
    assert [request.subject for request in read(path)] == ["France", "Spain", "Italy"]


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"subject": "a"}\n{"subject": \n', ":2: malformed JSON"),
        ('{\n "subject": "a",\n', ":1: malformed JSON"),
        ('{"edits": 3}', "'edits' must be a list, got int"),
        ('{"edits": []}', "holds no record"),
        ("\ufeff \n", "holds no record"),
    ],
)
def test_what_is_no_file_of_records_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        list(open_dataset(path))


@pytest.mark.parametrize(
    "extra, paraphrases, near",
    [
        (
            {"rephrase_prompt": "Which city is it?", "locality_prompt": "Who?", "locality_ground_truth": "He"},
            ("Which city is it?",),
            ("Who?",),
        ),
        ({"case_id": 3, "ground_truth": "Paris", "rephrase_prompt": "Which?"}, ("Which?",), ()),
        ({"ground_truth": "Paris"}, (), ()),
        (
            {
                "ground_truth": "Paris",
                "rephrase_prompt": "Which?",
                "locality": {
                    "neighborhood": {"prompt": ["Italy's is", "Spain's is"], "ground_truth": ["Rome", "Madrid"]}
                },
                "portability": {},
            },
            ("Which?",),
            ("Italy's is", "Spain's is"),
        ),
        (
            {
                "ground_truth": "Paris",
                "rephrase_prompt": "Which?",
                "locality": {"neighborhood": {"prompt": "Italy's is", "ground_truth": "Rome"}},
                "portability": {},
            },
            ("Which?",),
            ("Italy's is",),
        ),
        ({"locality": {"neighborhood": {"prompt": "Italy's is", "ground_truth": "Rome"}}}, (), ("Italy's is",)),
        (
            {
                "rephrase_prompt": "Which?",
                "locality": {"neighborhood": {"prompt": ["Italy's is"], "ground_truth": ["Rome"]}},
            },
            ("Which?",),
            ("Italy's is",),
        ),
        ({"rephrase_prompt": None, "locality_prompt": None, "locality_ground_truth": None}, (), ()),
    ],
)
def test_the_flat_layouts_of_easyedit(
    extra: dict[str, Any], paraphrases: tuple[str, ...], near: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([{**FLAT, **extra}]))
    (request,) = read(path)
    assert request.prompt == "The capital of {} is" and request.target_new == "Lyon"
    assert request.target_true == extra.get("ground_truth")
    assert request.paraphrases == paraphrases
    assert tuple(probe.prompt for probe in request.neighborhood) == near


@pytest.mark.parametrize("extra", [{}, {"rephrase_prompt": "Which?"}, {"ground_truth": "Paris"}])
def test_the_keywords_of_easyedit_with_portability_alone(extra: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps([{**FLAT, **extra, "portability": {"one_hop": {"prompt": "Its mayor?", "ground_truth": "A"}}}])
    )
    (request,) = read(path)
    assert [(probe.kind, probe.prompt, probe.answers) for probe in request.portability] == [
        ("one_hop", "Its mayor?", ("A",))
    ]


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    broken = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["c"]}}
    path.write_text(json.dumps([{**FLAT, "rephrase_prompt": "Which?", "locality": broken, "portability": {}}]))
    (record,) = open_dataset(path)
    assert "as many ground_truth as prompt" in getattr(record, "reason", "")


@pytest.mark.parametrize("target", [{"str": "Lyon", "id": "Q1"}, "Lyon"])
def test_counterfact_with_targets_as_published_and_plain(target: Any, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    rewrite = {"prompt": "The capital of {} is", "subject": "France", "target_new": target, "target_true": "Paris"}
    path.write_text(json.dumps([{"case_id": 7, "requested_rewrite": rewrite}]))
    (request,) = read(path)
    assert (request.id, request.target_new, request.target_true) == ("cf-7", "Lyon", "Paris")


def test_home_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "facts.jsonl").write_text(json.dumps(PLAIN) + "\n")
    assert read("~/facts.jsonl")[0].subject == "France"
    (record,) = open_dataset(f"file://{tmp_path}/facts.jsonl")
    assert isinstance(record, ValidRecord) and record.position == f"file://{tmp_path}/facts.jsonl:1"
    with pytest.raises(UserError, match=r"data source 'file:///no/such.jsonl' cannot be read"):
        list(open_dataset("file:///no/such.jsonl"))
    with pytest.raises(UserError, match=r"data source 'gopher://x/y' cannot be read"):
        list(open_dataset("gopher://x/y"))
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=f"file://{tmp_path}/bad.jsonl:1: malformed JSON"):
        list(open_dataset(f"file://{tmp_path}/bad.jsonl"))


def test_texts_that_no_journal_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"subject": "Fr\\u0000ance", "prompt": "{} is", "target_new": "x"}\n'
                    '{"subject": "\\ud83d", "prompt": "{} is", "target_new": "x"}\n')  # fmt: skip
    reasons = [getattr(record, "reason", "") for record in open_dataset(path)]
    assert reasons[0] == "subject: holds NUL at character 2, which no valid text holds"
    assert "half of a surrogate pair" in reasons[1]
