"""``errata models``: fetch, import and list models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from errata.editing.errors import UserError

models = typer.Typer(help="Models: fetched, imported, and which are there.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(models, name="models")


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="A name that `errata models list` shows, or ORG/NAME on the hub.")],
    as_name: Annotated[
        str | None,
        typer.Option("--name", help="What a model from the hub is called here; NAME by default."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="HF_TOKEN", help="Access token of the hub, for models that ask for one.", show_envvar=True),
    ] = None,
) -> None:
    """Fetch a model into the local store; does nothing if it is there."""
    from errata.editing.checkpoint import fetch
    from errata.editing.checkpoint.importing import fetch_from_hub

    if fetch.fetchable_name(name) is None and name.count("/") == 1:
        own = as_name or name.partition("/")[2].lower()
        typer.echo(str(_shown(name, lambda say: fetch_from_hub(name, own, say, token=token))))
        return
    if as_name is not None:
        raise UserError(f"--name {as_name!r} is for models from the hub; {name!r} has a name")
    typer.echo(str(fetch.model_dir(name) or _shown(name, lambda say: fetch.fetch(name, say))))


@models.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="A GGUF file, or a directory with a config.json and weights.")],
    name: Annotated[str, typer.Option(help="What it is called in `model.name` from here on.")],
) -> None:
    """Make a model of your own available under a name: converted once, and checked by one pass.

    Reads GGUF files, safetensors, pytorch_model.bin (as tensors only; no code in it is run), and the text part of a
    multimodal Gemma-3.
    """
    from errata.editing.checkpoint import importing

    typer.echo(str(_shown(name, lambda say: importing.import_model(path, name, say))))


@models.command("list")
def list_models() -> None:
    """List the models that can be fetched and those that were imported, where they are, and their presets."""
    from errata.editing.checkpoint import fetch
    from errata.editing.checkpoint.kept import imported_models
    from errata.orchestrator.config.loading import read_composed
    from errata.orchestrator.config.model_presets import preset_of

    directories = {name: fetch.model_dir(name) for name in sorted(fetch.MODELS)}
    directories |= {name: directory for name, (directory, _) in imported_models().items()}
    for name, directory in directories.items():
        preset = preset_of(name, read_composed)
        typer.echo(f"{name}\t{directory if directory is not None else 'not fetched'}\t{preset or '-'}")


def _shown(name: str, work: Callable[[Callable[[str], None]], Path]) -> Path:
    """Run what takes a while under a line that says what it is at."""
    console = Console(stderr=True)
    with console.status(name) as status:
        return work(status.update)
