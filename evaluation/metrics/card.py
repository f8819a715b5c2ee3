"""What is known of a metric beside its code: name, version, direction, source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class MetricCard:
    """A metric's entry in `METRICS`. A change of its meaning raises its version."""

    name: str
    version: int
    higher_is_better: bool | None
    """None where neither end is good in itself."""
    source: str
    function: Callable[..., Any]

    @property
    def definition(self) -> str:
        """First paragraph of the function's docstring."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())


METRICS: dict[str, MetricCard] = {}
"""Name -> card; filled by the `metric` decorator when the metric modules are imported."""


def metric(name: str, *, version: int, source: str, higher_is_better: bool | None = True) -> Callable[[F], F]:
    """Enter a function into `METRICS` and write source, direction and version into its docstring.

    Raises:
        ValueError: the name is taken, or the function has no docstring.
    """

    def enter(function: F) -> F:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is defined twice")
        if not function.__doc__:
            raise ValueError(f"metric {name!r} has no definition; write it into its docstring")
        direction = {
            True: "higher is better",
            False: "lower is better",
            None: "neither end is better in itself",
        }
        METRICS[name] = MetricCard(name, version, higher_is_better, source, function)
        function.__doc__ += f"\n\nSource: {source}\nDirection: {direction[higher_is_better]}\nVersion: {version}\n"
        return function

    return enter
