"""What the commands have in common: RUN given bare or as an option, and the panels that ``errata --help`` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

PANELS: dict[str, tuple[str, ...]] = {
    "Run": ("run", "sweep", "doctor"),
    "Look": ("log", "show", "diff", "waiting", "verify", "bisect"),
    "Change": ("revert", "withdraw", "snapshot", "tag", "compact", "erase", "migrate", "gc", "checkout", "export"),
    "Serve": ("serve", "publish"),
    "Compare": ("compare", "choose", "leaderboard", "judge", "preserve", "geometry", "norms"),
    "Models": ("models", "calibrate", "covariance", "locate", "router", "train-editor"),
}
"""Commands by what one wants, in the order in which they are listed."""


class RunCommand(TyperCommand):
    """A command whose ``--run DIR`` may also be given bare, wherever it stands: ``errata show v3 runs/demo``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_run(args, self.params))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces, "[RUN]"] if _option(self.params) is not None else pieces


def with_run(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """The arguments with a bare RUN turned into ``--run RUN``, for a command with these parameters.

    A command that takes nothing else bare takes any word for a run. Of the others the last bare word that names a run
    is one, so that an edit's id or a version is never mistaken for it.
    """
    from errata.orchestrator.history.log import names_run

    given = list(args)
    if _option(params) is None or any(word == "--run" or word.startswith("--run=") for word in given):
        return given
    bare = _bare(given, params)
    others = [param for param in params if param.param_type_name == "argument"]
    for place in reversed(bare):
        if not others or names_run(given[place]):
            word = given.pop(place)
            return ["--run", word, *given]
    return given


def _option(params: Sequence[Any]) -> Any:
    return next((param for param in params if "--run" in param.opts), None)


def _bare(args: Sequence[str], params: Sequence[Any]) -> list[int]:
    """Places of the words that are neither an option nor the value of one."""
    takes = {
        name: 0 if getattr(param, "is_flag", False) or getattr(param, "count", False) else param.nargs
        for param in params
        if param.param_type_name == "option"
        for name in (*param.opts, *param.secondary_opts)
    }
    places: list[int] = []
    place = 0
    while place < len(args):
        word = args[place]
        if word == "--":
            places += range(place + 1, len(args))
            break
        if word.startswith("-") and word != "-":
            place += takes.get(word, 0)
        else:
            places.append(place)
        place += 1
    return places


def arrange(app: typer.Typer) -> None:
    """Put every command into its panel and order, let it take RUN bare, and ``~`` in every path."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    order = {name: number for number, name in enumerate(panels)}

    def name_of(info: Any) -> str:
        return str(info.name or info.callback.__name__)

    for info in app.registered_commands:
        info.rich_help_panel = panels.get(name_of(info), "More")
        info.cls, info.callback = RunCommand, _at_home(info.callback)
    app.registered_commands.sort(key=lambda info: order.get(name_of(info), len(order)))
    for group in app.registered_groups:
        group.rich_help_panel = panels.get(str(group.name), "More")
        for info in group.typer_instance.registered_commands if group.typer_instance is not None else ():
            info.callback = _at_home(info.callback)


def _at_home(command: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The command with ``~`` at the beginning of its paths read: a shell leaves it in ``--output=~/x``."""
    if command is None:
        return None

    def expanded(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(expanded, value))
        return value.expanduser() if isinstance(value, Path) else value

    @wraps(command)
    def called(**given: Any) -> Any:
        return command(**{name: expanded(value) for name, value in given.items()})

    return called
