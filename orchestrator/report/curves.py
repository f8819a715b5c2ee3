"""The report's charts over the number of edits, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from errata.orchestrator.report.charts import PERCENT, Band, Event, Form, Series, line_chart
from errata.orchestrator.report.formats import (
    count,
    duration,
    fixed,
    mapping,
    number,
    percent,
    sequence,
    short_digest,
)
from errata.orchestrator.report.wording import ARM_LABELS, GENERATED, TEACHER_FORCED, Metric

# the dashed base on top: it hides nothing beneath it
DRAW_ORDER = ("ike", "ike_oracle", "memory", "edited", "edited_memory", "routed", "base")
TOLERATED = 0.10  # relative change of held-out perplexity that counts as an intact model
MOST_SHADES = 5  # the style sheet knows so many looks for the lines of the matrices
MOST_LAYERS = 8  # more lines than this cannot be labeled at their ends


@dataclass(frozen=True)
class Chart:
    """One chart with its title, the way it was measured, and a line that says how to read it."""

    title: str
    measured: str
    caption: str
    drawing: Markup


def timeline(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The evaluations of a run that say after how many edits they were made, in that order."""
    points = [mapping(point) for point in sequence(summary.get("timeline"))]
    return sorted((p for p in points if number(p.get("edits")) is not None), key=lambda p: float(p["edits"]))


def charts(summary: Mapping[str, Any]) -> list[Chart]:
    """Every chart that has something to show; none for a run without evaluations."""
    points = timeline(summary)
    events = _events(summary)
    drawn = [_metric_chart(points, metric, "generated", events) for metric in GENERATED]
    drawn += [_metric_chart(points, metric, "teacher-forced", events) for metric in TEACHER_FORCED]
    drawn += [_perplexity_chart(points, events), _norm_chart(points, events)]
    return [chart for chart in drawn if chart.drawing]


def _metric_chart(points: list[Mapping[str, Any]], metric: Metric, measured: str, events: list[Event]) -> Chart:
    names = {arm.key: arm.short for arm in ARM_LABELS}
    series = [
        Series(key, names[key], tuple((float(p["edits"]), _arm_value(p, key, metric.key)) for p in points))
        for key in DRAW_ORDER
    ]
    drawing = line_chart(
        f"{metric.name} ({measured})",
        series,
        form=PERCENT,
        y_range=(0.0, 1.0),
        events=events,
    )
    return Chart(metric.name, measured, metric.definition, drawing)


def _arm_value(point: Mapping[str, Any], arm: str, metric: str) -> float | None:
    return number(mapping(mapping(point.get("arms")).get(arm)).get(metric))


def _perplexity_chart(points: list[Mapping[str, Any]], events: list[Event]) -> Chart:
    def values(key: str) -> tuple[tuple[float, float | None], ...]:
        return tuple((float(p["edits"]), number(mapping(p.get("perplexity")).get(key))) for p in points)

    base = next((y for _, y in values("base") if y is not None), None)
    band = None
    if base is not None:
        band = Band(base * (1 - TOLERATED), base * (1 + TOLERATED), f"within {percent(TOLERATED, 0)} of the base")
    drawing = line_chart(
        "Perplexity on held-out text",
        [Series("edited", "Edited", values("edited")), Series("base", "Base", values("base"))],
        form=Form(1),
        tick=Form(None),
        events=events,
        band=band,
    )
    caption = "Text that no edit is about. Lower is better; a rising line is damage to the model as a whole."
    return Chart("Perplexity", "held-out text", caption, drawing)


def _norm_chart(points: list[Mapping[str, Any]], events: list[Event]) -> Chart:
    layers = sorted({str(layer) for p in points for layer in mapping(p.get("norms"))}, key=_layer_order)
    word = "layer " if all(len(layer) == 1 for layer in layers) else "L"  # room at the line's end is scarce
    series = []
    for index, layer in enumerate(layers):
        norms = [(float(p["edits"]), number(mapping(p.get("norms")).get(layer))) for p in points]
        first = next((norm for _, norm in norms if norm), None)
        if first is not None:
            relative = tuple((x, None if norm is None else norm / first - 1) for x, norm in norms)
            shade = index * (MOST_SHADES - 1) // max(len(layers) - 1, 1)
            series.append(Series(f"shade{shade}", f"{word}{layer}", relative))
    caption = "Frobenius norm of each edited matrix against its first measurement. Steady growth foretells collapse."
    if len(series) > MOST_LAYERS:
        series = sorted(series, key=_last_change, reverse=True)[:MOST_LAYERS]
        caption += f" Shown: the {MOST_LAYERS} that changed most."
    span = max((abs(y) for line in series for _, y in line.points if y is not None), default=0.0)
    digits = 1 if span >= 0.02 else 2 if span >= 0.002 else 3
    drawing = line_chart(
        "Change of the norms of the edited matrices",
        series,
        form=Form(digits, 100.0, "%", sign=True),
        events=events,
    )
    return Chart("Weight norms", "edited matrices", caption, drawing)


def _last_change(series: Series) -> float:
    return next((abs(y) for _, y in reversed(series.points) if y is not None), 0.0)


def _layer_order(layer: str) -> tuple[int, str]:
    return (int(layer), layer) if layer.isdigit() else (10**9, layer)


def _events(summary: Mapping[str, Any]) -> list[Event]:
    events = []
    for index, event in enumerate(map(mapping, sequence(summary.get("refresh_events"))), start=1):
        swapped = number(event.get("swapped_at"))
        if swapped is None:
            continue
        detail = [
            f"Refresh {index} of the covariance",
            f"triggered at edit {count(event.get('triggered_at'))}, in use from edit {count(swapped)}",
            f"{count(event.get('tokens'))} tokens in {duration(event.get('seconds'))}",
            f"from version {short_digest(event.get('source_version'))}",
        ]
        events.append(Event(swapped, f"refresh {index}", str(index), "\n".join(detail)))
    return events


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The numbers behind the charts: column names and one row per evaluation and arm."""
    metrics = [*GENERATED, *TEACHER_FORCED]
    header = ["Edits", "Facts asked", "Version", "Arm", *(metric.key for metric in metrics), "Perplexity", "After"]
    rows = []
    for point in timeline(summary):
        for arm in ARM_LABELS:
            values = [percent(_arm_value(point, arm.key, metric.key)) for metric in metrics]
            perplexity = mapping(point.get("perplexity")).get(arm.key)
            start = [
                count(point.get("edits")),
                count(point.get("facts")),
                short_digest(point.get("version"), 10),
                arm.name,
            ]
            rows.append([*start, *values, fixed(perplexity), duration(point.get("seconds"))])
    return header, rows


def norm_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The norms behind the last chart, as they were measured: the matrix, and what the edits added to it."""
    points = timeline(summary)
    layers = sorted(
        {str(k) for p in points for k in [*mapping(p.get("norms")), *mapping(p.get("delta_norms"))]}, key=_layer_order
    )
    header = ["Edits", *(f"layer {layer}, {what}" for layer in layers for what in ("matrix", "all edits"))]
    rows = [
        [
            count(p.get("edits")),
            *(fixed(mapping(p.get(key)).get(layer), 3) for layer in layers for key in ("norms", "delta_norms")),
        ]
        for p in points
    ]
    return header, rows if layers else []
