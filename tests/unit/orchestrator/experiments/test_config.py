"""A grid becomes single runs: each once, each checked, named by what decides its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.errors import UserError
from errata.orchestrator.experiments.config import GroupsConfig, load_sweep, nested
from errata.orchestrator.experiments.labels import text_of, title_of

from .conftest import AXES, RUN, write_sweep


def places(path: Path, **kwargs: Any) -> list[dict[str, str]]:
    return [cell.coordinates for cell in load_sweep(str(path), **kwargs).cells]


def test_the_grid_is_the_product_of_its_axes_in_order(sweep):
    assert [cell.coordinates for cell in sweep.cells] == [
        {"method": "MEMIT", "seed": "0"},
        {"method": "MEMIT", "seed": "1"},
        {"method": "AlphaEdit", "seed": "0"},
        {"method": "AlphaEdit", "seed": "1"},
    ]
    assert [(c.config.editor.type, c.config.seed) for c in sweep.cells] == [
        ("memit", 0),
        ("memit", 1),
        ("alphaedit", 0),
        ("alphaedit", 1),
    ]
    assert [cell.config.editor.layers for cell in sweep.cells] == [(1, 2)] * 4
    assert sweep.cells[2].config.editor.tau == 0.5
    assert sweep.cells[3].title == "AlphaEdit, seed 1"
    assert len({cell.key for cell in sweep.cells}) == len({cell.config.name for cell in sweep.cells}) == 4


def test_a_key_is_of_what_decides_the_results(tmp_path):
    def key(**changes: Any) -> str:
        return load_sweep(str(write_sweep(tmp_path, axes=None, run={**RUN, **changes}))).cells[0].key

    same = key()
    assert key(ray={"generation_workers": 7}) == same
    assert key(tracking={"experiment": "other"}) == same
    assert key(covariance={"tokens": 100, "store": "kept"}) == same
    assert key(stream={"path": "facts.jsonl", "limit": 3}) != same  # a shorter stream is another result
    assert key(seed=1) != same


def test_the_key_does_not_depend_on_where_the_file_was_found(tmp_path, monkeypatch):
    path = write_sweep(tmp_path, axes=None)
    before = load_sweep(str(path)).cells[0]
    (tmp_path / "facts.jsonl").write_text("{}\n")
    after = load_sweep(str(path)).cells[0]
    assert after.config.stream.path == str(tmp_path / "facts.jsonl") != before.config.stream.path
    assert after.key == before.key


def test_cells_that_come_to_the_same_run_are_one(tmp_path):
    axes = {"method": {"MEMIT": {}, "the same": {"editor.cov_weight": 15000.0}, "other": {"editor.cov_weight": 1.0}}}
    assert places(write_sweep(tmp_path, axes=axes)) == [{"method": "MEMIT"}, {"method": "other"}]


def test_a_null_drops_a_section_that_a_method_does_not_have(tmp_path):
    run = {**RUN, "editor": {"type": "memit", "layers": [1, 2], "values": {"lr": 0.1}}}
    axes = {"method": {"MEMIT": {}, "FT-L": {"editor": {"type": "ft_l", "layers": [3], "values": None}}}}
    cells = load_sweep(str(write_sweep(tmp_path, run=run, axes=axes))).cells
    assert cells[0].config.editor.values.lr == 0.1
    assert (cells[1].config.editor.type, cells[1].config.editor.layers) == ("ft_l", (3,))


def test_a_label_may_stand_for_a_preset_with_changes(tmp_path):
    axes = {"model": {"GPT-2": {"extends": "models/gpt2-xl", "editor.values.steps": 7}, "plain": None}}
    cells = load_sweep(str(write_sweep(tmp_path, axes=axes))).cells
    assert (cells[0].config.model.name, cells[0].config.editor.values.steps) == ("openai-community/gpt2-xl", 7)
    assert cells[0].config.editor.layers == (13, 14, 15, 16, 17)
    assert cells[1].config.model.name == "nowhere"


def test_groups_cut_the_same_records_into_runs_of_several_sizes(tmp_path):
    run = {**RUN, "stream": {"path": "facts.jsonl", "skip": 5}}
    groups = {"records": 4, "sizes": [1, 2, 4], "then": [9]}
    cells = load_sweep(str(write_sweep(tmp_path, run=run, axes=None, groups=groups))).cells
    taken = [(c.coordinates["edits"], c.config.stream.skip, c.config.stream.limit) for c in cells]
    assert taken == [
        *(("1", 5 + i, 1) for i in range(4)),
        ("2", 5, 2),
        ("2", 7, 2),
        ("4", 5, 4),
        ("9", 5, 9),
    ]


def test_fewer_groups_are_spread_over_the_records():
    found = [dict(settings) for _, settings in GroupsConfig(records=100, sizes=(1, 50), at_most=4).cells(0)]
    assert [one["stream.skip"] for one in found] == [0, 25, 50, 75, 0, 50]


def test_exclude_and_include(tmp_path):
    path = write_sweep(
        tmp_path,
        exclude=[{"method": "AlphaEdit", "seed": [1]}],
        include=[{"method": "MEMIT", "set": {"editor.cov_weight": 3.0}}],
    )
    cells = load_sweep(str(path)).cells
    assert [cell.title for cell in cells] == [
        "MEMIT, seed 0",
        "MEMIT, seed 1",
        "AlphaEdit, seed 0",
        "MEMIT, editor.cov_weight 3.0",
    ]
    assert cells[-1].config.editor.cov_weight == 3.0


def test_only_keeps_the_cells_with_these_labels(tmp_path):
    path = write_sweep(tmp_path)
    assert places(path, only=["method=AlphaEdit", "seed=0,1"]) == [
        {"method": "AlphaEdit", "seed": "0"},
        {"method": "AlphaEdit", "seed": "1"},
    ]


def test_overrides_reach_every_cell_and_the_file_that_extends_may_change_parts(tmp_path):
    write_sweep(tmp_path)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"extends": "sweep", "name": "other", "axes": {"seed": [7]}}))
    sweep = load_sweep(str(tmp_path / "other.yaml"), ["batching.size=3"])
    assert sweep.config.name == "other"
    assert [(cell.config.seed, cell.config.batching.size) for cell in sweep.cells] == [(7, 3)] * 2


def test_the_written_file_loads_to_the_same_cells(tmp_path, sweep):
    path = tmp_path / "again.yaml"
    path.write_text(sweep.to_yaml())
    assert [cell.key for cell in load_sweep(str(path)).cells] == [cell.key for cell in sweep.cells]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": None}, "a sweep has a section 'run'"),
        ({"axis": {}}, "unknown key 'axis'.*did you mean 'axes'"),
        ({"axes": {"seed": []}}, "axis 'seed' has no value"),
        ({"axes": {"seed": [1, 1]}}, "axis 'seed' names a value twice"),
        ({"axes": {"method": {"X": {"editor.tua": 1}}}}, r"cell \[X\]: unknown key 'editor.tua'"),
        ({"axes": {"seed": [-1]}}, r"cell \[seed -1\]: seed = -1"),
        ({"exclude": [{"metod": "X"}]}, "exclude: there is no axis 'metod'; allowed: method, seed"),
        ({"exclude": [{"method": "ROME"}]}, "exclude: axis 'method' has no 'ROME'; allowed: MEMIT, AlphaEdit"),
        ({"exclude": [{"seed": [0, 1]}]}, "no cell is left"),
        ({"exclude": [{"method": "MEMIT", "seed": 0}, {"method": "MEMIT", "seed": []}]}, "leaves out no cell"),
        ({"include": [{"method": "MEMIT", "set": 3}]}, "set holds dotted keys"),
        ({"groups": {"records": 10, "sizes": [3]}}, r"divide records = 10 evenly; got \[3\]"),
        ({"groups": {"records": 2, "sizes": [1]}, "axes": {"stream.limit": [1]}}, "made by groups"),
        ({"tables": ["metod"]}, "tables: there is no axis 'metod'"),
        ({"axes": {"method": {"X": {"extends": "models/gpt5"}}}}, "axes.method.X.extends: .*'models/gpt5'"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_so(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        load_sweep(str(write_sweep(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"overrides": ["seed=4"]}, "--set seed: axis 'seed' sets it"),
        ({"overrides": ["editor.type=rome"]}, "--set editor.type: axis 'method' sets it"),
        ({"only": ["seed"]}, "want axis=label"),
        ({"only": ["sed=1"]}, "no axis 'sed'; allowed: method, seed"),
        ({"only": ["seed=5"]}, "has no '5'; allowed: 0, 1"),
    ],
)
def test_options_that_do_not_fit(tmp_path, arguments, said):
    with pytest.raises(UserError, match=said):
        load_sweep(str(write_sweep(tmp_path)), **arguments)


def test_labels_as_text():
    assert [text_of(label) for label in ("a: b", 3, 1.5, None, True, [1, 2])] == [
        "a: b",
        "3",
        "1.5",
        "null",
        "true",
        "[1, 2]",
    ]
    assert (
        title_of({"method": "MEMIT", "seed": "0", "editor.layers": "[1, 2]"}) == "MEMIT, seed 0, editor.layers [1, 2]"
    )
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}


def test_shared_fixture_is_not_changed_by_making_cells(sweep):
    assert RUN["editor"] == {"type": "memit", "layers": [1, 2]} and list(AXES) == ["method", "seed"]
