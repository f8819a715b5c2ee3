"""Settings chosen on a validation split: of the runs of a sweep that differ in them the best, by one figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.experiments.collect import Collection, Run
from errata.orchestrator.experiments.config import SweepConfig, settings_of
from errata.orchestrator.experiments.labels import GROUP, SEED, title_of
from errata.orchestrator.experiments.tables import Column, Figure, all_columns, figures_of, heading, mean_of

CHOICE = "choice"
"""Axis of the sweep that the chosen settings make."""


@dataclass(frozen=True)
class Tried:
    """One candidate of a family, with its figure; None where no run has it."""

    labels: Mapping[str, str]
    figure: Figure | None
    split: str
    """Records that it was measured on."""


@dataclass(frozen=True)
class Chosen:
    """The best candidate of runs that are alike in everything else."""

    family: Mapping[str, str]
    """Labels on the other axes."""
    editor: str
    best: Tried
    tried: tuple[Tried, ...]
    column: Column

    @property
    def title(self) -> str:
        """Who it was chosen for: the editor, where no label says more."""
        return title_of(dict(self.family)) or self.editor


def choose(collection: Collection, over: Sequence[str], key: str) -> list[Chosen]:
    """The best of each family of runs that differ along ``over`` alone, by a figure of the edited model.

    Means are over seeds and groups as in the tables; of equal ones the first in the axes' order is taken. Runs of
    different editors are never of one family.

    Raises:
        UserError: there is no such axis or figure, it has no better end, or a family has no figure.
    """
    for axis in over:
        if axis not in collection.axes:
            raise UserError(f"--over {axis!r}: there is no such axis; allowed: {', '.join(collection.axes) or '-'}")
    column = _column(collection.runs, key)
    families: dict[tuple[str, ...], dict[tuple[str, ...], list[Run]]] = {}
    others = [axis for axis in collection.axes if axis not in (*over, SEED, GROUP)]
    for run in collection.runs:
        family = (run.summary.editor, *(run.coordinates.get(axis, "") for axis in others))
        label = tuple(run.coordinates.get(axis, "") for axis in over)
        families.setdefault(family, {}).setdefault(label, []).append(run)
    chosen = []
    for (editor, *place), candidates in families.items():
        tried = tuple(
            Tried({a: text for a, text in zip(over, label, strict=True) if text}, _figure(runs, key), _split(runs))
            for label, runs in candidates.items()
        )
        known = [one for one in tried if one.figure is not None]
        family_labels = {axis: label for axis, label in zip(others, place, strict=True) if label}
        if not known:
            raise UserError(f"{title_of(family_labels) or editor}: no run has the figure {key!r}")
        sign = 1.0 if column.higher else -1.0
        best = max(known, key=lambda one: sign * (one.figure.mean if one.figure is not None else 0.0))
        chosen.append(Chosen(family_labels, editor, best, tried, column))
    return chosen


def _column(runs: Sequence[Run], key: str) -> Column:
    used = {name for run in runs for name, value in figures_of(run, "edited").items() if value is not None}
    columns = {column.key: column for column in all_columns(used) if column.key in used}
    if key not in columns:
        raise UserError(f"--by {key!r}: no run has such a figure; allowed: {', '.join(columns)}")
    if columns[key].higher is None:
        raise UserError(f"--by {key!r}: neither end of it is better")
    return columns[key]


def _figure(runs: Sequence[Run], key: str) -> Figure | None:
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        value = figures_of(run, "edited").get(key)
        if value is not None:
            place = (run.coordinates.get(SEED, ""), run.coordinates.get(GROUP, ""))
            values.setdefault(place, []).append(value)
    return mean_of(values)


def _split(runs: Sequence[Run]) -> str:
    first = min(int(run.settings.get("stream.skip") or 0) for run in runs)
    edits = sum(run.summary.edits_applied + run.summary.edits_failed for run in runs)
    return f"{counted(edits, 'edit')}, from record {first + 1} on"


def choice_lines(chosen: Sequence[Chosen]) -> Iterator[str]:
    """For each family every candidate with its figure, the chosen one marked."""
    for one in chosen:
        yield f"{one.title}: {title_of(dict(one.best.labels))} by {heading(one.column)}, {one.best.split}"
        for tried in one.tried:
            figure = tried.figure
            value = "-" if figure is None else one.column.text(figure.mean)
            error = "" if figure is None or figure.error is None else f" ± {one.column.text(figure.error)}"
            yield f"  {'*' if tried is one.best else ' '} {title_of(dict(tried.labels)):<32}{value}{error}"


def chosen_sweep(config: SweepConfig, chosen: Sequence[Chosen]) -> str:
    """A sweep's file in which every family has its chosen settings; where its stream begins and ends is the reader's.

    ``config``: of the sweep that the choice was made from.
    """
    points: dict[str, Any] = {}
    for one in chosen:
        labels = {**one.family, **one.best.labels}
        points[title_of(labels) or one.editor] = settings_of(config, labels)
    axes: dict[str, Any] = {CHOICE: points}
    if SEED in config.axes:
        axes[SEED] = config.axes[SEED]
    plain = config.model_dump(mode="json", include={"run", "groups", "covariances", "preserve"}, exclude_none=True)
    named = {"name": f"{config.name}-chosen", "about": f"Settings chosen on the validation split of {config.name}."}
    return yaml.safe_dump({**named, **plain, "axes": axes}, sort_keys=False, allow_unicode=True)
