"""``errata norms``: how long a run's target values were, and what became of the matrices they went into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.orchestrator.cli.options import show_result

if TYPE_CHECKING:
    from torch import Tensor

    from errata.evaluation.stability import ValueDrift

_DEFAULT = ("v0", "timeline", "head")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("norms")(norms)


def norms(
    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION]...", help="head, v3, a digest, or timeline for all of its versions; these by default."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIR", help="Directory or name of the run, also bare; the newest by default."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One line a request too.")] = False,
    control: Annotated[
        bool, typer.Option(help="Turn the unedited maps at random beside them, once for each commit.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random orthogonal matrices.")] = 0,
    values: Annotated[
        int | None,
        typer.Option(
            min=3, metavar="N", help="What became of the first N values that were written too, with their projection."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the run's base model is, if not where its configuration says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON here too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Norms of target values by request; norm and condition number of the edited maps by version."""
    from errata.editing.model.decoder import is_module
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.measuring import norms as measuring
    from errata.orchestrator.measuring.points import named_versions

    directory = find_run(run)
    with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
        chosen = sorted(named_versions(journal, versions or _DEFAULT), key=lambda v: v.sequence)
        checkpoint = rebuild.open_base(journal, model)
        whole = {layer: checkpoint.map(layer) for layer in rebuild.edited_layers(journal)}
        base = {layer: weight for layer, weight in whole.items() if not is_module(layer)}
        store = open_store(directory)
        matrices = list(
            measuring.matrix_norms(
                base,
                [
                    (
                        v.sequence,
                        v.edits,
                        partial(rebuild.weights_at, journal, store, whole, v),
                        partial(rebuild.load_delta, store, v),
                    )
                    for v in chosen
                ],
                control=seed if control else None,
            )
        )
        drifts = () if values is None else _drifts(journal, store, whole, values)
        requests = measuring.request_norms([(row.id, row.applied_in, row.result or {}) for row in journal.requests()])
    report = measuring.report_of(requests, matrices, drifts)
    show_result(report, measuring.norms_lines(report, each=each), output=output, as_json=as_json)


def _drifts(journal: Any, store: Any, base: Mapping[int, Tensor], count: int) -> tuple[ValueDrift, ...]:
    from errata.editing.model.decoder import is_module
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.receipts import load_receipt
    from errata.orchestrator.measuring.norms import values_over

    head = journal.head()

    def commits() -> Iterator[tuple[Mapping[int, Tensor], Mapping[int, Tensor]]]:
        for version, weights in rebuild.states(journal, store, base, head.sequence):
            if version.kind == "edit":
                keys = load_receipt(store, version).keys
                yield {layer: columns for layer, columns in keys.items() if not is_module(layer)}, weights

    return values_over(commits(), rebuild.weights_at(journal, store, base, head), count)
