"""``errata sweep``, ``compare`` and ``leaderboard``: grids of runs, finished runs side by side, models by figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.cli.options import Verbose

if TYPE_CHECKING:
    from errata.orchestrator.experiments.record import SweepRecord

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("sweep")(sweep)
    app.command("compare")(compare)
    app.command("choose")(choose)
    app.command("leaderboard")(leaderboard)


def sweep(
    config: Annotated[str, typer.Argument(help="A sweep's file, or a shipped one: experiments/revisiting-small.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one dotted key of every run; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="AXIS=LABEL[,LABEL]", help="Only the cells with these labels; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the sweep; runs/NAME by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, all on one Ray.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run a grid of experiments: what is done is skipped, what was interrupted goes on."""
    from errata.orchestrator.experiments.config import load_sweep

    planned = load_sweep(config, overrides or [], only or [])
    target = output or Path("runs") / planned.config.name
    if dry_run:
        from errata.orchestrator.experiments.execute import prepare

        _, record = prepare(planned, target)
        states = {cell.key: cell.state for cell in record.cells}
        for cell in planned.cells:
            typer.echo(f"{cell.key[:16]}  {states[cell.key]:<11}  {cell.title}")
        typer.echo(f"{counted(len(planned.cells), 'cell')} of {planned.config.name}, {jobs} at a time, in {target}")
        return
    from errata.orchestrator.experiments.execute import run_sweep
    from errata.orchestrator.experiments.view import SweepView
    from errata.orchestrator.progress import configure_logging

    configure_logging(verbose)
    view = SweepView()
    try:
        with view:
            done = run_sweep(planned, target, jobs=jobs, view=view)
    except KeyboardInterrupt:
        view.say("stopped; what is done is kept, and the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    _finish(done, target)


def _finish(record: SweepRecord, target: Path) -> None:
    """Where the tables are, and exit code 1 where a cell failed."""
    from errata.orchestrator.experiments.labels import title_of
    from errata.orchestrator.experiments.write import SUFFIXES

    for suffix in SUFFIXES:
        if (path := target / f"comparison{suffix}").is_file():
            typer.echo(str(path))
    failed = [cell for cell in record.cells if cell.state == "failed"]
    for cell in failed:
        typer.echo(f"failed: {title_of(cell.coordinates)}: {cell.reason}", err=True)
    if failed:
        typer.echo(
            f"{len(failed)} of {counted(len(record.cells), 'cell')} failed; their logs are in {target / 'logs'}",
            err=True,
        )
        raise typer.Exit(1)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs or sweeps.", metavar="RUN...")],
    kind: Annotated[
        str | None, typer.Option("--format", help="markdown (default), latex or html; told from --output too.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output by default.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Key or axis by which tables are split; model, data and edits by default; repeatable."),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="A table at every point of the runs' timelines, not at their ends.")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="KEY[,KEY]",
            help="Only these figures, by their names in summary.json, in this order; all by default.",
        ),
    ] = None,
    intervals: Annotated[
        bool,
        typer.Option(
            "--intervals", help="95 % intervals of single runs over their facts, even where all facts were asked about."
        ),
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare what differs in data or metrics too, with a note that says so.")
    ] = False,
) -> None:
    """Set finished runs side by side, as the papers' tables do: means and standard errors over seeds, best in bold."""
    from errata.orchestrator.experiments.collect import collect
    from errata.orchestrator.experiments.tables import compare as compared
    from errata.orchestrator.experiments.timeline import at_points
    from errata.orchestrator.experiments.write import FORMATS, SUFFIXES, render

    told = SUFFIXES.get(output.suffix, "markdown") if output is not None else "markdown"
    wanted = kind or told
    if wanted not in FORMATS:
        raise UserError(f"--format {wanted!r}; allowed: {', '.join(FORMATS)}")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {str(output)!r}: there is no directory {str(output.parent)!r}")
    collection = collect(runs)
    only = [key.strip() for key in (columns or "").split(",") if key.strip()]
    table = compared(
        at_points(collection) if timeline else collection, by=by or [], anyway=anyway, only=only, intervals=intervals
    )
    text = render(table, wanted)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        typer.echo(str(output))


def choose(
    directory: Annotated[Path, typer.Argument(help="Directory of a finished sweep over a validation split.")],
    over: Annotated[list[str], typer.Option(metavar="AXIS", help="Axis along which the best is chosen; repeatable.")],
    by: Annotated[
        str, typer.Option(metavar="KEY", help="Figure of the edited model that decides, as in summary.json.")
    ] = "edit_score",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a sweep's file with the chosen settings."),
    ] = None,
) -> None:
    """Choose settings on a validation split: the best run of each method, by one figure."""
    from errata.orchestrator.experiments.choose import choice_lines, chosen_sweep
    from errata.orchestrator.experiments.choose import choose as chosen_of
    from errata.orchestrator.experiments.collect import collect
    from errata.orchestrator.experiments.config import read_sweep

    collection = collect([directory])
    kept = directory / "sweep.yaml"
    if not kept.is_file():
        raise UserError(f"{str(directory)!r} is no directory of a sweep: it holds no sweep.yaml")
    chosen = chosen_of(collection, over, by)
    for note in collection.notes:
        typer.echo(note, err=True)
    for line in choice_lines(chosen):
        typer.echo(line)
    if output is not None:
        try:
            output.write_text(chosen_sweep(read_sweep(kept), chosen), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror or error}") from error
        typer.echo(str(output))


def leaderboard(
    given: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Presets with figures (YAML), and directories of runs or sweeps.", metavar="[PRESET|RUN]..."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output by default.")
    ] = None,
) -> None:
    """List the models with presets and what was measured with them, and what runs measured."""
    from errata.orchestrator.experiments.leaderboard import leaderboard as page

    text = page(given or [])
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror or error}") from error
    typer.echo(str(output))
