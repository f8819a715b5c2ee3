"""The command line in the face of a user's mistakes: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.editors import REGISTRY
from errata.editing.errors import ErrataError, UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import JournalMeta
from errata.orchestrator.run import launch
from tests.helpers.command import in_process
from tests.helpers.tiny import save_tiny

GOOD = {"subject": "Rome", "prompt": "{} lies in", "target_new": "France", "target_true": "Italy"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=2)


@pytest.fixture
def write(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Writes a configuration beside a stream of the given lines."""

    def make(lines: list[Any], **sections: Any) -> Path:
        stream = tmp_path / "facts.jsonl"
        stream.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        data: dict[str, Any] = {
            "model": {"name": str(model)},
            "editor": {"type": "memit", "layers": [1]},
            "stream": {"path": str(stream)},
            "covariance": {"tokens": 20},
            "evaluation": {"held_out": None},
            "memory": {"embedder": {"type": "hash"}},
            **sections,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return make


@pytest.fixture
def errata(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in a working directory of its own; exit code, output and errors."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return in_process(monkeypatch, capsys)


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2, (code, out, err)
    assert out == ""
    assert err.startswith("errata: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


# ---------------------------------------------------------------- mistakes


def test_a_configuration_that_is_not_there(errata):
    refused(errata("run", "no/such.yaml"), "'no/such.yaml'", "quickstart")


def test_an_unknown_key_in_the_file_and_on_the_command_line(errata, write):
    refused(errata("run", write([GOOD], refresh={"evry": 3})), "'refresh.evry' = 3", "did you mean 'every'")
    answer = errata("run", write([GOOD]), "--set", "batching.sise=3")
    refused(answer, "'batching.sise' = 3", "allowed: by_subject, distinct_subjects, max_age_seconds, size")


def test_a_bad_value_and_a_bad_override(errata, write):
    refused(errata("run", write([GOOD]), "--set", "batching.size=0"), "batching.size = 0", "greater than or equal to 1")
    refused(errata("run", write([GOOD]), "--set", "batching.size"), "dotted.key=value")


def test_a_stream_that_is_not_there(errata, write):
    refused(errata("run", write([GOOD]), "--set", "stream.path=gone.jsonl"), "'gone.jsonl'", "does not exist")


def test_a_malformed_line_is_named_by_file_and_number(errata, write):
    refused(errata("run", write([GOOD, '{"subject": ', GOOD])), "facts.jsonl:2", "malformed JSON")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({**GOOD, "prompt": "Nothing lies in"}, ("'Nothing lies in'", "nor the subject 'Rome'")),
        ({**GOOD, "target_new": ""}, ("target_new",)),
        ({**GOOD, "target_new": " "}, ("target_new", "must not be blank")),
        ({**GOOD, "subject": "  "}, ("subject",)),
    ],
)
def test_a_stream_whose_only_record_does_not_fit(record, words, errata, write):
    refused(errata("run", write([record])), "no record fits", *words)


def test_a_model_that_is_not_there_names_the_three_ways(errata, write):
    config = write([GOOD], model={"name": "nobody/nothing-1b"})
    refused(errata("run", config), "'nobody/nothing-1b'", "directory", "hub", "errata models fetch")


@pytest.mark.parametrize("layer", [2, 40])
def test_a_layer_out_of_range(layer, errata, write):
    result = errata("run", write([GOOD]), "--set", f"editor.layers=[{layer}]")
    refused(result, f"editor.layers: layer {layer} does not exist", "allowed: 0..1")


def test_a_held_out_text_that_is_not_there_or_empty(errata, write, tmp_path):
    refused(errata("run", write([GOOD]), "--set", "evaluation.held_out=gone.txt"), "evaluation.held_out 'gone.txt'")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    refused(errata("run", write([GOOD]), "--set", f"evaluation.held_out={empty}"), "holds no text")


def test_an_embedder_that_is_not_there(errata, write):
    config = write([GOOD], memory={"embedder": {"type": "sentence", "model": "no-such-embedder"}})
    refused(errata("run", config), "'no-such-embedder'", "errata models fetch")


@pytest.mark.parametrize(
    ("record", "arguments"),
    [
        ({**GOOD, "prompt": "Nothing"}, ()),
        (GOOD, ("--set", "editor.layers=[9]")),
        (GOOD, ("--set", "stream.path=gone")),
        (GOOD, ("--resume",)),
    ],
)
def test_a_mistake_leaves_nothing_behind(record, arguments, errata, write, tmp_path):
    work = tmp_path / "work"
    assert errata("run", write([record]), "--output", work / "out", *arguments)[0] == 2
    assert list(work.iterdir()) == []


# ---------------------------------------------------------------- output directories


@pytest.fixture
def begun(write: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and the directory of a run that was begun with it."""
    path = write([GOOD])
    output = tmp_path / "runs" / "mine"
    output.mkdir(parents=True)
    meta = JournalMeta("id", "b" * 64, "e" * 64, build_config(yaml.safe_load(path.read_text())).dump())
    Journal.create(output / "journal.sqlite", meta).close()
    return path, output


def listing(directory: Path) -> list[tuple[str, int]]:
    """Files and sizes; without the journal's companions, which reading it may make or remove."""
    companions = (".sqlite.lock", ".sqlite-wal", ".sqlite-shm")
    return sorted((p.name, p.stat().st_size) for p in directory.iterdir() if not p.name.endswith(companions))


def test_the_directory_of_another_run(errata, begun):
    config, output = begun
    before = listing(output)
    refused(errata("run", config, "--output", output), str(output), "--resume")
    assert listing(output) == before


def test_resuming_with_another_configuration_names_the_first_difference(errata, begun):
    config, output = begun
    before = listing(output)
    result = errata("run", config, "--output", output, "--resume", "--set", "editor.values.lr=0.125")
    refused(result, "another configuration", "editor.values.lr was", "is now 0.125")
    assert listing(output) == before


def test_resuming_with_another_model_of_the_same_name(errata, begun):
    config, output = begun
    refused(errata("run", config, "--output", output, "--resume"), "--resume: model", "bbbbbbbbbbbb")


def test_a_directory_with_something_else_in_it(errata, write, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    refused(errata("run", write([GOOD]), "--output", foreign), "is not empty and holds no run")
    assert listing(foreign) == [("thesis.tex", 13)]


def test_an_output_that_is_a_file(errata, write, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(errata("run", write([GOOD]), "--output", tmp_path / "file"), "is a file; give a directory")


def test_resuming_where_nothing_is(errata, write, tmp_path):
    refused(errata("run", write([GOOD]), "--output", tmp_path / "none", "--resume"), "there is no run in")


# ---------------------------------------------------------------- what works


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(errata, write, tmp_path):
    code, out, err = errata("run", write([GOOD]), "--set", "batching.size=7", "--dry-run")
    assert (code, err) == (0, "")
    resolved = yaml.safe_load(out)
    assert resolved["batching"]["size"] == 7 and resolved["refresh"]["mode"] == "replace"
    assert build_config(resolved).to_yaml() == out
    assert list((tmp_path / "work").iterdir()) == []


def test_the_default_directory_is_named_after_the_run(errata, write, monkeypatch):
    asked: list[Path] = []

    def stop(config: Any, output: Path, **_: Any) -> None:
        asked.append(output)
        raise UserError("enough")

    monkeypatch.setattr(launch, "run_experiment", stop)
    refused(errata("run", write([GOOD], name="mine")), "enough")
    refused(errata("run", write([GOOD]), "--output", "there"), "enough")
    assert asked == [Path("runs/mine"), Path("there")]


def test_an_interruption_is_130_and_tells_how_to_go_on(errata, write, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run_experiment", interrupted)
    code, out, err = errata("run", "quickstart", "--set", "batching.size=5", "--output", "there")
    assert (code, out) == (130, "")
    assert "Go on with: errata run quickstart --set batching.size=5 --output there --resume" in err
    assert "Traceback" not in err


def test_an_error_that_is_ours_is_one_line_and_1(errata, write, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise ErrataError("the editor died 6 times")

    monkeypatch.setattr(launch, "run_experiment", broken)
    assert errata("run", write([GOOD])) == (1, "", "errata: error: the editor died 6 times\n")


def test_models_are_listed_and_an_unknown_one_is_refused(errata):
    code, out, _ = errata("models", "list")
    assert code == 0 and "smollm2-135m-instruct\t" in out
    refused(errata("models", "fetch", "gigantic-1t"), "'gigantic-1t'", "smollm2-135m-instruct")


def test_help_is_there_without_a_heavy_import(errata):
    code, out, _ = errata("run", "--help")
    assert code == 0 and all(option in out for option in ("--set", "--output", "--resume", "--dry-run"))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_passes_a_dry_run_on_its_defaults(errata, write, name):
    code, out, err = errata("run", write([GOOD], editor={"type": name, "layers": [1]}), "--dry-run")
    assert code == 0, err
    resolved = yaml.safe_load(out)
    defaults = REGISTRY[name][0](type=name, layers=(1,)).model_dump(mode="json")
    assert resolved["editor"] == defaults
