"""Options of several commands, declared once; and commands whose options are a model, checked together and handed on
as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import ValidationError

from errata.editing.closed import Closed
from errata.editing.errors import UserError

M = TypeVar("M", bound=Closed)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one dotted key; repeatable.")
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model's settings, laid over: models/gemma-3-270m, or a file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more.")]


def takes(model: type[M]) -> Callable[[Callable[[M], None]], Callable[..., None]]:
    """A decorator: the command has the model's fields as its arguments and options, and is called with the model.

    Each field is annotated with the ``typer.Option`` or ``typer.Argument`` that it is.
    """
    hints = get_type_hints(model, include_extras=True)

    def decorate(command: Callable[[M], None]) -> Callable[..., None]:
        def called(**given: Any) -> None:
            try:
                options = model(**given)
            except ValidationError as error:
                first = error.errors()[0]
                at = ".".join(map(str, first["loc"]))
                told = str(first["msg"]).removeprefix("Value error, ")
                raise UserError(f"--{at.replace('_', '-')}: {told}" if at else told) from error
            command(options)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=hints[name])
            for name, field in model.model_fields.items()
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {name: hints[name] for name in model.model_fields}
        return called

    return decorate


def show_result(result: Any, lines: Iterable[str], *, output: Path | None, as_json: bool = False) -> None:
    """Print what a command found, as lines or as JSON, and write the JSON to ``output`` where one is named."""
    from errata.orchestrator.history.text import plain

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(plain(result) + "\n", encoding="utf-8")
    for line in [plain(result)] if as_json else lines:
        typer.echo(line)
