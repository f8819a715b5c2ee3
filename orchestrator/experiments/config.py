"""A sweep's file: one run's settings, the axes along which they vary, and what becomes of that as single runs.

name: editors
run:                                  # as any run's file, `extends` included
  extends: models/smollm2-135m
  stream: {path: configs/streams/quickstart.jsonl}
  covariance: {tokens: 7500}
axes:
  method:                             # labels, each with what it sets
    MEMIT: {editor.type: memit}
    AlphaEdit: {editor.type: alphaedit, editor.tau: 0.02}
  stream.limit: [10, 100]             # or one dotted key with its values
  seed: [0, 1, 2]
exclude:
  - {method: MEMIT, stream.limit: 100}
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.orchestrator.config.explain import explain
from errata.orchestrator.config.loading import apply_override, check_config, overlaid, read_composed, with_found_files
from errata.orchestrator.config.presets import find_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.experiments.labels import EDITS, GROUP, text_of, title_of

Coordinates = dict[str, str]
"""Label by axis, as text."""
Settings = list[tuple[str, Any]]
"""Dotted keys with their values, each over the ones before."""


class GroupsConfig(Closed):
    """The same records cut into groups of several sizes, each group a run from the unedited model."""

    records: int = Field(ge=1)
    """Records of the stream, from ``stream.skip`` on, that every size divides among its groups."""
    sizes: tuple[int, ...] = Field(min_length=1)
    """Edits of a run; each size gives records / size runs."""
    then: tuple[int, ...] = ()
    """Edits of longer runs that begin at the same record, one each."""
    at_most: int | None = Field(None, ge=1)
    """No more groups than this of each size, spread over the records; null for all."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> GroupsConfig:
        bad = [size for size in self.sizes if size < 1 or self.records % size]
        if bad:
            raise ValueError(f"every size must divide records = {self.records} evenly; got {bad}")
        return self

    def cells(self, skip: int) -> Iterator[tuple[Coordinates, Settings]]:
        """Coordinates and settings of every group, the first at record ``skip``."""
        for size in self.sizes:
            count = self.records // size
            wanted = min(count, self.at_most or count)
            for group in (number * count // wanted for number in range(wanted)):
                yield _group(size, group, skip + group * size)
        for size in self.then:
            yield _group(size, 0, skip)


def _group(size: int, number: int, skip: int) -> tuple[Coordinates, Settings]:
    return {EDITS: str(size), GROUP: str(number)}, [("stream.skip", skip), ("stream.limit", size)]


class PreserveConfig(Closed):
    """What `errata preserve` asks of every finished run of a sweep, on that run's own Ray settings."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """As ``--tasks``: the harness's names, ``humaneval``, ``perplexity``, ``edits``, ``retention``, ``fluency``,
    ``uncertainty``."""
    versions: tuple[str, ...] = Field(("v0", "head"), min_length=1)
    """The first is the reference; ``timeline`` stands for all versions at which the run was measured."""
    limit: int | None = Field(None, ge=1)
    """Items of each task, drawn at random; null for all."""
    data: str | None = None
    """Directory of benchmark files."""
    task_files: str | None = None
    """Directory of further task files for the harness."""
    text: dict[str, str] = {}
    """Held-out text by domain, for ``perplexity``."""
    fewshot: dict[str, int] = {}
    """Worked examples by task."""
    chat: bool = False
    """Put questions through the model's chat template."""
    seed: int = Field(0, ge=0)

    def arguments(self, directory: Path) -> list[str]:
        """The words behind ``errata preserve`` for one run."""
        words = [*self.versions, "--run", str(directory), "--tasks", ",".join(self.tasks), "--seed", str(self.seed)]
        words += [] if self.limit is None else ["--limit", str(self.limit)]
        for option, path in (("--data", self.data), ("--task-files", self.task_files)):
            words += [] if path is None else [option, str(Path(path).expanduser().absolute())]
        for name, path in self.text.items():
            words += ["--text", f"{name}={Path(path).expanduser().absolute()}"]
        for name, count in self.fewshot.items():
            words += ["--fewshot", f"{name}={count}"]
        return [*words, "--chat"] if self.chat else words


class SweepConfig(Closed):
    """A grid of runs."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the sweep and of its default directory."""
    about: str = ""
    """What the sweep is for: one or two sentences that the tables repeat."""
    run: dict[str, Any]
    """Settings of every run, as in a run's own file; ``extends`` too."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any] | None]] = {}
    """What varies: a dotted key with its values, or a name with labels and the settings each stands for. An axis
    called ``seed`` holds repetitions, over which tables show means and standard errors."""
    groups: GroupsConfig | None = None
    """Runs of several lengths over the same records; makes the axes ``edits`` and ``group``."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Cells left out: all that have these labels; a list stands for any of its labels."""
    include: tuple[dict[str, Any], ...] = ()
    """Single cells beside the grid: labels of axes, and under ``set`` further settings."""
    tables: tuple[str, ...] = ()
    """Axes whose labels have tables of their own; those that change the model, the data or the number of edits
    where none is named."""
    covariances: str | None = None
    """Directory of the covariances that cells share; null for one in the sweep's directory."""
    preserve: PreserveConfig | None = None
    """Benchmarks put to versions of every run once it is finished; null for none."""

    @field_validator("axes", mode="before")
    @classmethod
    def _labels_as_text(cls, axes: Any) -> Any:
        """YAML reads a label such as 100 as a number."""
        if not isinstance(axes, Mapping):
            return axes
        return {
            str(name): {text_of(label): given for label, given in points.items()}
            if isinstance(points, Mapping)
            else points
            for name, points in axes.items()
        }

    @model_validator(mode="after")
    def _axes_are_sound(self) -> SweepConfig:
        for name in self.axes:
            labels = self.labels(name)
            if not labels:
                raise ValueError(f"axis {name!r} has no value")
            if len(set(labels)) < len(labels):
                raise ValueError(f"axis {name!r} names a value twice: {', '.join(labels)}")
            if self.groups is not None and name in (EDITS, GROUP, "stream.limit", "stream.skip"):
                raise ValueError(f"axis {name!r} is made by groups; leave it out")
        return self

    @model_validator(mode="after")
    def _labels_are_known(self) -> SweepConfig:
        for entry in self.exclude:
            for name, wanted in entry.items():
                self._check_labels("exclude", name, wanted, self.axis_names())
        for entry in self.include:
            for name, wanted in entry.items():
                if name != "set":
                    self._check_labels("include", name, wanted, list(self.axes))
                elif not isinstance(wanted, Mapping):
                    raise ValueError(f"include: set holds dotted keys with values, got {wanted!r}")
        for name in self.tables:
            if name not in self.axis_names():
                raise ValueError(f"tables: there is no axis {name!r}; allowed: {', '.join(self.axis_names())}")
        return self

    def _check_labels(self, kind: str, axis: str, wanted: Any, axes: Sequence[str]) -> None:
        if axis not in axes:
            raise ValueError(f"{kind}: there is no axis {axis!r}; allowed: {', '.join(axes)}")
        known = self.labels(axis)
        bad = [label for label in _labels(wanted) if label not in known]
        if bad:
            raise ValueError(f"{kind}: axis {axis!r} has no {bad[0]!r}; allowed: {', '.join(known)}")

    def axis_names(self) -> list[str]:
        """Every axis in order, those of ``groups`` last."""
        return [*self.axes, *((EDITS, GROUP) if self.groups is not None else ())]

    def labels(self, axis: str) -> list[str]:
        """Labels of one axis as text; none where there is no such axis."""
        if axis in self.axes:
            return [text_of(label) for label in self.axes[axis]]
        if self.groups is not None and axis in (EDITS, GROUP):
            return list(dict.fromkeys(coordinates[axis] for coordinates, _ in self.groups.cells(0)))
        return []


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    coordinates: Coordinates
    """Label by axis."""
    config: RunConfig
    key: str
    """Digest of everything that decides the run's results, the end of its stream included."""

    @property
    def title(self) -> str:
        """The labels in one line."""
        return title_of(self.coordinates)


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it, and the runs that come of it, each once."""

    config: SweepConfig
    cells: tuple[Cell, ...]

    def to_yaml(self) -> str:
        """The file with everything it extends filled in."""
        plain = self.config.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump({"name": self.config.name, **plain}, sort_keys=False, allow_unicode=True)


def load_sweep(name_or_path: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file, apply ``dotted.key=value`` overrides to its ``run``, and make its cells.

    Args:
        only: ``axis=label[,label]``: keep the cells with these labels.

    Raises:
        UserError: the file is missing or malformed, an axis or a label is unknown, a cell's settings do not fit
            (the message names the cell), an override is of a key that an axis sets, or no cell is left.
    """
    path = find_config(name_or_path)
    config = read_sweep(path)
    run = dict(config.run)
    for override in overrides:
        apply_override(run, override)
        _refuse_axis_key(config, override.partition("=")[0].strip(), only)
    config = config.model_copy(update={"run": run})
    wanted = [_only(config, text) for text in only]
    cells = [c for c in make_cells(config, path) if all(_matches(c.coordinates, entry) for entry in wanted)]
    if not cells:
        raise UserError(f"--only {' '.join(only)}: no cell of {path} has these labels")
    return Sweep(config, tuple(cells))


def _refuse_axis_key(config: SweepConfig, key: str, only: Sequence[str]) -> None:
    """An override that a chosen cell would override again is a misunderstanding."""
    for axis, points in config.axes.items():
        chosen = {label for text in only for label in text.partition("=")[2].split(",") if text.startswith(f"{axis}=")}
        settings = (
            [nested(axis, None)]
            if isinstance(points, list)
            else [given for label, given in points.items() if not chosen or str(label) in chosen]
        )
        if any(_holds(given or {}, key.split(".")) for given in settings):
            raise UserError(f"--set {key}: axis {axis!r} sets it; choose among its labels with --only")
    if config.groups is not None and key == "stream.limit":
        raise UserError("--set stream.limit: groups set it; choose among their sizes with --only edits=N")


def _holds(settings: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether nested settings have something at a path."""
    first, *rest = path
    below = settings.get(first)
    return first in settings and (not rest or (isinstance(below, Mapping) and _holds(below, rest)))


def _only(config: SweepConfig, text: str) -> dict[str, Any]:
    axis, equals, labels = text.partition("=")
    if not equals or not labels:
        raise UserError(f"--only {text!r}: want axis=label[,label]")
    if axis not in config.axis_names():
        raise UserError(f"--only {text!r}: there is no axis {axis!r}; allowed: {', '.join(config.axis_names())}")
    wanted, known = labels.split(","), config.labels(axis)
    for label in wanted:
        if label not in known:
            raise UserError(f"--only {text!r}: axis {axis!r} has no {label!r}; allowed: {', '.join(known)}")
    return {axis: wanted}


def read_sweep(path: Path) -> SweepConfig:
    """The sweep in a file, its ``run`` laid over what that extends.

    Raises:
        UserError: as `load_sweep`.
    """
    data = read_composed(path)
    if not isinstance(data.get("run"), dict):
        raise UserError(f"{path}: a sweep has a section 'run' with the settings that its runs share")
    data["run"] = _composed(data["run"], path, "run")
    for name, points in (data.get("axes") or {}).items():
        if isinstance(points, dict):
            data["axes"][name] = {
                label: _composed(given, path, f"axes.{name}.{label}") if isinstance(given, dict) else given
                for label, given in points.items()
            }
    try:
        return SweepConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, SweepConfig, str(path))) from error


def _composed(settings: dict[str, Any], path: Path, where: str) -> dict[str, Any]:
    """Settings with the run files or presets they extend laid under them."""
    names = settings.get("extends", [])
    below: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        beside = path.parent / f"{name}.yaml"
        try:
            below = overlaid(below, read_composed(beside if beside.is_file() else find_config(str(name))))
        except UserError as error:
            raise UserError(f"{path}: {where}.extends: {error}") from error
    for key, value in settings.items():
        if key != "extends":
            below = overlaid(below, nested(key, value))
    return below


def make_cells(config: SweepConfig, source: Path | None = None) -> list[Cell]:
    """Every cell of the grid in order, then the included ones; cells that come to the same run are one.

    Raises:
        UserError: a cell's settings do not fit, an exclusion leaves out nothing, or no cell is left.
    """
    points = list(_grid(config))
    for entry in config.exclude:
        if not any(_matches(coordinates, entry) for coordinates, _ in points):
            raise UserError(f"{source or config.name}: exclude {entry} leaves out no cell")
    kept = [point for point in points if not any(_matches(point[0], entry) for entry in config.exclude)]
    kept += [_included(config, entry) for entry in config.include]
    if not kept:
        raise UserError(f"{source or config.name}: no cell is left")
    cells: dict[str, Cell] = {}
    for coordinates, settings in kept:
        cell = _cell(config, coordinates, settings, source)
        cells.setdefault(cell.key, cell)
    return list(cells.values())


def _grid(config: SweepConfig) -> Iterator[tuple[Coordinates, Settings]]:
    axes: list[list[tuple[Coordinates, Settings]]] = [
        [({name: text_of(label)}, _settings(name, points, label)) for label in points]
        for name, points in config.axes.items()
    ]
    if config.groups is not None:
        skip = (config.run.get("stream") or {}).get("skip") or 0
        axes.append(list(config.groups.cells(skip)))
    for choice in itertools.product(*axes):
        coordinates: Coordinates = {}
        settings: Settings = []
        for place, given in choice:
            coordinates |= place
            settings += given
        yield coordinates, settings


def _settings(name: str, points: Any, label: Any) -> Settings:
    return list((points[label] or {}).items()) if isinstance(points, dict) else [(name, label)]


def settings_of(config: SweepConfig, labels: Mapping[str, str]) -> dict[str, Any]:
    """What labels of axes set, as sections, each over the ones before; axes that ``groups`` makes set nothing here."""
    data: dict[str, Any] = {}
    for name, points in config.axes.items():
        if name not in labels:
            continue
        label = next(label for label in points if text_of(label) == labels[name])
        for key, value in _settings(name, points, label):
            data = overlaid(data, nested(key, value))
    return data


def _included(config: SweepConfig, entry: Mapping[str, Any]) -> tuple[Coordinates, Settings]:
    coordinates: Coordinates = {}
    settings: Settings = []
    for name, wanted in entry.items():
        if name != "set":
            points = config.axes[name]
            coordinates[name] = text_of(wanted)
            label = next(label for label in points if text_of(label) == coordinates[name])
            settings += _settings(name, points, label)
    more = dict(entry.get("set") or {})
    # what is set beyond the axes tells included cells from those of the grid
    return coordinates | {key: text_of(value) for key, value in more.items()}, settings + list(more.items())


def _matches(coordinates: Mapping[str, str], entry: Mapping[str, Any]) -> bool:
    """Whether a cell has one of the labels of an entry on each of its axes."""
    return all(coordinates.get(name) in _labels(wanted) for name, wanted in entry.items())


def _labels(wanted: Any) -> list[str]:
    return [text_of(label) for label in (wanted if isinstance(wanted, list) else [wanted])]


def _cell(config: SweepConfig, coordinates: Coordinates, settings: Settings, source: Path | None) -> Cell:
    data: dict[str, Any] = config.run
    for key, value in settings:
        data = overlaid(data, nested(key, value))
    checked = check_config(data, f"{source or config.name}, cell [{title_of(coordinates)}]")
    # of the paths as they are written: the same sweep started from elsewhere has the same cells
    key = digest_json({"run": checked.identity(), "limit": checked.stream.limit})
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", f"{config.name} {title_of(coordinates)}").strip("-")[:80]
    resolved = with_found_files(checked, source)
    return Cell(coordinates, resolved.model_copy(update={"name": f"{slug}-{key[:6]}"}), key)


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b = value`` as sections within sections."""
    first, dot, rest = key.partition(".")
    return {first: nested(rest, value) if dot else value}
