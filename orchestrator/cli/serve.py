"""The command ``errata serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.orchestrator.cli.options import DryRun, Overrides, Preset, Verbose


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command("serve")(serve)


def serve(
    config: Annotated[str, typer.Argument(help="A configuration file, or the name of a shipped one: service.")],
    overrides: Overrides = None,
    preset: Preset = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the run, begun or gone on with; runs/NAME by default."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Anything but loopback needs tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.", min=0, max=65535)] = 8080,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Serve an API and a page over a run that goes on: hand in edits, revert them, ask the arms.

    Tokens come from ERRATA_TOKENS ("role:token,...") or the file that ERRATA_TOKENS_FILE names; roles are read, write
    and admin. SIGTERM ends the service after the batch under way; started again on the same directory, it goes on.
    """
    from errata.orchestrator.service.launch import service_config

    resolved = service_config(config, overrides or [], preset)
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    from errata.orchestrator.progress import Display, configure_logging
    from errata.orchestrator.service.launch import serve as run_service

    configure_logging(verbose)
    display = Display(quiet=True)
    with display:
        run_service(resolved, output or Path("runs") / resolved.name, host=host, port=port, display=display)
