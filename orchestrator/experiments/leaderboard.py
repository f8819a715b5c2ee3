"""The leaderboard: models with the figures that their presets carry, and, where runs are given, what those measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.orchestrator.config.loading import read_composed
from errata.orchestrator.config.model_presets import ALLOWED_PERPLEXITY, BASES, shipped
from errata.orchestrator.experiments.collect import Run, collect
from errata.orchestrator.experiments.tables import figures_of

PRESET_COLUMNS = ("efficacy", "paraphrase", "locality", "perplexity", "seconds_per_edit")
"""Keys of a preset's ``measured``, as `errata calibrate` writes it."""
RUN_COLUMNS = ("efficacy", "generalization", "specificity", "perplexity", "edit_seconds")
"""Columns of `errata compare` that stand for the same of a run."""
_HEADINGS = ("Efficacy", "Generalization", "Locality", "Perplexity", "s/edit")
_SHARES = 3

_INTRODUCTION = """\
# Leaderboard

Which model is edited how well with the settings that are shipped for it, on a CPU. This page is written by

    errata leaderboard -o docs/leaderboard.md

and, for figures of your own, by `errata leaderboard PRESET.yaml RUN...`: presets that
[`errata calibrate`](calibration.md) has written, and directories of runs or sweeps, as `errata compare` takes them.

"""

_MEASURED = f"""\
Each preset's settings on facts that the model answers by itself, each edited to another one's answer, in batches of ten
(`errata calibrate MODEL --preset NAME`): edits said after the prompt, after the other wording, neighbors' answers that
stayed (every token the likeliest), perplexity of held-out text over that before, and seconds per edit on one core. The
shipped presets were measured on the last 32 facts that each model knows, which a search for settings does not reach,
and timed while another core was busy. A perplexity above {ALLOWED_PERPLEXITY} is
*too much*: calibration marks settings down for it.

"""

_NONE = "No shipped preset carries such figures yet.\n"


def leaderboard(given: Sequence[Path] = ()) -> str:
    """The page as Markdown: shipped presets, then the given presets and runs.

    Args:
        given: presets (YAML files), and directories of runs or sweeps.

    Raises:
        UserError: a file is no preset, or a directory holds no finished run.
    """
    presets = {name: read_composed(path) for name, path in shipped().items()}
    own = {str(path): read_composed(path) for path in given if path.suffix in (".yaml", ".yml")}
    runs = [path for path in given if str(path) not in own]
    measured = _preset_rows({**presets, **own})
    parts = [_INTRODUCTION, "## Measured\n\n"]
    parts.append(_MEASURED)
    parts.append(_table(("Preset", "Model", "Editor", "Edits", *_HEADINGS), measured) if measured else _NONE)
    if runs:
        parts.append("\n## Runs\n\nMeans over the runs of one model, method, data set and number of edits.\n\n")
        parts.append(_table(("Model", "Method", "Data", "Edits", "Runs", *_HEADINGS), _run_rows(collect(runs).runs)))
    parts.append("\n## All presets\n\n")
    parts.append("".join(f"* *{name.replace('_', ' ')}*: {meaning}.\n" for name, meaning in BASES.items()) + "\n")
    parts.append(_table(("Preset", "Model", "Layers", "Settings"), _all_rows({**presets, **own})))
    return "".join(parts)


def _preset_rows(presets: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for name, preset in presets.items():
        found = preset.get("measured")
        if isinstance(found, Mapping):
            figures = [found.get(key) for key in PRESET_COLUMNS]
            rows.append((figures, [_short(name), _model(preset), str(found.get("editor")), str(found.get("edits"))]))
    rows.sort(key=lambda row: -sum(float(value or 0.0) for value in row[0][:_SHARES]))
    return [
        [*words, *_texts(figures)[:_SHARES], _ratio(figures[_SHARES]), *_texts(figures)[_SHARES + 1 :]]
        for figures, words in rows
    ]


def _ratio(value: Any) -> str:
    """Perplexity over that before; marked where it grew by more than a calibration lets a preset cost."""
    if value is None:
        return "-"
    return f"{float(value):.3f}" + (" (too much)" if float(value) > ALLOWED_PERPLEXITY else "")


def _run_rows(runs: Sequence[Run]) -> list[list[str]]:
    groups: dict[tuple[str, str, str, int], list[dict[str, float | None]]] = {}
    for run in runs:
        data = Path(str(run.settings.get("stream.path", ""))).name
        editor = str(run.settings.get("editor.type", run.summary.editor))
        group = (str(run.settings.get("model.name", "")), editor, data, run.summary.edits_applied)
        groups.setdefault(group, []).append(figures_of(run, "edited"))
    rows = []
    for (model, editor, data, edits), found in groups.items():
        means = []
        for key in RUN_COLUMNS:
            values = [value for one in found if (value := one.get(key)) is not None]
            means.append(sum(values) / len(values) if values else None)
        rows.append((means, [f"`{model}`", editor, data, str(edits), str(len(found))]))
    rows.sort(key=lambda row: (row[1][0], row[1][2], -sum(value or 0.0 for value in row[0][:_SHARES])))
    return [[*words, *_texts(means)] for means, words in rows]


def _all_rows(presets: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    order = {basis: number for number, basis in enumerate(BASES)}
    rows = []
    for name, preset in presets.items():
        layers = (preset.get("editor") or {}).get("layers") or []
        shown = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else ", ".join(map(str, layers))
        basis = str(preset.get("basis", ""))
        rows.append((order.get(basis, len(order)), [_short(name), _model(preset), shown, basis.replace("_", " ")]))
    return [words for _, words in sorted(rows, key=lambda row: (row[0], row[1]))]


def _model(preset: Mapping[str, Any]) -> str:
    return f"`{(preset.get('model') or {}).get('name', '')}`"


def _short(name: str) -> str:
    return f"`{name}`"


def _texts(figures: Sequence[Any]) -> list[str]:
    """Shares in percent, perplexity and seconds as they are; a dash for what was not measured."""
    return [
        "-" if value is None else f"{100 * float(value):.0f} %" if number < _SHARES else f"{float(value):.3g}"
        for number, value in enumerate(figures)
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
