"""The points of runs' timelines as runs of their own: one set beside the other at every number of edits."""

from __future__ import annotations

from dataclasses import replace

from errata.editing.errors import UserError
from errata.orchestrator.experiments.collect import Collection, Run
from errata.orchestrator.experiments.labels import EDITS
from errata.orchestrator.report.summary import TimelinePoint

_NOTE = "figures of the timeline's facts, the first to be written, at that number of edits"


def at_points(collection: Collection) -> Collection:
    """Every point after the base as a run with that many edits, in a table of its own.

    A timeline asks about the same facts at each point, the earliest of the stream: their figures tell how these are
    retained while later edits go on.

    Raises:
        UserError: no run has a timeline.
    """
    runs = tuple(
        _at(run, point) for run in collection.runs for point in run.summary.timeline if point.edits > 0 and point.arms
    )
    if not runs:
        raise UserError("--timeline: no run was measured while its edits went on; set evaluation.every")
    runs = tuple(sorted(runs, key=lambda run: int(run.coordinates[EDITS])))
    axes = tuple(dict.fromkeys([*collection.axes, EDITS]))
    return replace(collection, runs=runs, axes=axes, split=(*collection.split, EDITS), notes=(*collection.notes, _NOTE))


def _at(run: Run, point: TimelinePoint) -> Run:
    figures = {
        "arms": point.arms,
        "choice": point.choice,
        "perplexity": point.perplexity,
        "perplexities": point.perplexities,
        "edits_applied": point.edits,
        "version": point.version,
        "facts_measured": point.facts,
        "skipped_probes": point.skipped_probes,
        "intervals": {},
    }
    coordinates = {**run.coordinates, EDITS: str(point.edits)}
    return replace(run, summary=run.summary.model_copy(update=figures), coordinates=coordinates)
