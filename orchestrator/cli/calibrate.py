"""``errata calibrate``: from a model alone to a preset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from errata.editing.errors import UserError
from errata.orchestrator.cli.options import Verbose


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: Annotated[str, typer.Argument(help="A directory, a hub name, or a name of `errata models list`.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for trials, earlier calls included.")] = 45.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PRESET.yaml", help="Where the preset goes; beside the state by default."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="What was measured, to go on from; runs/calibrate-MODEL by default."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Do not search: measure this preset, and write it with its figures."),
    ] = None,
    editor: Annotated[
        str, typer.Option(help="Editor whose settings are searched for: alphaedit or memit.")
    ] = "alphaedit",
    dtype: Annotated[str, typer.Option(help="Number type of the forward pass.")] = "float32",
    tokens: Annotated[int, typer.Option(min=64, help="Self-generated tokens behind the covariance.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the facts that are drawn and the sampled texts.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Find a model's layers and settings by measuring, and write them as a preset; needs no data of yours.

    Interrupted, or begun again with more minutes, it goes on from what it has measured. What was tried and why the
    winner won is in calibration.html of the state directory.
    """
    from errata.orchestrator.calibrate.calibrate import PAGE
    from errata.orchestrator.calibrate.calibrate import calibrate as run
    from errata.orchestrator.calibrate.job import Calibration
    from errata.orchestrator.calibrate.measure import measure
    from errata.orchestrator.config.model_presets import find_preset
    from errata.orchestrator.progress import Display, configure_logging

    short = re.sub(r"[^A-Za-z0-9._-]", "-", Path(model).name)
    directory = state or Path("runs") / f"calibrate-{short}"
    target = output or directory / "preset.yaml"
    if target.is_dir() or (target.suffix not in (".yaml", ".yml")):
        raise UserError(f"--output {str(target)!r}: want the name of a YAML file")
    configure_logging(verbose)
    try:
        with Display() as display:
            job = Calibration(model, editor, minutes, dtype, tokens, seed)
            if preset is None:
                text = run(job, directory, display).preset
            else:
                text = measure(job, find_preset(preset), directory, display)
    except KeyboardInterrupt:
        typer.echo(f"stopped; what was measured is kept in {directory}: the same command goes on", err=True)
        raise typer.Exit(130) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {str(target)!r} cannot be written: {error.strerror or error}") from error
    if preset is None:
        typer.echo(str(directory / PAGE))
    typer.echo(str(target))
