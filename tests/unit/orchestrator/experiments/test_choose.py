"""Settings chosen on a validation split, against a plain argmax."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from errata.editing.errors import UserError
from errata.orchestrator.experiments.choose import choice_lines, choose, chosen_sweep
from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.config import load_sweep
from tests.helpers.command import in_process

from .conftest import write_sweep, write_sweep_record

STRENGTH = {
    "lambda 1": {"editor": {"type": "memit", "cov_weight": 1.0}},
    "lambda 9": {"editor": {"type": "memit", "cov_weight": 9.0}},
    "tau .1": {"editor": {"type": "alphaedit", "tau": 0.1}},
    "tau .2": {"editor": {"type": "alphaedit", "tau": 0.2}},
}
# (strength, covariance) -> reliability by seed
VALUES = {
    ("lambda 1", "a"): (0.2, 0.6), ("lambda 9", "a"): (0.5, 0.5),
    ("tau .1", "a"): (0.9, 0.9), ("tau .2", "a"): (0.9, 0.7),
    ("lambda 1", "b"): (0.3, 0.3), ("lambda 9", "b"): (0.1, 0.2),
    ("tau .1", "b"): (0.4, 0.4), ("tau .2", "b"): (0.4, 0.4),
}  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path, make_run) -> Path:
    cells = {}
    for number, ((strength, covariance), values) in enumerate(VALUES.items()):
        editor = STRENGTH[strength]["editor"]
        for seed, value in enumerate(values):
            name = f"run{number}-{seed}"
            settings = {f"editor.{key}": v for key, v in editor.items()} | {"seed": seed, "stream.skip": 30}
            make_run(name, {"base": {}, "edited": {"reliability": value, "efficacy": 1.0 - value}}, settings=settings)
            cells[name] = {"strength": strength, "covariance": covariance, "seed": str(seed)}
    return write_sweep_record(tmp_path, cells)


def test_each_method_gets_its_best_mean_of_the_seeds(finished: Path) -> None:
    chosen = choose(collect([finished]), ["strength"], "reliability")
    found = {(one.family["covariance"], one.editor): one.best.labels["strength"] for one in chosen}
    plain = {}
    for covariance in "ab":
        for editor in ("memit", "alphaedit"):
            means = {
                strength: sum(values) / 2
                for (strength, where), values in VALUES.items()
                if where == covariance and STRENGTH[strength]["editor"]["type"] == editor
            }
            plain[covariance, editor] = max(means, key=lambda strength: means[strength])  # of equal ones the first
    assert found == plain and found["a", "memit"] == "lambda 9" and found["b", "alphaedit"] == "tau .1"
    (one,) = [c for c in chosen if c.editor == "memit" and c.family == {"covariance": "a"}]
    assert one.best.figure is not None and one.best.figure.mean == pytest.approx(0.5) and one.best.figure.count == 2
    assert "from record 31 on" in one.best.split
    lines = list(choice_lines(chosen))
    assert len(lines) == 4 * 3 and sum(line.startswith("  * ") for line in lines) == 4


def test_where_lower_is_better_the_lowest_is_taken(finished: Path) -> None:
    chosen = choose(collect([finished]), ["strength"], "perplexity")
    assert all(one.best is one.tried[0] for one in chosen), "all have the same: the first"
    with pytest.raises(UserError, match="'speed': no run has such a figure; allowed: efficacy, "):
        choose(collect([finished]), ["strength"], "speed")
    with pytest.raises(UserError, match="--over 'lambda': there is no such axis; allowed: "):
        choose(collect([finished]), ["lambda"], "reliability")


def test_the_file_it_writes_is_a_sweep_with_the_chosen_settings(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {
        "strength": STRENGTH,
        "covariance": {"a": {"covariance.seed": 1}, "b": {"covariance.seed": 2}},
        "seed": [0, 1],
    }
    write_sweep(tmp_path, axes=axes)
    errata = in_process(monkeypatch, capsys)
    target = tmp_path / "chosen.yaml"
    code, out, _ = errata("choose", finished, "--over", "strength", "--by", "reliability", "-o", target)
    assert code == 0 and str(target) in out and "tau .1" in out
    sweep = load_sweep(str(target), ["stream.skip=0", "stream.limit=7"])
    assert len(sweep.cells) == 4 * 2
    by_choice = {cell.coordinates["choice"]: cell.config for cell in sweep.cells}
    best = next(config for title, config in by_choice.items() if "lambda 9" in title)
    assert best.editor.cov_weight == 9.0 and best.covariance.seed == 1 and best.stream.limit == 7
    assert {config.editor.type for config in by_choice.values()} == {"memit", "alphaedit"}
    assert yaml.safe_load(target.read_text())["name"] == "demo-chosen"
    code, _, err = errata("choose", finished / "run0-0", "--over", "strength")
    assert code == 2 and "no directory of a sweep" in err
    assert chosen_sweep(sweep.config, []) and errata("choose", finished, "--over", "x")[0] == 2
