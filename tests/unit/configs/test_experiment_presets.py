"""Every shipped experiment loads, and each of its cells is a run that the configuration accepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.experiments.config import SweepConfig, load_sweep, make_cells, read_sweep

FOLDER = configs_root() / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("common-"))
PAPERS = {"mose", "moir", "rose", "revisiting", "uncertainty"}
OWN = {"editors"}
"""Comparisons that are no paper's."""


def fewer(config: SweepConfig) -> SweepConfig:
    """The same grid with one group of each size and one seed: the others differ in where they start only."""
    axes = {
        name: points[:1] if name == "seed" and isinstance(points, list) else points
        for name, points in config.axes.items()
    }
    groups = config.groups.model_copy(update={"at_most": 1}) if config.groups is not None else None
    return config.model_copy(update={"axes": axes, "groups": groups})


def editors(config: SweepConfig) -> Iterator[str]:
    for cell in make_cells(fewer(config)):
        yield cell.config.editor.type


def test_every_paper_has_its_experiments_at_full_size_and_in_small():
    assert {name.split("-")[0] for name in NAMES} - OWN == PAPERS
    small = {name.split("-")[0] for name in NAMES if "small" in name}
    assert small - OWN == PAPERS


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_preset_is_a_valid_run(name):
    config = read_sweep(FOLDER / f"{name}.yaml")
    cells = make_cells(fewer(config), FOLDER / f"{name}.yaml")
    assert config.name == name and config.about
    assert len(cells) > 1 and len({cell.key for cell in cells}) == len(cells)
    for axis in config.axes:
        labels = [label for label in config.labels(axis) if axis != "seed"]
        assert {cell.coordinates[axis] for cell in cells} >= set(labels), f"axis {axis}: a label that no cell has"


@pytest.mark.parametrize("name", [name for name in NAMES if "small" in name and "zsre" not in name])
def test_experiments_in_small_run_on_what_is_shipped(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found by its place in the package
    for cell in load_sweep(f"experiments/{name}").cells:
        assert cell.config.model.name == "smollm2-135m-instruct"
        assert Path(cell.config.stream.path).is_file()
        with Path(cell.config.stream.path).open(encoding="utf-8") as lines:
            records = sum(1 for line in lines if line.strip())
        assert cell.config.stream.skip + (cell.config.stream.limit or records) <= records
        assert cell.config.covariance.source in ("self_generated", "identity")


def test_the_editors_of_the_papers_tables():
    assert set(editors(read_sweep(FOLDER / "mose.yaml"))) == {
        "rome",
        "memit",
        "rect",
        "emmet",
        "prune",
        "alphaedit",
        "mose",
    }
    assert set(editors(read_sweep(FOLDER / "rose.yaml"))) == {"rome", "memit", "alphaedit", "memit_merge", "rose"}
    assert {"rome", "memit", "pmet", "rect", "alphaedit", "ft_l"} <= set(
        editors(read_sweep(FOLDER / "revisiting.yaml"))
    )


def test_the_protocol_of_revisiting_groups_the_same_hundred_records():
    config = read_sweep(FOLDER / "revisiting-small.yaml")
    assert config.groups is not None and config.groups.sizes == (1, 10, 100) and config.groups.records == 100
    cells = load_sweep("experiments/revisiting-small", only=["method=AlphaEdit", "edits=10"]).cells
    assert [(c.config.stream.skip, c.config.stream.limit, c.config.batching.size) for c in cells] == [
        (10 * group, 10, 1) for group in range(10)
    ]
