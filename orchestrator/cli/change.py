"""Commands that change a run which nobody is running: ``errata revert | waiting | withdraw | snapshot | migrate``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.cli.history import JsonOption, ModelOption, RunOption

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (revert, waiting, withdraw, snapshot, migrate):
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


def waiting(
    run: RunOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List the edits that wait to be written, oldest first, with the attempts that ended badly."""
    import json

    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.text import clean
    from errata.orchestrator.journal import JOURNAL_FILE, Journal

    with Journal.open(find_run(run) / JOURNAL_FILE, read_only=True) as journal:
        rows, count = journal.pending(limit), journal.waiting()
        tried = [row for row in journal.attempts(journal.next_sequence()) if row.outcome in (None, "died", "failed")]
    shown = [
        {
            "id": row.id,
            "accepted_at": row.accepted_at.isoformat(),
            "subject": row.request.subject,
            "prompt": row.request.prompt,
            "target_new": row.request.target_new,
            "attempts": [attempt.reason or "the process ended" for attempt in tried if row.id in attempt.request_ids],
        }
        for row in rows
    ]
    if as_json:
        typer.echo(json.dumps({"waiting": count, "edits": shown}, ensure_ascii=False))
        return
    for row in rows:
        ends = [attempt.reason or "the process ended" for attempt in tried if row.id in attempt.request_ids]
        bad = f"  ({counted(len(ends), 'attempt')} ended badly, the last: {ends[-1]})" if ends else ""
        typer.echo(clean(f"{row.id}  {row.request.text} -> {row.request.target_new}{bad}"))
    more = f", {len(rows)} shown" if len(rows) < count else ""
    typer.echo(f"{counted(count, 'edit')} {'waits' if count == 1 else 'wait'}{more}", err=True)


def withdraw(
    edits: Annotated[list[str], typer.Argument(metavar="EDIT...", help="Ids of edits that wait.")],
    run: RunOption = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the edit.")] = "",
) -> None:
    """Take edits back that wait to be written; the model is not needed."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.text import clean
    from errata.orchestrator.journal import JOURNAL_FILE, Journal

    with Journal.open(find_run(run) / JOURNAL_FILE) as journal:
        for name in dict.fromkeys(edits):
            row = journal.request(name)
            if row is None:
                raise UserError(f"there is no edit {name!r}; nothing was withdrawn")
            if row.state != "accepted":
                raise UserError(f"edit {name!r} is {row.state} and does not wait; nothing was withdrawn")
        for name in dict.fromkeys(edits):
            journal.withdraw(name, reason or "withdrawn")
            typer.echo(f"{clean(name)} withdrawn")


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
