"""Commands that change a run which nobody is running: ``errata revert | snapshot | migrate``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from errata.orchestrator.cli.history import ModelOption, RunOption

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (revert, snapshot, migrate):
        app.command(command.__name__)(command)


def revert(
    edits: Annotated[list[str], typer.Argument(metavar="EDIT...", help="Ids of applied edits.")],
    run: RunOption = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the edit.")] = "",
    model: ModelOption = None,
) -> None:
    """Take edits out of the weights and the memory, in one commit of its own."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.run.offline import OfflineRun

    with OfflineRun(find_run(run), model=model) as opened:
        version = opened.revert(edits, reason=reason)
    typer.echo(f"v{version.sequence} {version.digest} reverts {', '.join(version.request_ids)}")


def snapshot(run: RunOption = None, model: ModelOption = None) -> None:
    """Store the editor's state at the newest version, so that a restart need not replay what came before."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.run.offline import OfflineRun

    with OfflineRun(find_run(run), model=model) as opened:
        version, digest = opened.snapshot()
    typer.echo(f"v{version.sequence} {version.digest} kept as snapshots/{digest}")


def migrate(run: RunOption = None) -> None:
    """Bring a run's journal to this release's schema."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.journal.schema import MIGRATIONS, schema_of

    path = find_run(run) / JOURNAL_FILE
    before = schema_of(path)
    with Journal.open(path):
        pass
    done = "nothing to do" if before == len(MIGRATIONS) else "migrated"
    typer.echo(f"{path}: schema {before} to {len(MIGRATIONS)}, {done}")
