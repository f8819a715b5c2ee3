"""What all commands share: RUN bare or as an option, panels, ``-o``, completion, a resume line to paste."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from errata.orchestrator.cli import app
from errata.orchestrator.cli.commands import PANELS
from tests.helpers.small_run import make_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_run(tmp_path_factory.mktemp("small run")).directory)


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["log", "-n", "2"],
        ["verify", "--no-weights"],
        ["show", "lyon"],
        ["show", "v3", "--all"],
        ["diff", "v1", "v2", "--json"],
        ["gc", "--dry-run"],
        ["migrate"],
    ],
)
def test_a_run_is_given_bare_or_as_an_option(run: str, arguments: list[str]) -> None:
    command, *rest = arguments
    option = said(command, *rest, "--run", run)
    assert said(command, *rest, run) == option
    assert said(command, run, *rest) == option
    assert said(command, f"--run={run}", *rest) == option


def needed(command: typer.core.TyperCommand) -> list[str]:
    """Words that a command will not do without."""
    words: list[str] = []
    for param in command.params:
        if param.required:
            words += (
                ["word"]
                if param.param_type_name == "argument"
                else [param.opts[0], "delta" if "--format" in param.opts else "word"]
            )
    return words


def commands_on_a_run() -> dict[str, typer.core.TyperCommand]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: c for name, c in commands.items() if any("--run" in param.opts for param in c.params)}


@pytest.mark.parametrize("name", commands_on_a_run())
def test_each_command_on_a_run_takes_it_both_ways(name: str, run: str) -> None:
    """Nothing is carried out: the words are read, and come to the same."""
    command = commands_on_a_run()[name]
    rest = needed(command)

    def read(*words: str) -> dict[str, object]:
        return command.make_context(name, list(words)).params

    option = read(*rest, "--run", run)
    assert str(option["run"]) == run
    assert read(*rest, run) == read(run, *rest) == read(f"--run={run}", *rest) == option
    assert read(*rest)["run"] is None, "without it the run that was written last is meant"


def test_every_command_on_a_run_is_looked_at() -> None:
    names = set(commands_on_a_run())
    assert names == {
        *("log", "show", "diff", "waiting", "verify", "bisect", "revert", "withdraw", "snapshot", "tag", "compact"),
        *("erase", "migrate", "gc", "checkout", "export", "publish", "judge", "preserve", "geometry", "norms"),
    }


def test_a_version_is_no_run_and_a_wrong_run_is_named(
    run: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["log", "nowhere"], ["log", "--run", "nowhere"], ["show", "v1", "--run", "nowhere"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code != 0 and "there is no run in 'nowhere'" in str(done.exception)
    # the value of an option is not taken for a run, though it names one
    done = CliRunner().invoke(app, ["export", "head", "--format", "delta", "--output", run, "--run", run])
    assert done.exit_code != 0
    assert "[RUN]" in said("show", "--help") and "[RUN]" not in said("run", "--help")


def test_every_command_stands_in_a_panel() -> None:
    text = said("--help")
    for panel, names in PANELS.items():
        assert f"─ {panel} ─" in text
        assert all(name in text for name in names)
    placed = [name for names in PANELS.values() for name in names]
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(placed) <= known and len(placed) == len(set(placed))
    assert text.index("─ Run ─") < text.index("─ Look ─") < text.index("─ Change ─") < text.index("─ Models ─")


def test_where_there_is_an_output_it_has_a_short_form() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flat = [*commands.values(), *commands["covariance"].commands.values()]
    outputs = {c.name: p.opts for c in flat for p in c.params if "--output" in p.opts}
    assert len(outputs) > 8 and all("-o" in options for options in outputs.values()), outputs


def test_the_version_and_the_completion_of_a_shell() -> None:
    assert said("--version").startswith("errata 0.")
    command = [sys.executable, "-m", "errata.orchestrator.cli"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={"_ERRATA_COMPLETE": "complete_bash", "COMP_WORDS": "errata ver", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert "verify" in done.stdout, done.stderr


def test_the_line_to_go_on_with_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import errata.orchestrator.run.launch as launch

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run_experiment", interrupted)
    facts, target = tmp_path / "my facts.jsonl", tmp_path / "it's here"
    arguments = ["run", "quickstart", "--set", f"stream.path={facts}", "-o", str(target)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 130
    line = next(text for text in done.output.splitlines() if "Go on with: " in text).partition("Go on with: ")[2]
    pasted = shlex.split(line)
    assert pasted == [
        "errata",
        "run",
        "quickstart",
        "--set",
        f"stream.path={facts}",
        "--output",
        str(target),
        "--resume",
    ]


@pytest.mark.parametrize("command", ["run", "serve"])
def test_a_tilde_in_an_output_is_the_home_directory(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shell leaves it as it is in ``--output=~/x``."""
    from errata.orchestrator.run import launch as run_launch
    from errata.orchestrator.service import launch as service_launch

    monkeypatch.setenv("HOME", str(tmp_path))
    asked: list[Path] = []
    for module, name in ((run_launch, "run_experiment"), (service_launch, "serve")):
        monkeypatch.setattr(module, name, lambda config, output, **_: asked.append(output))
    CliRunner().invoke(app, [command, "quickstart", "--output=~/mine"])
    CliRunner().invoke(app, [command, "quickstart", "-o", "~/mine"])
    assert asked == [tmp_path / "mine"] * 2


def test_a_tilde_is_read_in_groups_and_in_lists_of_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(run)
    done = CliRunner().invoke(app, ["compare", "~/run"])
    assert str(tmp_path) in str(done.exception) and "~" not in str(done.exception)
    done = CliRunner().invoke(app, ["models", "import", "~/nothing", "--name", "x"])
    assert str(tmp_path / "nothing") in str(done.exception)
