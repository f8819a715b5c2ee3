"""``errata router``: fit the router of an embedder, and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

router = typer.Typer(help="Which questions the memory bears on.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(router, name="router")


@router.command()
def fit(
    output: Annotated[Path, typer.Argument(help="The JSON file to write; `router.path` names it.")],
    embedder: Annotated[str, typer.Option(help="Embedder: a fetched name, a directory or a hub name.")] = (
        "all-minilm-l6-v2"
    ),
    max_false_alarms: Annotated[
        float, typer.Option(min=0.0001, max=0.9999, help="Share of out-of-scope questions that may be touched.")
    ] = 0.02,
    model: Annotated[
        str | None, typer.Option(help="Base model that is asked about the doubtful; none is asked by default.")
    ] = None,
) -> None:
    """Fit a router on made-up facts; say how it decides about each class of questions."""
    from errata.retrieval.embedder import SentenceEmbedder
    from errata.retrieval.memory import FactMemory
    from errata.retrieval.router_fit import fit_router

    memory = FactMemory(SentenceEmbedder(embedder))
    shares, digest = None, None
    if model is not None:
        from errata.editing.checkpoint.load import load_model
        from errata.editing.model.engine import LanguageEngine
        from errata.retrieval.scr import SelectiveReasoner

        loaded = load_model(model)
        shares, digest = SelectiveReasoner(LanguageEngine(loaded), loaded.text).shares, loaded.digest
    fitted = fit_router(memory, max_false_alarms=max_false_alarms, shares=shares, model=digest)
    fitted.save(output)
    typer.echo(f"router {fitted.digest[:12]} in {output}: threshold {fitted.threshold:.3f}")
    for kind, rate in fitted.rates.items():
        typer.echo(f"{kind:<16}{rate:.3f} of the questions are given a statement")
