"""The command line: ``errata run | models``. User errors are one line and exit code 2."""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import errata
from errata.editing.errors import ErrataError, UserError
from errata.editing.extras import lacking
from errata.editing.wording import counted
from errata.orchestrator.cli.calibrate import register as register_calibrate
from errata.orchestrator.cli.change import register as register_change
from errata.orchestrator.cli.commands import arrange
from errata.orchestrator.cli.covariance import register as register_covariance
from errata.orchestrator.cli.doctor import register as register_doctor
from errata.orchestrator.cli.dropping import register as register_dropping
from errata.orchestrator.cli.geometry import register as register_geometry
from errata.orchestrator.cli.history import register as register_history
from errata.orchestrator.cli.judge import register as register_judge
from errata.orchestrator.cli.locate import register as register_locate
from errata.orchestrator.cli.models import register as register_models
from errata.orchestrator.cli.norms import register as register_norms
from errata.orchestrator.cli.options import DryRun, Overrides, Preset, Verbose
from errata.orchestrator.cli.preserve import register as register_preserve
from errata.orchestrator.cli.publish import register as register_publish
from errata.orchestrator.cli.router import register as register_router
from errata.orchestrator.cli.serve import register as register_serve
from errata.orchestrator.cli.sweep import register as register_sweep
from errata.orchestrator.cli.train_editor import register as register_train_editor
from errata.orchestrator.progress import Display, configure_logging

app = typer.Typer(
    name="errata",
    help="Keep a language model's facts current: edits in the weights and in a memory, side by side.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
register_history(app)
register_doctor(app)
register_calibrate(app)
register_change(app)
register_dropping(app)
register_covariance(app)
register_geometry(app)
register_norms(app)
register_judge(app)
register_locate(app)
register_models(app)
register_preserve(app)
register_publish(app)
register_router(app)
register_serve(app)
register_sweep(app)
register_train_editor(app)

INTERRUPTED = 130
_SHOWN = (
    "efficacy",
    "generalization",
    "specificity",
    "reliability",
    "generalization_gen",
    "locality",
    "portability",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"errata {errata.__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A configuration file, or the name of a shipped one: quickstart.")],
    overrides: Overrides = None,
    preset: Preset = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the run; runs/NAME by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Run a lifelong-editing experiment: edit, remember, measure, report."""
    from errata.orchestrator.config.loading import load_config

    resolved = load_config(config, overrides or [], preset)
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    from errata.orchestrator.run.launch import run_experiment

    configure_logging(verbose)
    target = output if output is not None else Path("runs") / resolved.name
    display = Display()
    try:
        with display:
            run_experiment(resolved, target, resume=resume, display=display)
    except KeyboardInterrupt:
        settings = ["--preset", preset] if preset else []
        settings += [word for override in overrides or [] for word in ("--set", override)]
        again = shlex.join(["errata", "run", config, *settings, "--output", str(target), "--resume"])
        display.console.print(
            f"stopped; what was committed is kept. Go on with: {again}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    _print_result(target)


arrange(app)


def _print_result(output: Path) -> None:
    from errata.evaluation.outcomes import ALL_ARMS
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.report.summary import read_summary

    summary = read_summary(output / "summary.json")
    console = Console()
    table = Table(
        title=f"{counted(summary.edits_applied, 'edit')}, {counted(summary.refreshes, 'refresh')}, "
        f"version {summary.version[:12]}"
    )
    arms = [arm for arm in ALL_ARMS if arm in summary.arms]
    table.add_column("")
    for arm in arms:
        table.add_column(arm.replace("_", " + "), justify="right")
    for metric in _SHOWN:
        values = [getattr(summary.arms[arm], metric) for arm in arms]
        table.add_row(metric, *("-" if value is None else f"{value:.3f}" for value in values))
    with Journal.open(output / JOURNAL_FILE, read_only=True) as journal:
        rejected = journal.counts().rejected
    table.caption = _caption(rejected, summary.skipped_probes or 0)
    console.print(table)
    base, edited = summary.perplexity.base, summary.perplexity.edited
    if base is not None and edited is not None:
        console.print(f"perplexity on held-out text: {base:.2f} before, {edited:.2f} after", highlight=False)
    console.print(f"{output / 'report.html'}", highlight=False)


def _caption(rejected: int, skipped: int) -> str | None:
    """What the figures of the table leave out; None where they leave out nothing."""
    said = []
    if rejected:
        said.append(f"{counted(rejected, 'record')} rejected: the warnings above say why")
    if skipped:
        said.append(f"{counted(skipped, 'question')} not asked: the model cannot take them in")
    return "\n".join(said) or None


def main() -> None:
    """Entry point. Exit code 2 for a user's error, 1 for ours, 130 when interrupted."""
    try:
        app()
    except UserError as error:
        print(f"errata: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (told := lacking(error)) is None:
            raise
        print(f"errata: {told}", file=sys.stderr)
        sys.exit(2)
    except ErrataError as error:
        print(f"errata: error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # the reader of a pipe has gone: not an error worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        print(f"errata: error: cannot write: {error}; what was committed is kept", file=sys.stderr)
        sys.exit(1)


def _is_full(error: BaseException) -> bool:
    """Whether a file could not grow: the disk is full, or a quota or a limit of the process is reached."""
    if isinstance(error, sqlite3.OperationalError):
        return "disk is full" in str(error) or "disk I/O error" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
