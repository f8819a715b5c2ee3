"""Commands that take something out of a run for good: ``errata compact | erase | tag``."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.cli.history import ModelOption, RunOption

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (tag, compact, erase):
        app.command(command.__name__)(command)


def tag(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A word; one that is in use moves.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="head, v3, or a digest.")] = "head",
    run: RunOption = None,
) -> None:
    """Give a version a name; a compaction keeps tagged versions."""
    from errata.orchestrator.history.gaps import Gaps
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.journal import JOURNAL_FILE, Journal

    if not name.strip() or not name.isprintable():
        raise UserError(f"tag: a name must be printable and not blank, got {name!r}")
    with Journal.open(find_run(run) / JOURNAL_FILE) as journal:
        chosen = journal.find_version(version)
        if chosen.sequence == 0:
            raise UserError("tag: v0 is the base model, which is always there")
        Gaps.of(journal).require(chosen, "tag")
        journal.tag(name, chosen.sequence)
    typer.echo(f"v{chosen.sequence} {chosen.digest} is {name}")


def compact(
    run: RunOption = None,
    days: Annotated[float, typer.Option(min=0, help="Versions of this many last days can still be rebuilt.")] = 30.0,
    reverts: Annotated[
        bool, typer.Option("--reverts/--no-reverts", help="Keep what a revert of an edit in the weights needs.")
    ] = True,
    dry_run: DryRun = False,
    model: ModelOption = None,
) -> None:
    """Drop the files of old versions; tagged and published ones, and those of the last days, can still be rebuilt."""
    from datetime import UTC, datetime

    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.run.compacting import CompactPlan, plan_compaction
    from errata.orchestrator.run.compacting import compact as carry_out
    from errata.orchestrator.run.offline import OfflineRun

    directory, now = find_run(run), datetime.now(UTC)

    def tell(plan: CompactPlan, done: str) -> None:
        if plan.kept_for_reverts is not None:
            typer.echo(
                f"versions up to v{plan.kept_for_reverts} are old enough; those from the first edit that is in the "
                "weights stay, so that it can be reverted (--no-reverts lets that go)"
            )
        if not plan.floors and not plan.files:
            typer.echo("nothing to do")
            return
        floors = ", ".join(f"v{number}" for number in plan.floors)
        rests = f"; snapshots of {floors} {'would be' if dry_run else 'are'} kept" if floors else ""
        typer.echo(f"{counted(plan.versions, 'version')} {done} names only{rests}")
        typer.echo(
            f"{counted(len(plan.files), 'file')}, {counted(plan.size, 'byte')} {'would be ' if dry_run else ''}deleted"
        )

    if dry_run:
        with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
            tell(plan_compaction(journal, open_store(directory), days=days, now=now, reverts=reverts), "would become")
        return
    with OfflineRun(directory, model=model) as opened:
        plan = plan_compaction(opened.journal, opened.store, days=days, now=now, reverts=reverts)
        carry_out(opened, plan)
    tell(plan, "are")


def erase(
    edits: Annotated[
        list[str] | None, typer.Argument(metavar="EDIT...", help="Ids; none to end what was cut short.")
    ] = None,
    run: RunOption = None,
    reason: Annotated[
        str, typer.Option(help="Why; kept after the erasure, so do not repeat here what is erased.")
    ] = "",
    dry_run: DryRun = False,
    model: ModelOption = None,
) -> None:
    """Take edits out of the weights, and every trace of their text and vectors out of the run's directory."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.history.text import clean
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.journal.rows import shown_state
    from errata.orchestrator.run import erasing
    from errata.orchestrator.run.offline import OfflineRun

    directory = find_run(run)
    if dry_run:
        with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
            plan = erasing.plan_erasure(journal, edits or [])
            files = erasing.files_of(journal, open_store(directory), plan)
        for row in plan.rows:
            typer.echo(f"{clean(row.id)}\t{shown_state(row.state)}\twould be erased")
        for name in plan.others:
            typer.echo(f"{clean(name)}\tis a newer edit of the same fact and stays")
        if plan.first is not None:
            typer.echo(f"versions from v{plan.first} to the newest would become names only")
        typer.echo(
            f"{counted(len(files), 'stored file')}, {counted(sum(file.size for file in files), 'byte')} "
            "would be deleted at least"
        )
        return
    with OfflineRun(directory, model=model) as opened:
        done = erasing.finish_erasures(opened, directory)
        plan_, scrubbed = None, None
        if edits:
            plan_, scrubbed = erasing.erase(opened, directory, edits, reason=reason)
            done.append(scrubbed)
        stream = str((opened.journal.meta.config.get("stream") or {}).get("path") or "")
        left = [] if plan_ is None else erasing.in_stream(stream, plan_.rows)
    for item in done:
        for word, names in (("rewritten", item.changed), ("deleted", item.deleted), ("STILL HOLDS IT", item.left)):
            for name in names:
                typer.echo(f"{name}\t{word}")
    if plan_ is not None:
        for name in plan_.others:
            typer.echo(f"{clean(name)}\tis a newer edit of the same fact and stays")
        typer.echo(f"{counted(len(plan_.rows), 'edit')} erased, {len(plan_.reverts)} of them out of the weights")
    elif not done:
        typer.echo("no erasure was cut short")
    for place in left:
        typer.echo(f"{place}\tis the run's stream and holds it still: a resumed run would take it in again", err=True)
    if any(item.left for item in done):
        raise typer.Exit(1)
