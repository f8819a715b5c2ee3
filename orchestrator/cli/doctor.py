"""``errata doctor``: what would keep a run or a service from working here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from errata.orchestrator.cli.options import Overrides

_MARKS = {"ok": "ok", "warning": "WARN", "fail": "FAIL", "skip": "-"}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("doctor")(doctor)


def doctor(
    config: Annotated[
        str | None, typer.Argument(help="A configuration to check for; without one, this machine alone.")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory that the run is, or will be, in.")] = Path(
        "runs"
    ),
    redis: Annotated[str | None, typer.Option(help="A Redis to look at too: redis://HOST:PORT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check GPU, storage, Redis, MLflow, model access, cluster and versions; exit code 1 if something fails."""
    from errata.orchestrator.config.loading import load_config
    from errata.orchestrator.doctor import checks_of, examine

    resolved = load_config(config, overrides or []) if config is not None else None
    findings = []
    for result in examine(checks_of(resolved, output=output, redis_url=redis)):
        findings.append(result)
        if not as_json:
            typer.echo(f"{_MARKS[result.state]:<5} {result.check:<9} {result.said}")
    failed = any(result.state == "fail" for result in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [result.plain() for result in findings]}, indent=2))
    if failed:
        raise typer.Exit(1)
