"""``errata geometry``: what a run's edits did to the space of hidden states."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.editing.errors import UserError
from errata.editing.texts import read_text
from errata.orchestrator.cli.options import show_result


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("geometry")(geometry)


def geometry(
    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION]...", help="head, v3 or a digest; by default those of the timeline, and head."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIR", help="Directory or name of the run, also bare; the newest by default."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text of the documents, a paragraph each; the shipped prose.")
    ] = None,
    documents: Annotated[int, typer.Option(min=2, help="At most this many documents.")] = 1000,
    tokens: Annotated[int, typer.Option(min=2, help="Length at which a document is cut.")] = 128,
    layers: Annotated[
        str | None, typer.Option(metavar="L[,L]", help="Layers whose maps are looked at; the edited ones by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the run's base model is, if not where its configuration says.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON here too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Spectra, changes by principal direction (R_k), drift of subspaces, and their correlation with the timeline."""
    from errata.editing.checkpoint.load import load_model
    from errata.orchestrator.config.presets import find_data
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.measuring import geometry as measuring
    from errata.orchestrator.report.summary import read_summary

    directory = find_run(run)
    with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
        summary = directory / "summary.json"
        points = read_summary(summary).timeline if summary.is_file() else ()
        if versions:
            chosen = [journal.find_version(name) for name in versions]
        else:
            measured = {point.edits for point in points if point.edits}
            chosen = [v for v in journal.versions() if v.edits in measured and v.sequence]
            chosen = list({v.edits: v for v in chosen}.values())
            head = journal.head()
            chosen += [] if head in chosen or not head.sequence else [head]
        if not chosen:
            raise UserError(f"run {directory.name!r} has no version with edits")
        checkpoint = rebuild.open_base(journal, model)
        base = {layer: checkpoint.map(layer) for layer in rebuild.edited_layers(journal)}
        wanted = _layers(layers, base)
        loaded = load_model(str(checkpoint.directory), dtype=rebuild.run_dtype(journal), device=device)
        loaded.check_layers(wanted)
        by_version = list(
            measuring.geometry(
                loaded,
                _documents(loaded, text or Path(find_data("configs/text/heldout.txt")), documents, tokens),
                wanted,
                [
                    (v.sequence, v.edits, partial(rebuild.weights_at, journal, open_store(directory), base, v))
                    for v in chosen
                ],
            )
        )
    edited = {point.edits: point.arms["edited"].model_dump() for point in points if "edited" in point.arms}
    rows = measuring.correlations(by_version, edited)
    result = {"versions": by_version, "correlations": rows}
    show_result(result, measuring.geometry_lines(by_version, rows), output=output, as_json=as_json)


def _layers(given: str | None, base: Any) -> list[int]:
    if given is None:
        return sorted(base)
    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise UserError(f"--layers {given!r} is not of the form L,L,...") from error


def _documents(model: Any, path: Path, count: int, tokens: int) -> list[list[int]]:
    """Paragraphs of a text as tokens, those of at least eight."""
    text = read_text(path, "--text")
    documents = []
    for paragraph in text.split("\n"):
        ids = model.text.encode_prompt(paragraph.strip())[:tokens] if paragraph.strip() else []
        if len(ids) >= 8:
            documents.append(ids)
        if len(documents) == count:
            break
    if len(documents) < 2:
        raise UserError(f"--text {str(path)!r} holds fewer than two paragraphs")
    return documents
