"""Tables in the papers' form: a block for every model, data set and number of edits, in it a row for every method and
way of knowing, means with standard errors over seeds, the best of each column marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from errata.editing.errors import UserError
from errata.editing.wording import counted as counted_of
from errata.evaluation.outcomes import Arm
from errata.orchestrator.experiments.check import Mismatch, check_block
from errata.orchestrator.experiments.collect import Collection, Run, changed_by
from errata.orchestrator.experiments.labels import EDITS, GROUP, SEED, title_of
from errata.orchestrator.report.summary import ArmMetrics, Summary

_REPEATED = (SEED, "covariance.seed")
_AVERAGED = (GROUP, "stream.skip")
_BLOCK_SETTINGS = ("model.name", "stream.path", "stream.limit", "stream.schema", "stream.target")
_NOT_ANSWERS = ("evaluation.arms", "evaluation.every", "evaluation.sample")
_DEPENDS: dict[Arm, tuple[str, ...]] = {
    "base": ("model.", "stream.", "evaluation."),
    "memory": ("model.", "stream.", "evaluation.", "memory."),
    "ike": ("model.", "stream.", "evaluation.", "memory."),
    "ike_oracle": ("model.", "stream.", "evaluation.", "memory."),
}
"""What the figures of the arms without edited weights can depend on."""


@dataclass(frozen=True)
class Column:
    """One figure of an arm."""

    key: str
    heading: str
    higher: bool | None = True
    """None where neither end is better in itself."""
    share: bool = True
    """Shown in percent."""
    meaning: str = ""
    digits: int = 3
    """Significant ones of what is no share."""

    def text(self, value: float) -> str:
        """The figure as it is printed, and compared for the best."""
        return f"{100 * value:.1f}" if self.share else f"{value:.{self.digits}g}"


COLUMNS = (
    Column("efficacy", "Eff.", meaning="efficacy, teacher-forced tokens"),
    Column("generalization", "Gen.", meaning="the same on paraphrases"),
    Column("specificity", "Spec.", meaning="teacher-forced tokens of the old answers on neighborhood prompts"),
    Column("specificity_exact", "Spec. (x)", meaning="the same, all tokens of an answer or none (MOIR eq. 16, NS)"),
    Column("locality_tf", "Loc. (tf)", meaning="tokens of the old answers at which the argmax is the unedited model's"),
    Column("reliability", "Rel.", meaning="generated answers to the edit prompts that state the new target"),
    Column("generalization_gen", "Gen. (g)", meaning="the same on paraphrases"),
    Column("locality", "Loc.", meaning="generated answers to neighborhood prompts that are the unedited model's"),
    Column("locality_match", "Loc. (m)", meaning="share of the tokens of those answers that are the unedited model's"),
    Column("locality_true", "Loc. (t)", meaning="generated answers to neighborhood prompts that state the true answer"),
    Column("portability", "Port.", meaning="right generated answers to questions that follow from the new fact"),
    Column("average", "Avg.", meaning="mean of Rel., Gen. (g), Loc. and Port."),
    Column("average_true", "Avg. (t)", meaning="the same with Loc. (t) for Loc., as in Revisiting"),
    Column("overall", "Overall", meaning="mean of Rel., Gen. (g) and Loc. (t), as in RoSE"),
    Column("reliability_f1", "Rel. F1", meaning="word-level F1 of the generated answers to the edit prompts"),
    Column("generalization_f1", "Gen. F1", meaning="the same on paraphrases"),
    Column("portability_f1", "Port. F1", meaning="the same on questions that follow from the new fact"),
    Column("fluency", "Flu.", share=False, meaning="entropy of n-grams of free texts, bits"),
    Column(
        "fluency_star",
        "Flu.*",
        higher=None,
        share=False,
        meaning="log-probability of own free texts over the unedited model's",
    ),
    Column("consistency", "Cons.", meaning="tf-idf cosine of free texts with texts about the new object"),
    Column("edit_score", "S_e", meaning="harmonic mean of Eff., Gen., Spec. (x), Flu.* and Port. (MOIR eq. 19)"),
    Column("perplexity", "PPL", higher=False, share=False, meaning="perplexity on held-out text"),
    Column(
        "norm_growth",
        "Norm",
        higher=False,
        share=False,
        meaning="Frobenius norm of the edited matrices over that before the first edit, mean over the matrices",
        digits=4,
    ),
    Column("s_p", "S_p", meaning="harmonic mean of six benchmarks, by errata preserve (MOIR eq. 20)"),
    Column("retention", "Ret.", meaning="share of the efficacy right after each edit that is left at the end"),
    Column(
        "uncertainty_growth",
        "ΔU",
        higher=False,
        share=False,
        meaning="growth of the answers' uncertainty over the unedited model's, mean over the edits' questions",
    ),
    Column("edit_seconds", "s/edit", higher=False, share=False, meaning="seconds of the editor for one edit"),
    Column("query_seconds", "s/query", higher=False, share=False, meaning="seconds of one question asked alone"),
    Column("query_ratio", "x base", higher=False, share=False, meaning="these seconds over the unedited model's"),
)
_TEXT = "perplexity:"
TASK: Final = "preserved:"
"""Before a task's name: its score by `errata preserve`."""
_PPL_TASK = f"{TASK}perplexity:"
UNEDITED: Final[Mapping[Arm, str]] = {"base": "unedited", "memory": "memory", "ike": "IKE", "ike_oracle": "IKE oracle"}
"""Arms that need no editor, with what a row's label says."""
WAYS: Final[Mapping[Arm, str]] = {"edited": "", "edited_memory": " + memory", "routed": ", routed"}
"""Arms that need an editor, with what a row's label says behind the method."""
_AVERAGE_OF = ("reliability", "generalization_gen", "locality", "portability")


@dataclass(frozen=True)
class Figure:
    """A mean over repetitions."""

    mean: float
    error: float | None
    """Standard error of the mean; None of a single repetition."""
    count: int
    best: bool = False
    interval: tuple[float, float] | None = None
    """95 % over the facts of a single run; None where it is not to be shown."""


@dataclass(frozen=True)
class Row:
    """One method, or one way of knowing that needs none."""

    label: str
    arm: Arm
    figures: Mapping[str, Figure | None]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other."""

    title: str
    coordinates: Mapping[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class RunComparison:
    """Everything the writers need."""

    title: str
    about: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    split: tuple[str, ...] = ()
    """Axes that make the blocks."""
    measured: str = ""
    """Who judged the answers, and the versions of the metrics."""


def heading(column: Column) -> str:
    """The column's name with the direction that is better."""
    return column.heading if column.higher is None else f"{column.heading} {'↑' if column.higher else '↓'}"


def compare(
    collection: Collection,
    *,
    by: Sequence[str] = (),
    anyway: bool = False,
    only: Sequence[str] = (),
    intervals: bool = False,
) -> RunComparison:
    """Make the tables.

    Args:
        by: axes that make the blocks; those that change model, data or number of edits by default.
        only: keys of the columns wanted, in that order; all that have a figure by default.
        intervals: show the intervals of single runs even where every fact was asked about.
        anyway: set side by side what differs in data or metrics, with a note that says so.

    Raises:
        UserError: ``by`` names no axis, ``only`` no column, or the runs of a block differ in data, model or metrics.
    """
    for name in by:
        if name not in collection.axes:
            raise UserError(f"--by {name!r}: there is no such difference; allowed: {', '.join(collection.axes) or '-'}")
    # an axis on which all runs are alike tells nothing apart
    axes = [axis for axis in collection.axes if len({run.coordinates.get(axis) for run in collection.runs}) > 1]
    changes = {axis: changed_by(axis, collection.runs) for axis in axes}
    split = list(by or collection.split) or [axis for axis in axes if _splits(axis, changes[axis])]
    free = [axis for axis in axes if axis not in (*split, *_REPEATED, *_AVERAGED)]
    families: dict[tuple[str, ...], list[Run]] = {}
    for run in collection.runs:
        families.setdefault(tuple(run.coordinates.get(axis, "") for axis in split), []).append(run)
    notes, blocks = list(collection.notes), []
    lengths = {run.summary.edits_applied for run in collection.runs}
    untold = len(families) > 1 and len(lengths) > 1 and not {EDITS, "stream.limit"} & set(collection.axes)
    for labels, runs in families.items():
        coordinates = {axis: label for axis, label in zip(split, labels, strict=True) if label}
        title = title_of(coordinates)
        if untold:  # tables split for their length among other things say it
            title += ", " + " or ".join(counted_of(n, "edit") for n in sorted({r.summary.edits_applied for r in runs}))
        notes += _settled(check_block(runs, [*_REPEATED, *_AVERAGED]), title, anyway)
        rows = tuple(_rows(runs, free, changes, intervals))
        notes += _uneven(rows, title)
        notes += _skipped(runs, title)
        blocks.append(Block(title, coordinates, _marked(rows)))
    used = {key for block in blocks for row in block.rows for key, figure in row.figures.items() if figure is not None}
    columns = tuple(column for column in all_columns(used) if column.key in used)
    return RunComparison(
        collection.title,
        collection.about,
        _chosen(columns, only),
        tuple(blocks),
        tuple(dict.fromkeys(notes)),
        tuple(split),
        _measured(collection.runs),
    )


def _chosen(columns: tuple[Column, ...], only: Sequence[str]) -> tuple[Column, ...]:
    by_key = {column.key: column for column in columns}
    for key in only:
        if key not in by_key:
            raise UserError(f"--columns {key!r}: no run has such a figure; allowed: {', '.join(by_key)}")
    return tuple(by_key[key] for key in only) or columns


def _measured(runs: Sequence[Run]) -> str:
    judges = sorted({run.summary.judge for run in runs if run.summary.metric_versions})
    versions = {name: v for run in runs for name, v in run.summary.metric_versions.items()}
    if not versions:
        return ""
    said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"Answers judged by {' or '.join(judges)}; versions of the metrics: {said}."


def all_columns(used: Iterable[str] = ()) -> list[Column]:
    """The known columns, after the shares any newer metric that summaries hold, and behind the perplexity those on
    ``evaluation.texts`` that are among the keys in use."""
    known = [column.key for column in COLUMNS]
    more = [Column(name, name.replace("_", " ")) for name in ArmMetrics.model_fields if name not in known]
    at = known.index("perplexity")
    texts = [key.removeprefix(_TEXT) for key in sorted(used) if key.startswith(_TEXT)]
    by_text = [
        Column(_TEXT + name, f"PPL {name}", higher=False, share=False, meaning=f"perplexity on the text {name!r}")
        for name in texts
    ]
    tasks = [
        Column(
            key,
            key.removeprefix(TASK).replace("_", " ").replace("perplexity:", "PPL "),
            higher=not key.startswith(_PPL_TASK),
            share=not key.startswith(_PPL_TASK),
            meaning=f"the task {key.removeprefix(TASK)!r} by errata preserve",
        )
        for key in sorted(used)
        if key.startswith(TASK)
    ]
    after = known.index("s_p")
    return [*COLUMNS[:at], *more, COLUMNS[at], *by_text, *COLUMNS[at + 1 : after], *tasks, *COLUMNS[after:]]


def figures_of(run: Run, arm: Arm) -> dict[str, float | None]:
    """The figures of one arm of one run, by column key."""
    summary = run.summary
    metrics = summary.arms.get(arm)
    if metrics is None:
        return {}
    figures: dict[str, float | None] = metrics.model_dump()
    parts = [figures.get(name) for name in _AVERAGE_OF]
    given = [part for part in parts if part is not None]
    figures["average"] = sum(given) / len(given) if len(given) == len(parts) else None
    if arm in ("base", "edited"):
        figures["perplexity"] = summary.perplexity.base if arm == "base" else summary.perplexity.edited
        for name, value in summary.perplexities.items():
            figures[_TEXT + name] = value.base if arm == "base" else value.edited
    figures |= preserved_figures(run, arm, summary.version)
    alone = summary.arms["base"].query_seconds if "base" in summary.arms else None
    if arm != "base" and alone and metrics.query_seconds is not None:
        figures["query_ratio"] = metrics.query_seconds / alone
    if arm in WAYS:
        figures["edit_seconds"] = summary.edit_seconds_per_edit
    if arm == "edited":
        figures["norm_growth"] = _norm_growth(summary)
    return figures


def preserved_figures(run: Run, arm: str, version: str) -> dict[str, float | None]:
    """What `errata preserve` found of a version of a run for `edited`, of the unedited one for `base`."""
    if arm == "edited":
        kept = run.version(version)
    else:
        kept = next((one for one in run.preserved if arm == "base" and not one.sequence), None)
    if kept is None:
        return {}
    figures: dict[str, float | None] = {TASK + task: score.value for task, score in kept.tasks().items()}
    figures["s_p"] = kept.s_p
    if arm == "edited":
        figures |= {"retention": kept.retention, "uncertainty_growth": kept.uncertainty_growth}
        figures |= {"edit_score": kept.s_e} if kept.s_e is not None else {}
    return figures


def _norm_growth(summary: Summary) -> float | None:
    """Mean ratio of the matrices' norms at the end to those of the base; None where the timeline lacks an end."""
    points = summary.timeline
    if not points or points[0].edits or points[-1].edits != summary.edits_applied:
        return None
    before, after = points[0].norms, points[-1].norms
    pairs = [(before.get(layer), norm) for layer, norm in after.items()]
    ratios = [norm / base for base, norm in pairs if base and norm is not None]
    return sum(ratios) / len(ratios) if ratios and len(ratios) == len(pairs) else None


def mean_of(values: Mapping[tuple[str, str], Sequence[float]]) -> Figure | None:
    """Mean and standard error of values by (seed, group).

    Values of one seed and group are the same thing measured more than once and are averaged; groups are averaged
    within their seed. The error is over seeds, or over groups where there is a single seed.
    """
    if not values:
        return None
    groups: dict[str, list[float]] = {}
    for (seed, _), by_group in values.items():
        groups.setdefault(seed, []).append(sum(by_group) / len(by_group))
    seeds = [sum(means) / len(means) for means in groups.values()]
    sample = seeds if len(seeds) > 1 else next(iter(groups.values()))
    mean = sum(seeds) / len(seeds)
    if len(sample) < 2:
        return Figure(mean, None, 1)
    center = sum(sample) / len(sample)
    variance = sum((value - center) ** 2 for value in sample) / (len(sample) - 1)
    error = math.sqrt(variance / len(sample))
    # what rounding leaves of equal values is no spread
    return Figure(mean, error if error > 1e-12 * abs(mean) else 0.0, len(sample))


# ---------------------------------------------------------------- parts


def _splits(axis: str, changed: set[str]) -> bool:
    return axis not in (*_REPEATED, *_AVERAGED) and bool(changed & set(_BLOCK_SETTINGS))


def _settled(mismatches: Iterable[Mismatch], title: str, anyway: bool) -> list[str]:
    """Findings as notes.

    Raises:
        UserError: one of them forbids the comparison, and it is not wanted anyway.
    """
    notes = []
    for finding in mismatches:
        where = f"{title}: " if title else ""
        if finding.forbids and not anyway:
            raise UserError(f"{where}{finding.text}; split them with --by, or compare --anyway")
        notes.append(f"{where}{'NOT COMPARABLE: ' if finding.forbids else ''}{finding.text}")
    return notes


def _rows(runs: Sequence[Run], free: Sequence[str], changes: Mapping[str, set[str]], intervals: bool) -> Iterable[Row]:
    """Rows by arm and label: first what needs no editor, then every method, alone, with the memory and routed."""
    rows: dict[tuple[Arm, str], list[Run]] = {}
    for arm in UNEDITED:
        axes = [axis for axis in free if _reaches(arm, changes[axis])]
        for run in runs:
            if arm in run.summary.arms:
                rows.setdefault((arm, _label(arm, run, axes)), []).append(run)
    methods = list(dict.fromkeys(_label("edited", run, free) for run in runs))
    for method in methods:
        for edited, way in WAYS.items():
            for run in runs:
                if edited in run.summary.arms and _label("edited", run, free) == method:
                    rows.setdefault((edited, method + way), []).append(run)
    for (arm, label), row_runs in rows.items():
        yield Row(label, arm, _figures(row_runs, arm, intervals), tuple(row_runs))


def _reaches(arm: Arm, changed: set[str]) -> bool:
    return any(key.startswith(_DEPENDS[arm]) and key not in _NOT_ANSWERS for key in changed)


def _label(arm: Arm, run: Run, axes: Sequence[str]) -> str:
    said = title_of({axis: run.coordinates[axis] for axis in axes if axis in run.coordinates})
    if arm == "edited":
        return said or run.summary.editor
    return f"{UNEDITED[arm]}, {said}" if said else UNEDITED[arm]


def _figures(runs: Sequence[Run], arm: Arm, intervals: bool) -> dict[str, Figure | None]:
    values: dict[str, dict[tuple[str, str], list[float]]] = {}
    for run in runs:
        seed = "/".join(run.coordinates.get(axis, "") for axis in _REPEATED)
        group = "/".join(run.coordinates.get(axis, "") for axis in _AVERAGED)
        for key, value in figures_of(run, arm).items():
            if value is not None:
                values.setdefault(key, {}).setdefault((seed, group), []).append(value)
    figures = {key: mean_of(measured) for key, measured in values.items()}
    if len(runs) == 1 and (intervals or _sampled(runs[0].summary)):
        shares = {column.key for column in all_columns(figures) if column.share}
        spans = {
            key: (max(0.0, low), min(1.0, high)) if key in shares else (low, high)
            for key, (low, high) in runs[0].summary.intervals.get(arm, {}).items()
        }  # summaries of releases before have normal intervals, which reach beyond all and nothing
        return {k: replace(f, interval=spans.get(k)) if f is not None else None for k, f in figures.items()}
    return figures


def _sampled(summary: Summary) -> bool:
    return summary.facts_measured is not None and summary.facts_measured < summary.edits_applied


def _marked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with the best figures of each column marked; the unedited model does not compete."""
    best: dict[str, str] = {}
    rivals = [row for row in rows if row.arm != "base"]
    used = {key for row in rows for key in row.figures}
    for column in all_columns(used):
        means = [figure.mean for row in rivals if (figure := row.figures.get(column.key)) is not None]
        if column.higher is not None and len({column.text(mean) for mean in means}) > 1:
            best[column.key] = column.text(max(means) if column.higher else min(means))
    columns = {column.key: column for column in all_columns(used)}

    def mark(row: Row) -> Row:
        figures = {
            key: replace(f, best=columns[key].text(f.mean) == best[key])
            if f is not None and row.arm != "base" and key in best
            else f
            for key, f in row.figures.items()
        }
        return Row(row.label, row.arm, figures, row.runs)

    return tuple(mark(row) for row in rows)


def _uneven(rows: Sequence[Row], title: str) -> list[str]:
    """A note for rows that have fewer repetitions than others."""
    counts = {
        (row.arm, row.label): max((figure.count for figure in row.figures.values() if figure is not None), default=0)
        for row in rows
    }
    most = max(counts.values(), default=0)
    few = [f"{label} ({count})" for (arm, label), count in counts.items() if count < most and arm == "edited"]
    where = f"{title}: " if title else ""
    return [f"{where}fewer repetitions than the others' {most}: {', '.join(few)}"] if few else []


def _skipped(runs: Sequence[Run], title: str) -> list[str]:
    """A note for questions that were left out because the model cannot take them in."""
    counts = {count for run in runs if (count := run.summary.skipped_probes)}
    if not counts:
        return []
    few, most = min(counts), max(counts)
    said = f"{counted_of(most, 'question')} a run" if few == most else f"{few} to {most} questions a run"
    where = f"{title}: " if title else ""
    return [f"{where}{said} not asked: longer than the model's context, or with a token that it does not know"]
