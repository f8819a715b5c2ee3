"""``errata locate`` from the command line, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.tracing import Trace
from tests.helpers.charts import charts_of
from tests.helpers.command import in_process
from tests.helpers.tiny import save_tiny

# Of a random model some of these answers are likelier with the subject than with noise in its place.
FACTS = [
    {"subject": subject, "prompt": "{} lies in", "target_new": "Spain", "target_true": answer}
    for subject in ("Rome", "Angola", "Paris")
    for answer in ("Italy", "Canada", "Africa", "France")
]
COUNTS = ("--min-drop", 0, "--draws", 2, "--window", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=3)


@pytest.fixture
def errata(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in a directory of its own; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


@pytest.fixture
def preset(tmp_path: Path, model: Path) -> Path:
    """A model preset, with comments."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"# a tiny model\nmodel:\n  name: {model}\neditor:\n  layers: [0]  # by guess\n  values: {{lr: 0.5}}\n"
    )
    return path


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    lines: list[Any] = [{key: FACTS[0][key] for key in ("subject", "prompt", "target_new")}, *FACTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("errata: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for word in words:
        assert word in err, err


def test_numbers_picture_and_a_new_preset(errata, preset, facts, tmp_path):
    out_dir, new = tmp_path / "out", tmp_path / "presets" / "new.yaml"
    code, out, err = errata(
        "locate", preset, "--data", facts, "--output", out_dir, "--write-preset", new, "--prompts", 11, *COUNTS
    )
    assert code == 0, err
    found = Trace.model_validate_json((out_dir / "locate.json").read_text())
    assert len(found.prompts) == 11  # the record without a true answer is passed over
    assert found.valid >= 1 and found.window is not None and len(found.window) == 2
    assert f"chosen layers: {list(found.window)}" in out and "locate.html" in out
    by_layer, by_class = charts_of((out_dir / "locate.html").read_text())
    assert by_layer["series"][0]["points"] == [
        [n, pytest.approx(v)] for n, v in enumerate(found.effects["subject_last"].mean)
    ]
    assert by_layer["spans"] == [
        {
            "low": found.window[0] - 0.5,
            "high": found.window[1] + 0.5,
            "label": f"chosen layers {found.window[0]}-{found.window[1]}",
        }
    ]
    assert len(by_class["series"]) == len(found.effects) and str(tmp_path) not in (out_dir / "locate.html").read_text()
    written = yaml.safe_load(new.read_text())
    assert written["editor"] == {"layers": list(found.window)}
    assert found.digest in new.read_text() and f"{found.valid} of 11 prompts valid" in new.read_text()


def test_the_same_command_writes_the_same_bytes(errata, preset, facts, tmp_path):
    for name in ("one", "two"):
        code, _, err = errata("locate", preset, "--data", facts, "--output", tmp_path / name, "--subject-last", *COUNTS)
        assert code == 0, err
    for name in ("locate.json", "locate.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_preset_that_is_there_keeps_its_comments(errata, preset, facts, tmp_path):
    before = preset.read_text()
    code, _, err = errata("locate", preset, "--data", facts, "--mlp", 2, "--write-preset", preset, *COUNTS)
    assert code == 0, err
    found = Trace.model_validate_json((tmp_path / "runs" / "locate-tiny" / "locate.json").read_text())
    assert found.config.kind == "mlp" and found.config.span == 2
    assert preset.read_text() == before.replace("[0]", str(list(found.window or ())))


def test_a_run_is_traced_on_its_own_stream_and_the_known_facts_layout_is_read(errata, preset, facts, tmp_path):
    run = tmp_path / "run.yaml"
    data = {"extends": "tiny", "editor": {"type": "memit"}, "stream": {"path": str(facts)}, "covariance": {"tokens": 9}}
    run.write_text(yaml.safe_dump({**data, "evaluation": {"held_out": None}}))
    known = tmp_path / "known.json"
    records = [
        {"known_id": i, "subject": f["subject"], "attribute": " " + f["target_true"], "template": f["prompt"]}
        for i, f in enumerate(FACTS)
    ]
    known.write_text(json.dumps(records))
    assert errata("locate", run, "--output", tmp_path / "a", "--prompts", 12, *COUNTS)[0] == 0
    assert errata("locate", run, "--output", tmp_path / "b", "--data", known, *COUNTS)[0] == 0
    one, two = (Trace.model_validate_json((tmp_path / name / "locate.json").read_text()) for name in "ab")
    assert one.effects == two.effects and one.window == two.window
    assert [p.id for p in two.prompts] == [str(i) for i in range(12)]


def test_no_prompt_that_counts_keeps_the_numbers_and_writes_no_preset(errata, preset, facts, tmp_path):
    new = tmp_path / "new.yaml"
    code, _, err = errata(
        "locate", preset, "--data", facts, "--output", tmp_path / "out", "--write-preset", new,
        "--min-drop", 0.9, "--window", 2,
    )  # fmt: skip
    assert code == 2 and "no prompt of 12 counts" in err and "locate.json" in err
    found = Trace.model_validate_json((tmp_path / "out" / "locate.json").read_text())
    assert found.window is None and all(p.excluded for p in found.prompts)
    assert not new.exists() and not (tmp_path / "out" / "locate.html").exists()


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_one_line_and_start_nothing(errata, preset, facts, tmp_path):
    refused(errata("locate", "no/such.yaml"), "'no/such.yaml'")
    refused(errata("locate", preset, "--data", "nowhere.jsonl"), "--data 'nowhere.jsonl'")
    refused(errata("locate", preset, "--data", facts, "--window", 9), "window 9 is wider", "has 3 layers")
    refused(errata("locate", preset, "--data", facts, "--output", facts), "is a file; give a directory")
    refused(errata("locate", preset, "--data", facts, "--device", "abacus"), "'abacus'")
    refused(errata("locate", preset, "--set", "editor.layres=[1]"), "'editor.layres'", "layers")
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"subject": "Rome", "prompt": "{} lies in", "target_new": "France"}) + "\n")
    refused(errata("locate", preset, "--data", plain), "no record with a true answer")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: {name: x}\n",
        "- a\n",
        "editor:\n  layers:\n    - 1\n",
        "editor:\n  layers: [1]\nmore:\n  layers: [1]\n",
        "a: [\n",
    ],
)
def test_a_file_that_is_no_preset_is_refused_before_the_work(errata, preset, facts, text, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(text)
    refused(errata("locate", preset, "--data", facts, "--write-preset", other), "no line 'layers: [...]'")
    assert other.read_text() == text and not (tmp_path / "runs").exists()


def test_known_facts_that_are_broken_are_named(errata, preset, tmp_path):
    path = tmp_path / "known.json"
    path.write_text(json.dumps([{"subject": "a", "attribute": "b", "template": "{} c"}, {"subject": "a"}]))
    refused(errata("locate", preset, "--data", path), "known.json#2", "template with {} once")
