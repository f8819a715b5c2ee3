"""Commands that read a run's history: ``errata log | show | diff | checkout | export | verify | gc | bisect``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.progress import Display

if TYPE_CHECKING:
    from errata.orchestrator.journal import Journal
    from errata.orchestrator.journal.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="DIR", help="Directory or name of the run, also bare; the newest by default."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Where the run's base model is, if not where its configuration says.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Form(StrEnum):
    """What ``errata export`` writes."""

    full = "full"
    delta = "delta"
    lora = "lora"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (log, show, diff, checkout, export, verify, gc, bisect):
        app.command(command.__name__)(command)


def log(
    run: RunOption = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="At most this many commits.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List a run's commits, newest first, with refreshes and covariance swaps between them."""
    from errata.orchestrator.history import text
    from errata.orchestrator.history.log import History

    with _opened(run) as (_, journal, _):
        entries = History(journal).log(limit)
    _print(text.log_lines(entries), entries, as_json)


def show(
    name: Annotated[str, typer.Argument(metavar="EDIT_OR_VERSION", help="An edit's id, head, v3, or a digest.")],
    run: RunOption = None,
    everything: Annotated[bool, typer.Option("--all", help="List every fact that a version holds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one edit with all that happened to it, or one version with what it holds."""
    from errata.orchestrator.history import text
    from errata.orchestrator.history.log import History, RequestStory

    with _opened(run) as (_, journal, _):
        story = History(journal).show(name, facts=None if everything or as_json else 20)
    if isinstance(story, RequestStory):
        _print(text.request_lines(story), story, as_json)
    else:
        _print(text.version_lines(story, facts=None if everything else 20), story, as_json)


def diff(
    first: Annotated[str, typer.Argument(metavar="V1", help="A version: head, v3, or a digest.")],
    second: Annotated[str, typer.Argument(metavar="V2", help="Another version.")],
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: facts gained, lost and superseded, norms, covariances."""
    from errata.orchestrator.history import text
    from errata.orchestrator.history.export import change_norms
    from errata.orchestrator.history.log import History

    with _opened(run) as (_, journal, store):
        one, other = journal.find_version(first), journal.find_version(second)
        difference = History(journal).diff(one, other, change_norms(journal, store, one, other))
    _print(text.diff_lines(difference), difference, as_json)


def checkout(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="head, v3, or a digest.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty directory.")],
    run: RunOption = None,
    model: ModelOption = None,
) -> None:
    """Write a version as a checkpoint that any program loads."""
    export(version, Form.full, output, run, None, model)


def export(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="head, v3, or a digest.")],
    form: Annotated[Form, typer.Option("--format", help="Checkpoint, one weight change, or a PEFT LoRA adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New directory; for a delta, a new file.")],
    run: RunOption = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of a LoRA adapter.")] = None,
    model: ModelOption = None,
    repository: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Publish it on the Hub, with a model card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    base_name: Annotated[
        str | None, typer.Option("--base-on-hub", metavar="ORG/NAME", help="The base model's name on the Hub.")
    ] = None,
    facts: Annotated[bool, typer.Option("--facts/--no-facts", help="List the facts on the model card.")] = True,
) -> None:
    """Write a version for other programs, and publish it."""
    from errata.orchestrator.history import export as exporting
    from errata.orchestrator.history import hub
    from errata.orchestrator.history.card import model_card
    from errata.orchestrator.history.rebuild import model_name, open_base
    from errata.orchestrator.history.text import by_layer

    if rank is not None and form is not Form.lora:
        raise UserError(f"--rank {rank} is for --format lora; {form.value} has no rank")
    if repository is not None and form is Form.delta:
        raise UserError("--push is for --format full or lora: no program but this one reads a delta")
    with _opened(run) as (_, journal, store), Display() as display:
        chosen = journal.find_version(version)
        base = None
        if repository is not None:
            hub.check_repository(repository)
            base = hub.base_on_hub(model_name(journal), base_name)
        exporting.check_output(output, directory=form is not Form.delta)
        checkpoint = open_base(journal, model)
        edition = exporting.edition(journal, store, checkpoint, chosen, display.update)
        if form is Form.full:
            card = exporting.write_checkpoint(edition, checkpoint, output, display.update)
        elif form is Form.delta:
            card = exporting.write_delta(edition, output)
        else:
            card = exporting.write_adapter(edition, checkpoint, output, rank=rank)
        address = None
        if repository is not None and base is not None:
            hub.name_base(output, base)
            text = model_card(
                journal, chosen, form=form.value, base=base, repository=repository, card=card, facts=facts
            )
            (output / "README.md").write_text(text, encoding="utf-8")
            message = f"v{chosen.sequence} {chosen.digest[:12]}: {counted(chosen.edits, 'edit')}"
            address = hub.push(output, repository, message=message, private=private)
    typer.echo(f"v{chosen.sequence} {chosen.digest} -> {output}")
    if address is not None:
        typer.echo(f"published: {address}")
    if form is Form.full and any(card["rounding"].values()):
        typer.echo(f"the checkpoint's type rounds the edited matrices by {by_layer(card['rounding'])}")
    elif form is Form.delta:
        typer.echo(f"relative error of the one change: {by_layer(card['relative_error'])}")
    elif form is Form.lora:
        kind = "exact" if card["exact"] else "truncated"
        typer.echo(f"rank {card['rank']}, {kind}; relative error of the change: {by_layer(card['relative_error'])}")


def verify(
    run: RunOption = None,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Rebuild every version's matrices from the base model.")
    ] = True,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every digest and rebuild every version; exit code 1 and what is wrong if anything is."""
    from errata.orchestrator.history import verify as verifying
    from errata.orchestrator.history.rebuild import open_base

    with _opened(run) as (directory, journal, _), Display() as display:
        base = open_base(journal, model) if weights else None
        report = verifying.verify(directory, base, display.update)
    _print(_report_lines(report), report, as_json)
    if not report.sound:
        raise typer.Exit(1)


def gc(
    run: RunOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Delete stored files that no commit, swap, refresh or covariance names."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.verify import collect_garbage

    directory = find_run(run)
    garbage = collect_garbage(directory, dry_run=dry_run)
    for item in garbage:
        typer.echo(f"{item.path.relative_to(directory)}\t{item.size}")
    done = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{counted(len(garbage), 'file')}, {sum(item.size for item in garbage)} bytes {done}")


def bisect(
    probe: Annotated[Path, typer.Option(help="JSON or JSON Lines: prompt, and expected or expected_not.")],
    run: RunOption = None,
    good: Annotated[str, typer.Option(help="A version at which the probes hold.")] = "v0",
    bad: Annotated[str, typer.Option(help="A later version at which they do not.")] = "head",
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the commit that changed the answers to probes, by binary search; nothing is edited again."""
    from errata.editing.checkpoint.load import load_model
    from errata.orchestrator.history import bisect as bisecting
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.log import History

    probes = bisecting.read_probes(probe)
    with _opened(run) as (_, journal, store), Display() as display:
        first, last = journal.find_version(good), journal.find_version(bad)
        versions = bisecting.candidates(journal, first, last)
        checkpoint = rebuild.open_base(journal, model)
        loaded = load_model(
            str(checkpoint.directory), dtype=rebuild.run_dtype(journal), digest=journal.meta.base_digest
        )
        base = {layer: checkpoint.map(layer) for layer in rebuild.edited_layers(journal)}
        asker = bisecting.VersionAsker(journal, store, loaded, base, probes)
        bisection = bisecting.bisect(
            versions,
            asker.ask,
            progress=lambda left: display.say(
                f"{counted(len(versions) - 1, 'commit')}, at most {counted(left, 'version')} still to ask"
            ),
        )
        commit = History(journal).commit(bisection.commit.sequence)
    report = {
        "commit": commit,
        "broke": bisection.broke,
        "before": bisection.before,
        "after": bisection.after,
        "asked": bisection.asked,
        "commits": len(versions) - 1,
    }
    _print(_bisection_lines(bisection, commit, probes, len(versions) - 1), report, as_json)


# ---------------------------------------------------------------- inside


@contextmanager
def _opened(run: str | None) -> Iterator[tuple[Path, Journal, ArtifactStore]]:
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal

    directory = find_run(run)
    if run is None:
        logger.info("run %s", directory)
    with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
        yield directory, journal, open_store(directory)


def _print(lines: Iterable[str], value: Any, as_json: bool) -> None:
    from errata.orchestrator.history.text import plain

    if as_json:
        typer.echo(plain(value))
        return
    for line in lines:
        typer.echo(line)


def _report_lines(report: Any) -> Iterator[str]:
    for rebuilt in report.rebuilt:
        yield f"v{rebuilt.sequence}  {rebuilt.version[:12]}  weights {rebuilt.weights}"
    for problem in report.problems:
        yield f"{problem.where}: {problem.what}"
    for orphan in report.orphans:
        yield f"orphan {orphan}"
    for leftover in report.leftovers:
        yield f"half-written {leftover}"
    if report.orphans or report.leftovers:
        yield "what nothing names harms nothing; `errata gc` deletes it"
    verdict = "sound" if report.sound else counted(len(report.problems), "problem")
    seen = (counted(report.requests, "request"), counted(report.versions, "version"), counted(report.files, "file"))
    yield f"{', '.join(seen)}: {verdict}"


def _bisection_lines(bisection: Any, commit: Any, probes: Any, commits: int) -> Iterator[str]:
    from errata.orchestrator.history.text import clean, log_lines

    one = len(probes) == 1
    probe_s = "the probe" if one else "the probes"
    what = f"broke {probe_s}" if bisection.broke else f"is the first at which {probe_s} {'holds' if one else 'hold'}"
    yield f"v{commit.sequence} {commit.version} {what}"
    yield from log_lines([commit], facts=1000)
    for number, probe in enumerate(probes):
        if bisection.before.holds[number] != bisection.after.holds[number]:
            yield f"{clean(probe.id or probe.prompt)}"
            yield f"    v{bisection.before.sequence}: {clean(bisection.before.answers[number])}"
            yield f"    v{bisection.after.sequence}: {clean(bisection.after.answers[number])}"
    yield f"{len(bisection.asked)} of {counted(commits + 1, 'version')} asked"
    yield "the search takes the verdict to change once; where it changes more often, this is one of the changes"
