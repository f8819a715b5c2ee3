"""``errata publish``: a version to a model registry and to live servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.editing.errors import UserError
from errata.orchestrator.cli.history import RunOption

if TYPE_CHECKING:
    from errata.orchestrator.config.publish import PublishConfig
    from errata.orchestrator.journal import Journal


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command("publish")(publish)


def publish(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="head, v3, or a digest.")],
    run: RunOption = None,
    alias: Annotated[
        str | None, typer.Option(help="Register in MLflow's model registry and point this alias at it: champion.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model; errata-NAME of the run.")] = None,
    form: Annotated[str, typer.Option("--format", help="What is registered: delta, lora, full or routed.")] = "delta",
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="vllm=URL", help="A live server; repeatable, rolled in order.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Name that clients of the servers use.")] = None,
    max_rank: Annotated[int | None, typer.Option(min=1, help="Largest rank the servers take.")] = None,
    max_error: Annotated[float | None, typer.Option(min=0, help="Largest part of the change to be cut off.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Facts of each kind that a server is asked.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the run's base model is, if not where its configuration says.")
    ] = None,
) -> None:
    """Register a version, or send it to live servers, which are switched to it once it answers as it should."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal

    directory = find_run(run)
    with Journal.open(directory / JOURNAL_FILE) as journal:
        given = {"to": to or None, "served_name": served_name, "max_rank": max_rank, "max_error": max_error}
        config = _config(journal, {**given, "sample": sample})
        if alias is None and not config.to:
            raise UserError("publish to what? Give --alias NAME for the model registry, or --to vllm=URL for a server")
        chosen = journal.find_version(version)
        store = open_store(directory)
        if alias is not None:
            _register(journal, store, chosen, directory, alias, name, form, model)
        if config.to and (to or alias is None):
            _roll(journal, store, chosen, directory, config, model)


def _register(
    journal: Journal, store: Any, version: Any, directory: Path, alias: str, name: str | None, form: str, model: Any
) -> None:
    from errata.orchestrator.publish.registry import register_version
    from errata.orchestrator.tracking.moving import address_now

    tracking = journal.meta.config.get("tracking") or {}
    done = register_version(
        journal,
        store,
        version,
        directory,
        name=name or f"errata-{journal.meta.config.get('name', 'run')}",
        alias=alias,
        form=form,
        uri=address_now(tracking, directory),
        experiment=tracking.get("experiment", "errata"),
        model=model,
    )
    was = "registered as" if done.new else "is already"
    typer.echo(f"v{version.sequence} {was} {done.name} version {done.number}, alias {done.alias}")


def _roll(journal: Journal, store: Any, version: Any, directory: Path, config: PublishConfig, model: Any) -> None:
    from errata.orchestrator.publish.publisher import publish_to_servers

    results = publish_to_servers(journal, store, version, config, directory, model=model)
    for result in results:
        marks = f" ({result.marks})" if result.marks is not None and not result.reason else ""
        why = f": {result.reason}" if result.reason else ""
        typer.echo(f"{result.url}: {result.state}{why}{marks}")
    if not all(result.ok for result in results):
        raise typer.Exit(1)


def _config(journal: Journal, given: dict[str, Any]) -> PublishConfig:
    """The run's settings, and above them what was given on the command line."""
    from pydantic import ValidationError

    from errata.orchestrator.config.publish import PublishConfig

    kept = journal.meta.config.get("publish") or {}
    chosen = {key: value for key, value in given.items() if value is not None}
    try:
        return PublishConfig.model_validate({**kept, "every": None, **chosen})
    except ValidationError as error:
        first = error.errors()[0]
        key = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "publish"
        raise UserError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from error
