"""What a newcomer types: every command of README and of the pages exists with its options, outside a checkout too."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from errata.orchestrator.cli.main import app
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.config.model_presets import find_preset
from errata.orchestrator.config.presets import find_config, find_data
from errata.orchestrator.experiments.config import load_sweep
from errata.orchestrator.service.launch import service_config
from tests.helpers.pages import PAGES, ROOT, Shown, commands_of, split

NO_COMMANDS = {("errata", "version", "1")}
"""Spans that only look like one: the first words of a digest."""
COMMANDS = [shown for page in PAGES for shown in commands_of(page) if shown.words not in NO_COMMANDS]
ERRATA = [shown for shown in COMMANDS if shown.words[0] == "errata"]
OTHERS = [shown for shown in COMMANDS if shown.words[0] != "errata"]
PLACEHOLDER = re.compile(r"<.*>|[A-Z][A-Z0-9_]*(?:/[A-Z0-9_]+)*(?:\.(?:yaml|json|jsonl))?|\$\w+|\{.*\}|\.\.\.|…")
"""A word that stands for the reader's own: CONFIG, ORG/NAME, PRESET.yaml."""
OWN_FILES = {"config.yaml", "run.yaml", "sweep.yaml", "sentinels.jsonl", "edits.jsonl"}
"""Files that a page tells the reader to write, or that stand in a pod."""


def ids(shown: Any) -> str:
    return f"{shown.page.relative_to(ROOT)}:{shown.line}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a newcomer stands: not in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_show_commands() -> None:
    assert len(ERRATA) > 120 and len([shown for shown in ERRATA if shown.whole]) > 30
    shown = {shown.words[1] for shown in ERRATA if len(shown.words) > 1}
    assert shown >= {"run", "log", "show", "revert", "serve", "sweep", "compare", "judge", "covariance", "models"}


def test_every_command_is_shown_on_some_page() -> None:
    """A command without a page is one that nobody finds."""
    root = typer.main.get_command(app)
    shown = {shown.words[1] for shown in ERRATA if len(shown.words) > 1}
    hidden = {name for name, command in root.commands.items() if command.hidden}  # type: ignore[attr-defined]
    assert set(root.commands) - hidden <= shown, sorted(set(root.commands) - hidden - shown)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("errata run a && errata log b   # told", [("errata", "run", "a"), ("errata", "log", "b")]),
        ("errata calibrate MODEL [--minutes 45]", [("errata", "calibrate", "MODEL", "--minutes", "45")]),
        ("errata merge A B [C ...] --set x=[1,2]", [("errata", "merge", "A", "B", "C", "--set", "x=[1,2]")]),
        ("X=1 errata log | head", [("errata", "log")]),
        ("errata_version = 'x'", []),
        ('errata revert q --reason "it\'s not so"', [("errata", "revert", "q", "--reason", "it's not so")]),
    ],
)
def test_commands_are_taken_apart(content: str, expected: list[tuple[str, ...]]) -> None:
    assert list(split(content)) == expected


# ---------------------------------------------------------------- errata's own commands


def parsed(shown: Shown) -> tuple[Any, dict[str, list[str]], list[str]]:
    """The command, the values given to each option (by its first name), and the bare words."""
    command: Any = typer.main.get_command(app)
    words = list(shown.words[1:])
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not (hasattr(command, "commands") and words and not words[0].startswith("-")), f"no command {words[0]!r}"
    options: dict[str, list[str]] = {}
    bare: list[str] = []
    known = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    while words:
        word = words.pop(0)
        if re.fullmatch(r"\$\w+", word):
            continue  # a variable of the shell, with options that the line before has set
        if not re.match(r"--?[A-Za-z]", word):
            bare.append(word)
            continue
        name, equals, value = word.partition("=")
        if name in ("--help", "--install-completion", "--version", "--show-completion"):
            continue
        assert name in known, f"no option {name}; there are {', '.join(sorted(known))}"
        param = known[name]
        takes_none = getattr(param, "is_flag", False) or getattr(param, "count", False)
        if takes_none:
            options.setdefault(param.opts[0], [])
            continue
        if not equals:
            assert words or not shown.whole, f"{name} without a value"
            value = words.pop(0) if words else ""
        allowed = getattr(getattr(param, "type", None), "choices", None)
        if allowed and value and not PLACEHOLDER.fullmatch(value):
            assert value in [str(getattr(choice, "value", choice)) for choice in allowed], f"{name} {value}"
        options.setdefault(param.opts[0], []).append(value)
    return command, options, bare


@pytest.mark.parametrize("shown", ERRATA, ids=ids)
def test_a_command_exists_with_its_options(shown: Shown) -> None:
    command, options, bare = parsed(shown)
    if not shown.whole or hasattr(command, "commands"):
        return  # a mention may leave out what the sentence is not about
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    needed = sum(param.required for param in arguments)
    most = sum(param.nargs for param in arguments) if all(param.nargs > 0 for param in arguments) else 10**6
    takes_run = any("--run" in param.opts for param in command.params)
    assert needed <= len(bare) <= most + takes_run, f"{len(bare)} words for {needed} to {most} arguments"
    for param in command.params:
        if param.param_type_name == "option" and param.required:
            assert param.opts[0] in options, f"{param.opts[0]} is missing"


READS_A_CONFIGURATION = {
    "run": load_config,
    "serve": service_config,
    "sweep": load_sweep,
    "locate": None,
    "doctor": None,
}


def configured() -> Iterator[Any]:
    for shown in ERRATA:
        name = " ".join(shown.words[1:3]) if shown.words[1:2] == ("covariance",) else "".join(shown.words[1:2])
        if name in READS_A_CONFIGURATION or name == "covariance estimate":
            yield pytest.param(shown, READS_A_CONFIGURATION.get(name, load_config), id=ids(shown))


def settings_known() -> set[str]:
    """Dotted keys of the configuration page, with the sections they stand in."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    keys = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    return keys | {".".join(key.split(".")[:count]) for key in keys for count in range(1, key.count(".") + 1)}


@pytest.mark.parametrize(("shown", "load"), configured())
def test_what_a_command_names_is_found_from_anywhere(shown: Shown, load: Any) -> None:
    """Configurations and presets by the names that the pages give them; every `--set` names a setting that exists."""
    _, options, bare = parsed(shown)
    name = bare[0] if bare else ""
    given = bool(name) and not PLACEHOLDER.fullmatch(name) and Path(name).name not in OWN_FILES
    if given:
        assert find_config(name).is_file()
    for preset in options.get("--preset", []):
        assert PLACEHOLDER.fullmatch(preset) or find_preset(preset).is_file()
    keys = settings_known()
    overrides = [one for one in options.get("--set", []) if one and not PLACEHOLDER.fullmatch(one.partition("=")[0])]
    for override in overrides:
        key = override.partition("=")[0]
        named = key.startswith(("editor.", "ray.", "evaluation.texts."))  # kinds and names are the reader's
        assert key in keys or named, f"no setting {key}"
    mine = [one for one in overrides if not PLACEHOLDER.fullmatch(one.partition("=")[2] or "X") and "path" not in one]
    if given and load is load_config and not options.get("--preset"):
        assert load_config(name, [one for one in mine if not one.startswith("model.name")]).name
    elif given and load is load_sweep:
        assert load(name, mine, options.get("--only", []))
    elif given and load is service_config:
        assert load(name, [one for one in mine if not one.startswith("stream.")])


@pytest.mark.parametrize("text", sorted({
    match for page in PAGES for match in re.findall(r"(?<!/)configs/[\w./-]+\.\w+", page.read_text())
}))  # fmt: skip
def test_a_shipped_file_that_a_page_names_is_there(text: str) -> None:
    assert (ROOT / text).is_file() and Path(find_data(text)).is_file() | text.endswith(".yaml")
    if text.endswith(".yaml") and "/covariances/" not in text:
        assert find_config(text).is_file()


# ---------------------------------------------------------------- everybody else's


@pytest.mark.parametrize("shown", OTHERS, ids=ids)
def test_what_another_program_is_told_of_ours_is_there(shown: Shown) -> None:
    first, *rest = shown.words
    if first == "make":
        targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
        for word in rest:
            assert "=" in word or PLACEHOLDER.fullmatch(word) or word in targets or not shown.whole, word
    for word in rest:
        path = word.rstrip("/")
        if re.fullmatch(r"k8s/[\w./-]+", path):
            assert (ROOT / path).exists(), path
        for extras in re.findall(r"errata-llm\[([\w,-]+)\]", word):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), extras
    if first == "python" and "-m" in rest:
        module = rest[rest.index("-m") + 1]
        if module.startswith(("benchmarks", "errata")):
            assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file() or importlib.util.find_spec(module)
    if first == "podman":
        known = set(re.findall(r"(?m)^ARG (\w+)", (ROOT / "Containerfile").read_text()))
        asked = {rest[at + 1].partition("=")[0] for at, word in enumerate(rest) if word == "--build-arg"}
        assert asked <= known, asked - known
    if first == "helm" and "k8s/helm/errata" in rest:
        values = yaml.safe_load((ROOT / "k8s" / "helm" / "errata" / "values.yaml").read_text())
        for at, word in enumerate(rest):
            if word == "--set":
                place: Any = values
                for key in rest[at + 1].partition("=")[0].split("."):
                    assert key in place, rest[at + 1]
                    place = place[key]
