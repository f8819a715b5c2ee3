"""The leaderboard says what presets and runs measured, and where every preset's settings come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.measure import candidate_of, with_figures
from errata.orchestrator.calibrate.trial import TrialResult
from errata.orchestrator.config.loading import read_composed
from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.experiments.leaderboard import leaderboard

ROOT = Path(__file__).parents[4]
RESULT = TrialResult(
    edits=16, efficacy=1.0, paraphrase=0.75, locality=0.875, perplexity=1.0123, seconds=60.0, edit_seconds=2.34
)


def rows(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_in_the_docs_is_what_the_command_writes() -> None:
    assert (ROOT / "docs" / "leaderboard.md").read_text() == leaderboard(), (
        "run: errata leaderboard -o docs/leaderboard.md"
    )


def test_every_preset_is_listed_with_where_its_settings_come_from() -> None:
    listed = {row[0].strip("`"): row for row in rows(leaderboard(), "All presets")}
    presets = sorted((configs_root() / "models").glob("*.yaml"))
    assert set(listed) == {f"models/{path.stem}" for path in presets}
    assert listed["models/qwen3-0.6b"] == ["`models/qwen3-0.6b`", "`Qwen/Qwen3-0.6B`", "9-14", "carried over"]
    assert listed["models/llama-3.2-3b"][3] == "published"
    assert {row[0] for row in rows(leaderboard(), "Measured")} == {
        f"`models/{path.stem}`" for path in presets if "measured" in read_composed(path)
    }


def test_a_preset_of_ones_own_stands_where_its_figures_put_it(tmp_path: Path) -> None:
    best, none = tmp_path / "mine.yaml", tmp_path / "bare.yaml"
    plain = "# mine\nmodel:\n  name: org/mine\neditor:\n  layers: [3]\n  values: {lr: 0.5}\n"
    perfect = RESULT.model_copy(update={"paraphrase": 1.0, "locality": 1.0, "perplexity": None})
    best.write_text(with_figures(plain, Calibration("org/mine", editor="memit"), perfect))
    none.write_text(plain)
    found = rows(leaderboard([best, none]), "Measured")
    assert found[0] == [f"`{best}`", "`org/mine`", "memit", "16", "100 %", "100 %", "100 %", "-", "2.3"]
    assert not any(str(none) in row[0] for row in found)


def test_figures_are_laid_into_a_preset_and_replace_older_ones() -> None:
    path = configs_root() / "models" / "smollm2-135m.yaml"
    job = Calibration("smollm2-135m-instruct")
    once = with_figures(path.read_text(), job, RESULT)
    twice = with_figures(once, job, RESULT.model_copy(update={"edits": 12}))
    assert yaml.safe_load(once)["measured"] == {
        "editor": "alphaedit",
        "edits": 16,
        "efficacy": 1.0,
        "paraphrase": 0.75,
        "locality": 0.875,
        "perplexity": 1.012,
        "seconds_per_edit": 2.3,
    }
    assert twice == once.replace("edits: 16", "edits: 12")
    before, after = yaml.safe_load(path.read_text()), yaml.safe_load(once)
    assert {**before, "measured": 0} == {**after, "measured": 0}


def test_a_presets_settings_are_tried_with_the_editors_own_of_it() -> None:
    preset = read_composed(configs_root() / "models" / "gemma-3-270m.yaml")
    alphaedit, memit = (candidate_of(preset, editor, "x") for editor in ("alphaedit", "memit"))
    assert alphaedit["l2"] == 10.0 and "cov_weight" not in alphaedit
    assert memit["cov_weight"] == 200.0 and "l2" not in memit
    assert alphaedit["layers"] == [3, 4, 5, 6, 7] and alphaedit["values.units"] == "relative"


def test_runs_are_averaged_by_model_method_data_and_edits(make_run) -> None:
    first = make_run("a", {"edited": {"efficacy": 0.5, "generalization": 0.25}}, settings={"seed": 0})
    second = make_run("b", {"edited": {"efficacy": 1.0, "generalization": None}}, settings={"seed": 1})
    other = make_run("c", {"edited": {"efficacy": 1.0}}, settings={"editor.type": "rome"})
    found = rows(leaderboard([first, second, other]), "Runs")
    assert ["`tiny`", "memit", "facts.jsonl", "2", "2", "75 %", "25 %", "-", "25", "0.5"] in found
    assert ["`tiny`", "rome", "facts.jsonl", "2", "1", "100 %", "-", "-", "25", "0.5"] in found
    assert len(found) == 2


@pytest.mark.parametrize(("ratio", "said"), [(1.004, "1.004"), (1.05, "1.050"), (1.084, "1.084 (too much)")])
def test_a_preset_that_costs_more_than_calibration_allows_says_so(ratio: float, said: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    text = (configs_root() / "models" / "gemma-3-270m.yaml").read_text()
    own.write_text(re.sub(r"(?m)^  perplexity: .*", f"  perplexity: {ratio}", text))
    (row,) = [row for row in rows(leaderboard([own]), "Measured") if str(own) in row[0]]
    assert row[-2] == said
