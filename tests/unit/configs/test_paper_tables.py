"""Each paper's tables as a hand-written list, against the presets that docs/experiments.md names for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from errata.evaluation.figures import FIGURES
from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.experiments.collect import flat
from errata.orchestrator.experiments.config import Cell, make_cells, read_sweep
from errata.orchestrator.experiments.tables import COLUMNS

FOLDER = configs_root() / "experiments"
PAGE = Path(__file__).parents[3] / "docs" / "experiments.md"
NUMBERS = {  # (tables, figures) of each paper
    "moir": (12, 13),
    "mose": (10, 22),
    "uncertainty": (9, 7),
    "rose": (6, 20),
    "revisiting": (46, 10),
}
STATUS = {"small", "ready", "data", "out"}


@dataclass(frozen=True)
class Row:
    """Cells with these labels, and settings that every one of them has."""

    labels: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """What the tables of one preset say: numbers of edits, methods with their settings, metrics."""

    edits: set[int | None]
    rows: list[Row]
    metrics: set[str]
    every: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all cells."""


def method(name: str, **settings: Any) -> Row:
    return Row({"method": name}, {key.replace("__", "."): value for key, value in settings.items()})


ROME = {
    "editor__type": "rome",
    "editor__layers": [5],
    "editor__key": "published",
    "editor__values__clamp": 4.0,
    "editor__values__weight_decay": 0.001,
    "editor__values__steps": 25,
    "covariance__source": "identity",
    "contexts__count": 10,
    "contexts__length": 5,
    "contexts__further": [[10, 10]],
}
MOIR = [
    method("MEMIT", editor__type="memit", editor__cov_weight=15000.0, editor__values__lr=0.5, editor__values__steps=25),
    method("AlphaEdit", editor__type="alphaedit", editor__l2=1.0, editor__tau=0.02),
    Row({"covariance": "MOIR"}, {"covariance.source": "self_generated", "covariance.seed_tokens": 1,
                                 "covariance.max_new_tokens": 256, "covariance.sequences": 100000}),
    Row({"covariance": "Wiki"}, {"covariance.source": "corpus", "covariance.sequences": 100000}),
    Row({"model": "OLMo-2-7B-Instruct"}, {"editor.values.post_norm": "published"}),
    Row({"model": "OLMo-2-7B-Instruct (exact)"}, {"editor.values.post_norm": "exact"}),
]  # fmt: skip
S_E = {"efficacy", "generalization", "specificity_exact", "fluency_star", "portability", "edit_score"}
S_E_DATA = {
    "stream.portability": "counterfact_portability_gpt4.json",
    "evaluation.free_text.openings": "counterfact.json",
}

PRESETS = {
    "moir-batch": Preset(
        {1000, 2000, 3000, 5000, 10000, 20000},
        [*MOIR, Row({"covariance": "OLMoMix"}, {"covariance.source": "mixture", "covariance.tokens": 100000})],
        S_E,
        S_E_DATA,
    ),
    "moir-sequential": Preset(
        {10, 100, 500, 1000, 2000, 5000},
        [*MOIR, method("MEMIT", editor__past_keys=True)],
        S_E,
        {**S_E_DATA, "batching.size": 1},
    ),
    "moir-seeds": Preset(
        {1000, 2000, 3000, 5000},
        [Row({"covariance": f"rand x {n}"}, {"covariance.seed_mode": "rand", "covariance.seed_tokens": n})
         for n in (1, 2, 3, 4)] + [Row({"covariance": "bos"}, {"covariance.seed_mode": "bos"})],
        S_E,
        {**S_E_DATA, "editor.type": "memit", "editor.values.post_norm": "published"},
    ),
    "mose": Preset(
        {4000, 5000, 10000},
        [
            method("ROME", **ROME),
            method("MEMIT", editor__type="memit", editor__past_keys=False),
            method("RECT", editor__type="rect", editor__past_keys=False),
            method("EMMET", editor__type="emmet", editor__damping=0.1),
            method("PRUNE", editor__type="prune", editor__past_keys=False),
            method("AlphaEdit", editor__type="alphaedit", editor__tau=0.02, editor__l2=10.0),
            method("MOSE", editor__type="mose", editor__selection="neighbours", editor__beyond=True,
                   editor__layers=list(range(1, 27))),
            Row({"data": "ZsRE"}, {"stream.target": "alt"}),
            Row({"regime": "sequential"}, {"batching.size": 1, "stream.limit": 4000}),
            Row({"regime": "batches of 10"}, {"batching.size": 10, "stream.limit": 5000}),
            Row({"regime": "batches of 100"}, {"batching.size": 100, "stream.limit": 10000}),
        ],
        {"efficacy", "generalization", "locality_tf"},
    ),
    "uncertainty": Preset(
        {1},
        [
            method("ROME", **ROME),
            method("MEMIT", editor__type="memit", editor__past_keys=False),
            method("AlphaEdit", editor__type="alphaedit", editor__l2=1.0),
        ],
        {"efficacy", "locality_tf"},
        {"batching.size": 1},
    ),
    "uncertainty-norms": Preset(
        {1000},
        [
            method("ROME", editor__type="rome", editor__key="published"),
            method("MEMIT", editor__type="memit", editor__past_keys=False),
            method("AlphaEdit", editor__type="alphaedit"),
            Row({"clamp": "clamp 0.75"}, {"editor.values.clamp": 0.75}),
            Row({"clamp": "clamp 4"}, {"editor.values.clamp": 4.0}),
        ],
        set(),
        {"batching.size": 1},
    ),
    "uncertainty-others": Preset(
        {1},
        [
            method("FT", editor__type="ft_l", editor__layers=[21], editor__lr=0.0005, editor__steps=25),
            method("KN", editor__type="kn", editor__layers=list(range(32))),
            method("MEND", editor__type="mend", editor__layers=[29, 30, 31]),
        ],
        {"uncertainty_growth"},
        {"batching.size": 1},
    ),
    "rose-sequences": Preset(
        {5, 10, 20, 40},
        [
            method("AlphaEdit", editor__type="alphaedit", editor__values__lr=0.1),
            method("WISE", editor__type="wise", editor__lr=0.9, editor__units="absolute"),
            method("GRACE", editor__type="grace", editor__eps=1.0, editor__units="absolute"),
            method("RoSE", editor__type="rose", editor__layers=[4, 5, 6, 7, 8], editor__values__steps=35),
        ],
        {"reliability", "generalization_gen", "locality_true", "overall"},
        {"batching.size": 1},
    ),
    "uncertainty-beta": Preset(
        {300},
        [
            Row({"beta": beta}, {"editor.values.kp_factor": float(beta), "editor.values.steps": 1000})
            for beta in ("0", "0.001", "0.005", "0.01", "0.05", "0.1")
        ],
        set(),
        {"batching.size": 1, "editor.type": "rome", "editor.values.stop_loss": 0.05},
    ),
    "rose": Preset(
        {10},
        [
            method("ROME", editor__type="rome"),
            method("MEMIT", editor__type="memit"),
            method("AlphaEdit", editor__type="alphaedit", editor__values__lr=0.1),
            method("MEMIT-Merge", editor__type="memit_merge", editor__values__steps=35),
            method("RoSE", editor__type="rose", editor__layers=[4, 5, 6, 7, 8], editor__values__steps=35),
        ],
        {"reliability", "generalization_gen", "locality_true", "overall", "portability_f1"},
        {"batching.size": 10, "batching.by_subject": True},
    ),
    "revisiting": Preset(
        {1, 10, 20, 50, 100, 200, 500, 885, 1000, 1304},
        [
            method("ROME", **ROME),
            method("MEMIT", editor__type="memit", editor__past_keys=False),
            method("PMET", editor__type="pmet", editor__past_keys=False, editor__values__lr=0.5,
                   editor__values__steps=20, editor__values__clamp=1.0, editor__values__kl_factor=1.0),
            method("RECT", **ROME | {"editor__type": "rect", "editor__base": "rome"}),
            method("AlphaEdit", editor__type="alphaedit", editor__tau=0.02, editor__l2=10.0, editor__values__lr=0.1,
                   editor__values__clamp=0.75, editor__values__weight_decay=0.5),
            method("FT-L", editor__type="ft_l", editor__layers=[21], editor__lr=0.0005, editor__steps=25,
                   covariance__source="corpus"),
            method("GRACE", editor__type="grace", editor__layers=[27], editor__eps=1.0, editor__lr=1.0,
                   editor__units="absolute", editor__steps=50),
            method("WISE", editor__type="wise", editor__layers=[29], editor__lr=0.9, editor__mask=0.2,
                   editor__alpha=5.0, editor__beta=10.0, editor__gamma=10.0, editor__act_ratio=0.88,
                   editor__save_every=500, editor__merge_every=1000, editor__density=0.53),
            method("AdaLoRA", editor__type="adalora", editor__alpha=32.0, editor__dropout=0.1, editor__lr=0.005,
                   editor__steps=50),
        ],
        {"reliability", "generalization_gen", "locality_true", "portability", "average_true", "locality",
         "locality_match", "query_seconds"},
        {"batching.size": 1, "evaluation.max_new_tokens": 50, "memory.scr.k": 3},
    ),
}  # fmt: skip


@cache
def cells(name: str) -> tuple[Cell, ...]:
    """The cells of a preset; of repetitions and groups one each."""
    path = FOLDER / f"{name}.yaml"
    config = read_sweep(path)
    axes = {axis: points[:1] if axis == "seed" and isinstance(points, list) else points
            for axis, points in config.axes.items()}  # fmt: skip
    groups = config.groups.model_copy(update={"at_most": 1}) if config.groups is not None else None
    return tuple(make_cells(config.model_copy(update={"axes": axes, "groups": groups}), path))


@cache
def settings(name: str) -> tuple[tuple[Cell, dict[str, Any]], ...]:
    return tuple((cell, flat(cell.config.dump())) for cell in cells(name))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_runs_what_its_tables_ran(name: str) -> None:
    wanted = PRESETS[name]
    resolved = settings(name)
    assert {plain["stream.limit"] for _, plain in resolved} == wanted.edits
    for row in [Row({}, wanted.every), *wanted.rows]:
        matching = [plain for cell, plain in resolved if row.labels.items() <= cell.coordinates.items()]
        assert matching, f"{name}: no cell has {row.labels}"
        for plain in matching:
            found = {key: Path(v).name if isinstance(v := plain.get(key), str) else v for key in row.settings}
            assert found == dict(row.settings), f"{name}, {row.labels}"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_no_method_that_its_tables_lack(name: str) -> None:
    listed = {row.labels["method"] for row in PRESETS[name].rows if "method" in row.labels}
    assert {cell.coordinates.get("method") for cell in cells(name)} - {None} == listed


def test_the_metrics_of_the_tables_are_figures_and_columns() -> None:
    named = set().union(*(preset.metrics for preset in PRESETS.values()))
    kept = {"uncertainty_growth", "retention", "s_p"}  # by errata preserve, not by the runs themselves
    assert named - kept <= set(FIGURES) and named <= {column.key for column in COLUMNS}


def rows() -> Iterator[list[str]]:
    """The cells of the page's table, without its head."""
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    at = lines.index("| paper | table or figure | preset or command | status | note |") + 2
    while lines[at].startswith("|"):
        yield [cell.strip() for cell in lines[at].strip("|").split("|")]
        at += 1


def test_every_table_and_figure_has_one_row() -> None:
    seen: dict[tuple[str, str], list[int]] = {}
    for paper, what, _, status, note in rows():
        assert paper in NUMBERS and status in STATUS and note, (paper, what)
        kind, _, numbers = what.partition(" ")
        for part in numbers.split(","):
            low, _, high = part.strip().partition("-")
            span = range(int(low), int(high or low) + 1)
            seen.setdefault((paper, kind.rstrip("s")), []).extend(span)
    for paper, (tables, figures) in NUMBERS.items():
        assert sorted(seen[paper, "table"]) == list(range(1, tables + 1)), f"tables of {paper}"
        assert sorted(seen[paper, "figure"]) == list(range(1, figures + 1)), f"figures of {paper}"


def test_presets_of_the_page_are_there_and_have_a_list() -> None:
    known = {path.stem for path in FOLDER.glob("*.yaml")}
    for paper, what, command, status, note in rows():
        for name in re.findall(r"`([^`]+)`", command):
            if name.startswith("errata "):
                continue
            if name.startswith("python -m benchmarks."):
                assert (PAGE.parents[1] / "benchmarks" / f"{name.split('.')[-1]}.py").is_file(), name
                continue
            assert name in known, f"{paper}, {what}: there is no preset {name}"
            assert status == "small" or name in PRESETS, f"{paper}, {what}: {name} is not in the hand-written list"
        assert (status == "out") == (command == "-"), (paper, what)
        for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", note):
            assert name in known, f"{paper}, {what}: the note names {name}"
