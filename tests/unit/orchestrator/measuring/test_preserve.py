"""``errata preserve`` on a small finished run: what is asked of which weights, kept, compared and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.evaluation.edit_scores import edit_scores
from errata.evaluation.perplexity import perplexity, windows_of
from errata.evaluation.preservation.battery import Item, Outcomes
from errata.evaluation.sampling import SamplingEngine
from errata.orchestrator.cli import app
from errata.orchestrator.cli.preserve import PreserveOptions, _ray_of
from errata.orchestrator.history.log import History
from errata.orchestrator.journal import Journal
from errata.orchestrator.measuring.points import named_versions
from errata.orchestrator.measuring.preserve import FOLDER, Asked, preserve, report_lines
from errata.orchestrator.report.preserved import read_preserved
from tests.helpers.small_run import SmallRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def errata(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class Numbered:
    """A suite whose items are right where the weight says so."""

    name = "numbered"
    fingerprint = "one"

    def __init__(self) -> None:
        self.items: list[Item] = [("numbered", at) for at in range(10)]

    def run(self, engine: Any, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        raise NotImplementedError

    def is_mean(self, metric: str) -> bool:
        return True

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        raise NotImplementedError


V0, V1 = Asked(0, "a" * 64), Asked(1, "b" * 64)


class Counting:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def ask(self, suite: str, items: Sequence[Item], version: str, weights: Mapping[int, Tensor]) -> Outcomes:
        self.calls.append((version[0], len(items)))
        return {"acc": [int(number < weights[0]) for _, number in items]}


def weights(version: Asked) -> dict[int, Tensor]:
    return {0: torch.tensor(8.0 if version == V0 else 5.0)}


def test_versions_are_compared_item_by_item_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    suites, counting = {"numbered": Numbered()}, Counting()
    report = preserve(tmp_path, [V0, V1], suites, counting.ask, weights)
    assert [table.scores[0].value for table in report.versions] == [0.8, 0.5]
    (moved,) = report.comparisons[0].changes
    assert (moved.before, moved.after) == (0.8, 0.5) and moved.high is not None and moved.high < 0
    assert preserve(tmp_path, [V0, V1], suites, counting.ask, weights) == report
    assert counting.calls == [("a", 10), ("b", 10)]
    text = "\n".join(report_lines(report))
    assert "v0 aaaaaaaaaaaa" in text and "10 of 10" in text and "v1 against v0" in text and "-0.300" in text
    # other items, another seed, other documents, a damaged file: asked again
    preserve(tmp_path, [V0], suites, counting.ask, weights, limit=4)
    preserve(tmp_path, [V0], suites, counting.ask, weights, seed=1)
    changed = Numbered()
    changed.fingerprint = "two"
    preserve(tmp_path, [V0], {"numbered": changed}, counting.ask, weights)
    assert counting.calls[2:] == [("a", 4), ("a", 10), ("a", 10)]
    for path in (tmp_path / FOLDER).glob("*.json"):
        path.write_text(path.read_text()[:50])
    assert preserve(tmp_path, [V1], suites, counting.ask, weights).versions[0].scores[0].value == 0.5
    assert counting.calls[5:] == [("b", 10)]


def test_the_command_puts_the_versions_weights_to_the_model(run: SmallRun, tmp_path: Path) -> None:
    text = tmp_path / "news.txt"
    text.write_text("The capital of France is Paris. Rome lies in Italy.\n\nWhat is the question? yes no yes no\n")
    arguments = ("v0", "v3", "head", "--run", run.directory, "--tasks", "perplexity", "--text", f"news={text}")
    report = json.loads(errata("preserve", *arguments, "--output", tmp_path / "out.json", "--json").stdout)
    assert report == json.loads((tmp_path / "out.json").read_text())
    model = load_model(str(run.model))
    windows = windows_of(model.text, text.read_text().split("\n\n"))
    for table, sequence in zip(report["versions"], (0, 3, 6), strict=True):
        assert table["version"]["digest"] == run.versions[sequence]
        model.set_weights(run.weights[sequence])
        score = next(s for s in table["scores"] if s["task"] == "perplexity:news")
        assert score["value"] == pytest.approx(perplexity(SamplingEngine(model), windows).value, rel=1e-5)
        assert score["items"] == 2
    assert len({s["value"] for t in report["versions"] for s in t["scores"] if s["metric"] == "perplexity"}) == 3
    printed = errata("preserve", *arguments).stdout
    assert "v3 against v0, item by item" in printed and "2 of 2" in printed
    # what comparisons read
    versions = {version.sequence: version for version in read_preserved(run.directory)}
    assert sorted(versions) == [0, 3, 6]
    for table, sequence in zip(report["versions"], (0, 3, 6), strict=True):
        own = versions[sequence].tasks()["perplexity:news"]
        assert own.value == table["scores"][0]["value"] and own.items == 2
        assert versions[sequence].reference == (None if sequence == 0 else run.versions[0])
    kept = sorted((run.directory / FOLDER).iterdir())
    assert len(kept) == 4 and errata("verify", run.directory, "--no-weights").exit_code == 0
    errata("gc", run.directory)
    assert sorted((run.directory / FOLDER).iterdir()) == kept


def test_fluency_star_is_against_the_first_version(run: SmallRun) -> None:
    arguments = ("v0", "head", "--run", run.directory, "--tasks", "fluency,edits", "--limit", 2)
    report = json.loads(errata("preserve", *arguments, "--json").stdout)
    first, last = (
        next(s for s in table["scores"] if s["metric"] == "mean_logprob")["value"] for table in report["versions"]
    )
    assert report["comparisons"][0]["fluency_star"] == pytest.approx(last / first)
    assert {(s["items"], s["of"]) for s in report["versions"][1]["scores"]} == {(2, 4)}  # facts that the head holds
    assert report["comparisons"][0]["s_e"] is None  # the edits have no portability questions


def test_retention_measures_each_edit_on_the_version_that_wrote_it(run: SmallRun) -> None:
    arguments = ("v0", "head", "--run", run.directory, "--tasks", "retention")
    report = json.loads(errata("preserve", *arguments, "--json").stdout)
    with run.journal() as journal:
        held = History(journal).held(6)
    model = load_model(str(run.model))
    engine = SamplingEngine(model)

    def efficacy(name: str, sequence: int) -> float:
        model.set_weights(run.weights[sequence])
        value = edit_scores(engine, model.text, [held[name].request])[0].efficacy
        assert value is not None
        return value

    life = next(one for one in report["lifetimes"] if one["metric"] == "efficacy")
    right_after = [efficacy(name, row.applied_in or 0) for name, row in held.items()]
    at_end = [efficacy(name, 6) for name in held]
    assert life["retention"]["edits"] == len(held) == 4
    assert life["retention"]["right_after"] == pytest.approx(sum(right_after) / 4)
    head = next(version for version in read_preserved(run.directory) if version.sequence == 6)
    held_both = sum(min(a, b) for a, b in zip(right_after, at_end, strict=True))
    assert head.retention == (pytest.approx(held_both / sum(right_after)) if sum(right_after) else None)
    assert life["retention"]["at_end"] == pytest.approx(sum(at_end) / 4)
    assert life["forgetting"] == pytest.approx(sum(right_after) / 4 - sum(at_end) / 4)
    assert [point["edits"] for point in life["curve"]] == [1, 1, 1, 1]
    assert life["curve"][0]["youngest"] == 0 and life["curve"][-1]["oldest"] > 0
    printed = errata("preserve", *arguments).stdout
    assert "edits right after they were written, and at the end" in printed and "    age 0 " in printed


def test_uncertainty_and_a_version_named_twice(run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        config = json.dumps({**journal.meta.config, "memory": {"embedder": {"type": "hash", "dim": 32}}})
    with Journal.open(tmp_path / "run" / "journal.sqlite") as journal:
        journal._connection.execute("UPDATE meta SET config = ?", (config,))
    printed = errata(
        "preserve", "v0", "head", "v6", "--run", tmp_path / "run", "--tasks", "uncertainty", "--limit", 1
    ).stdout
    assert printed.count("against v0") == 1 and "uncertainty growth: total" in printed and "1 of 4" in printed
    head = next(version for version in read_preserved(tmp_path / "run") if version.sequence == 6)
    assert head.uncertainty_growth is not None
    assert f"uncertainty growth: total {head.uncertainty_growth:+.3f}" in printed
    assert "6 of 6 wordings each, 5 answers to each, embedded by hash" in printed
    # wordings that somebody wrote down, for one of the edits that hold
    file = tmp_path / "wordings.jsonl"
    own = [{"level": 3, "rephrase": "Rome is in which country?"}, {"level": 4, "rephrase": "In which state is Rome?"}]
    file.write_text(json.dumps({"id": "rome", "question": "Rome lies in", "generated_questions": own}))
    asked = ("preserve", "v0", "head", "--run", tmp_path / "run", "--tasks", "uncertainty", "--limit", 1)
    assert "5 of 6 wordings each" in errata(*asked, "--wordings", file).stdout, "one of four edits has two, not six"
    battery = PreserveOptions(tasks="uncertainty", system="cautious").battery()
    assert battery.spuq.chat and "do not know the answer" in battery.spuq.system


def test_it_works_where_the_run_worked() -> None:
    options = PreserveOptions()
    ray = {"address": "ray://there", "evaluation_workers": 3, "evaluation": {"device": "cuda", "num_gpus": 1.0}}
    found = _ray_of({"ray": ray}, options)
    assert (found.address, found.evaluation_workers, found.evaluation.device) == ("ray://there", 3, "cuda")
    assert found.evaluation.num_gpus == 1.0
    # those that generate evaluate too: one process; a run that does not tell: one process here
    assert _ray_of({"ray": {"evaluation_workers": 0}}, options).evaluation_workers == 1
    assert _ray_of({}, options).evaluation_workers == 1 and _ray_of({}, options).address == "local"
    told = PreserveOptions(workers=2, address="local", device="cpu")
    found = _ray_of({"ray": ray}, told)
    assert (found.address, found.evaluation_workers, found.evaluation.device) == ("local", 2, "cpu")


def test_versions_of_the_timeline_by_one_name(run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    with Journal.open(tmp_path / "run" / "journal.sqlite") as journal:
        for edits in (2, 3):
            journal.record_evaluation("d", edits, "timeline", {})
        names = [v.sequence for v in named_versions(journal, ["v0", "timeline", "v2", "head"])]
    assert names[0] == 0 and names[-1] == 6 and len(names) == len(set(names)) and {1, 2} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", " , "), "names no task"),
        (("--tasks", "perplexity", "--text", "news"), "--text 'news' is not of the form NAME=VALUE"),
        (("--tasks", "perplexity", "--text", "news=gone.txt"), "'news' 'gone.txt' cannot be read"),
        (("--tasks", "fluency", "--fewshot", "gsm8k=many"), "want a number of examples"),
        (("--tasks", "uncertainty", "--rephrase-url", "http://model/v1"), "needs --rephrase-model"),
        (("--tasks", "uncertainty", "--rephrase-url", "model", "--rephrase-model", "m"), "must begin with http"),
        (("--tasks", "humaneval"), "needs a data directory"),
        (("--tasks", "uncertainty", "--keep-levels"), "--keep-levels needs --wordings FILE"),
        (("--tasks", "uncertainty", "--wordings", "gone.jsonl"), "gone.jsonl"),
        (("--tasks", "fluency", "--data", "nowhere"), "--data 'nowhere' is not a directory"),
        (("v9", "--tasks", "fluency"), "there is no version v9"),
    ],
)
def test_a_users_mistakes(run: SmallRun, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        errata("preserve", "--run", run.directory, *arguments)
