"""What runs and sweeps have left, read for comparison: figures, settings, and what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from errata.editing.errors import UserError
from errata.editing.wording import counted, model_title
from errata.orchestrator.experiments.labels import text_of
from errata.orchestrator.experiments.record import SWEEP_FILE, read_record
from errata.orchestrator.report.preserved import KeptVersion, read_preserved
from errata.orchestrator.report.summary import Summary, read_summary

_SUMMARY, _RESOLVED, _FACTS = "summary.json", "resolved.yaml", "facts.jsonl"
_NO_MATTER = ("name", "ray", "tracking", "covariance.store", "evaluation.latency_questions")
"""Settings that change no figure."""
_PATHS = ("stream.path", "evaluation.held_out", "covariance.corpus.path")
_MODEL = "model.name"
_FIRST = (_MODEL, "editor.type", "editor.regime", "covariance.source", "covariance.seed_mode", "batching.size")
"""Keys that say most, so that they and not others name a difference."""
_SECTIONS = (
    *("model", "editor", "covariance", "contexts", "batching", "verify", "refresh", "repair", "memory", "router"),
    *("seed", "schedule", "stream", "evaluation"),
)
"""Sections by how much they say of a method: a run's length and what was measured name a difference last."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    directory: Path
    summary: Summary
    settings: Mapping[str, Any]
    """Dotted key -> value of the resolved configuration."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Edit -> digest of its prompt, target and probes: the data behind the figures."""
    coordinates: Mapping[str, str] = field(default_factory=dict)
    """Label by axis."""
    preserved: tuple[KeptVersion, ...] = ()
    """What `errata preserve` has found of its versions."""

    def version(self, digest: str) -> KeptVersion | None:
        """What is known of one of them."""
        return next((version for version in self.preserved if version.digest == digest), None)


@dataclass(frozen=True)
class Collection:
    """Runs that are to be compared, the axes that tell them apart, and what is missing."""

    runs: tuple[Run, ...]
    axes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    title: str = ""
    about: str = ""
    split: tuple[str, ...] = ()
    """Axes by which the tables are to be split, where whoever made the runs has said so."""


def collect(paths: Sequence[Path]) -> Collection:
    """Read run and sweep directories. A sweep's axes are the axes; else the keys on which the runs differ.

    Raises:
        UserError: a path holds neither a run nor a sweep, a file is damaged, or no run is finished.
    """
    runs: list[Run] = []
    notes: list[str] = []
    axes: list[str] = []
    split: list[str] = []
    titles: list[tuple[str, str]] = []
    plain = False
    for path in paths:
        if (path / SWEEP_FILE).is_file():
            record = read_record(path / SWEEP_FILE)
            titles.append((record.name, record.about))
            axes += [axis for axis in record.axes if axis not in axes]
            split += [axis for axis in record.tables if axis not in split]
            done = [cell for cell in record.cells if cell.state == "done"]
            runs += [read_run(path / cell.directory, cell.coordinates) for cell in done]
            if len(done) < len(record.cells):
                states = {state: record.count(state) for state in ("failed", "interrupted", "running", "waiting")}
                said = ", ".join(f"{count} {state}" for state, count in states.items() if count)
                notes.append(f"{len(done)} of {counted(len(record.cells), 'cell')} of {record.name} are done: {said}")
        else:
            runs.append(read_run(path))
            plain = True
    if not runs:
        raise UserError(f"{', '.join(map(str, paths))}: no run has finished")
    runs = _titled(_completed(runs))
    if plain or not axes:
        axes = differing_keys([run.settings for run in runs])
        runs = [_placed(run, axes) for run in runs]
        split = []
    title, about = titles[0] if len(titles) == 1 and not plain else ("Comparison", "")
    return Collection(tuple(runs), tuple(axes), tuple(notes), title, about, tuple(split))


def read_run(path: Path, coordinates: Mapping[str, str] | None = None) -> Run:
    """One run by its directory, or by a file in it.

    Raises:
        UserError: there is no finished run.
    """
    directory = path.parent if path.name == _SUMMARY else path
    if not (directory / _SUMMARY).is_file():
        raise UserError(f"{str(path)!r} holds no finished run (no {_SUMMARY}) and no sweep (no {SWEEP_FILE})")
    summary = read_summary(directory / _SUMMARY)
    try:
        plain = yaml.safe_load((directory / _RESOLVED).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{directory / _RESOLVED} cannot be read: {type(error).__name__}") from error
    if not isinstance(plain, Mapping):
        raise UserError(f"{directory / _RESOLVED} is no configuration")
    settings = flat(plain)
    for key in _PATHS:
        # the same file may be named from several places; what was asked of it is compared by content
        settings[key] = Path(settings[key]).name if settings.get(key) else None
    asked = read_asked(directory / _FACTS)
    return Run(directory, summary, settings, asked, dict(coordinates or {}), read_preserved(directory))


def read_asked(path: Path) -> dict[str, str]:
    """Digest of what was asked about each edit; answers do not count.

    Raises:
        UserError: the file is not there, or a line is no fact.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}") from error
    asked = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fact = json.loads(line)
            probes = [[probe["kind"], probe["prompt"], probe["expected"]] for probe in fact["probes"]]
            asked[str(fact["id"])] = _digest([fact["prompt"], fact["subject"], fact["target_new"], probes])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a fact of a run") from error
    return asked


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def matters(key: str) -> bool:
    """Whether a setting may change a figure."""
    return not any(key == name or key.startswith(f"{name}.") for name in _NO_MATTER)


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest keys that tell all the settings apart that differ: a key whose value follows from those before it
    says nothing new (an editor's own parameters follow from its type)."""
    keys = {key for one in settings for key in one if matters(key)}
    varying = [key for key in keys if len({_plain(one, key) for one in settings}) > 1]
    order = sorted(varying, key=_rank)
    kept: list[str] = []
    for key in order:
        told = {tuple(_plain(one, k) for k in kept) for one in settings}
        if len({tuple(_plain(one, k) for k in [*kept, key]) for one in settings}) > len(told):
            kept.append(key)
    return kept


def _rank(key: str) -> tuple[int, int, str]:
    section = key.partition(".")[0]
    return (
        _FIRST.index(key) if key in _FIRST else len(_FIRST),
        _SECTIONS.index(section) if section in _SECTIONS else len(_SECTIONS),
        key,
    )


def changed_by(axis: str, runs: Iterable[Run]) -> set[str]:
    """Settings that change when a run has another label on this axis and the same ones on all others; where no two
    runs are so alike, settings that are constant at every label and differ between labels."""
    runs = list(runs)
    families: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        others = tuple(sorted((k, v) for k, v in run.coordinates.items() if k != axis))
        families.setdefault(others, []).append(run)
    pairs = [(a, b) for family in families.values() for a, b in pairwise(family)]
    if pairs:
        return {
            key
            for a, b in pairs
            for key in {*a.settings, *b.settings}
            if matters(key) and a.settings.get(key) != b.settings.get(key)
        }
    keys = set()
    for key in {key for run in runs for key in run.settings if matters(key)}:
        values: dict[str | None, set[str]] = {}
        for run in runs:
            values.setdefault(run.coordinates.get(axis), set()).add(_plain(run.settings, key))
        if all(len(seen) == 1 for seen in values.values()) and len(set().union(*values.values())) > 1:
            keys.add(key)
    return keys


def _completed(runs: Sequence[Run]) -> list[Run]:
    """The runs with the defaults of settings that other releases' runs say and they do not: before there was such a
    setting, a run did as its default has it."""
    said = {key for run in runs for key in run.settings}
    if all(said <= set(run.settings) for run in runs):
        return list(runs)
    # it knows every editor, and so needs torch, which a comparison of runs of one kind does without
    from errata.orchestrator.config.defaults import defaults_of

    done = []
    for run in runs:
        usual = flat(defaults_of(run.settings.get("editor.type")))
        done.append(replace(run, settings={**{k: v for k, v in usual.items() if k in said}, **run.settings}))
    return done


def _titled(runs: Sequence[Run]) -> list[Run]:
    """The runs with their models called as `model_title` has it; with their digests where two of other names would be
    called alike."""
    names: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    for run in runs:
        title = model_title(str(run.settings.get(_MODEL)))
        names.setdefault(title, set()).add(str(run.settings.get(_MODEL)))
        digests.setdefault(title, set()).add(run.summary.model.digest)

    def titled(run: Run) -> Run:
        title = model_title(str(run.settings.get(_MODEL)))
        alone = len(names[title]) == 1 or len(digests[title]) == 1
        shown = title if alone else f"{title} ({run.summary.model.digest[:8]})"
        again = {_MODEL: shown} if _MODEL in run.coordinates else {}
        return replace(run, settings={**run.settings, _MODEL: shown}, coordinates={**run.coordinates, **again})

    return [titled(run) for run in runs]


def _placed(run: Run, axes: Sequence[str]) -> Run:
    coordinates = {axis: text_of(run.settings.get(axis)) for axis in axes}
    return replace(run, coordinates=coordinates)


def _digest(value: Any) -> str:
    # not `errata.editing.digest`, which needs torch: a comparison does without
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def _plain(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings.get(key), sort_keys=True, default=str)
