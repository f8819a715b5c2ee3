"""Calibration: the search as pure functions, the shipped questions, and the whole of it on a model that knows facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from errata.editing.checkpoint.fingerprint import Fingerprint, fingerprint
from errata.editing.digest import digest_tensors
from errata.editing.errors import UserError
from errata.orchestrator.calibrate import calibrate as calibrating
from errata.orchestrator.calibrate.calibrate import PAGE, TRIALS, calibrate
from errata.orchestrator.calibrate.halving import affordable, halve
from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.page import why
from errata.orchestrator.calibrate.questions import Fact, Question, read_questions
from errata.orchestrator.calibrate.space import Space, settings_of, space_for, windows_from
from errata.orchestrator.calibrate.trial import Bench, TrialResult
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.progress import Display
from tests.helpers.tiny import save_tiny

# ---------------------------------------------------------------- the questions


def test_the_shipped_questions_are_many_and_whole() -> None:
    questions = read_questions()
    assert len(questions) >= 300 and len({q.relation for q in questions}) >= 15
    assert len({(q.relation, q.subject) for q in questions}) == len(questions)
    for q in questions:
        assert q.prompt.count("{}") == 1 and q.paraphrase.count("{}") == 1 and q.prompt != q.paraphrase
        assert q.subject.strip() == q.subject != "" and q.answer.strip() == q.answer != ""
    by_relation: dict[str, set[str]] = {}
    for q in questions:
        by_relation.setdefault(q.relation, set()).add(q.answer)
    assert all(len(answers) > 1 for answers in by_relation.values()), "each has an answer to change to"
    assert len({q.relation for q in questions[:15]}) == 15, "the first ones are of many kinds"


# ---------------------------------------------------------------- the search


def result(score: float, edits: int = 4, seconds: float = 1.0) -> TrialResult:
    return TrialResult(
        edits=edits, efficacy=score, paraphrase=score, locality=score, perplexity=1.0, seconds=seconds, edit_seconds=0.1
    )


def test_halving_finds_the_best_and_tries_few_on_many_edits() -> None:
    candidates = [{"x": i} for i in range(27)]
    tried: list[tuple[int, int]] = []

    def attempt(candidate: Mapping[str, Any], edits: int) -> TrialResult:
        tried.append((candidate["x"], edits))
        return result(1 - abs(candidate["x"] - 13) / 27, edits)

    ranked = halve(candidates, (4, 8, 16, 32), attempt)
    assert ranked[0].candidate == {"x": 13} and ranked[0].edits == 32
    assert [sum(e == edits for _, e in tried) for edits in (4, 8, 16, 32)] == [27, 9, 3, 1]
    assert len(ranked) == 27 and len({one.candidate["x"] for one in ranked}) == 27
    assert [one.edits for one in ranked] == sorted((one.edits for one in ranked), reverse=True)


def test_halving_ends_when_it_is_told_to() -> None:
    spent: list[int] = []
    ranked = halve(
        [{"x": i} for i in range(9)],
        (4, 8),
        lambda c, e: spent.append(e) or result(c["x"] / 9, e),  # type: ignore[func-returns-value]
        stop=lambda *_: len(spent) >= 10,
    )
    assert spent == [4] * 9 + [8] and ranked[0].candidate == {"x": 8} and ranked[0].edits == 8
    assert halve([{"x": 0}], (4,), lambda c, e: result(1.0), stop=lambda *_: True) == []


@pytest.mark.parametrize("seconds, per_edit", [(100.0, 0.5), (3600.0, 1.0), (1.0, 5.0)])
def test_what_is_affordable_fits(seconds: float, per_edit: float) -> None:
    rungs, count = (4, 8, 16, 32), affordable(seconds, per_edit, (4, 8, 16, 32))
    cost = sum(max(count / 3**i, 0) * edits * per_edit for i, edits in enumerate(rungs))
    assert count >= 1 and (count == 1 or cost <= seconds)


def test_points_of_a_space_are_different_and_begin_with_what_is_known_to_work() -> None:
    space = space_for("alphaedit", [[4, 5, 6], [5]])
    points = space.points(30, seed=1)
    assert points[: len(space.starts)] == list(space.starts) and space.points(30, seed=1) == points
    assert len({json.dumps(point) for point in points}) == 30
    assert {tuple(point["layers"]) for point in space.starts} == {(4, 5, 6), (5,)}
    for point in points:
        assert set(point) == set(space.axes) and all(point[key] in values for key, values in space.axes.items())
    near = space.neighbors(points[0])
    assert near and all(sum(one[key] != points[0][key] for key in one) == 1 for one in near)
    everything = Space({"a": (1, 2), "b": (3,)}, ())
    assert sorted(p["a"] for p in everything.points(10)) == [1, 2]


def test_settings_are_a_section_of_a_configuration() -> None:
    found = settings_of({"layers": [1], "l2": 2.0, "values.lr": 0.5, "values.steps": 3})
    assert found == {"layers": [1], "l2": 2.0, "values": {"lr": 0.5, "steps": 3}}


def test_windows_come_from_the_effects() -> None:
    effects = [0.0, 0.0, 0.2, 0.5, 0.9, 0.4, 0.1, 0.0, 0.0, 5.0, 5.0]
    windows = windows_from(effects)
    assert windows[0] == [2, 3, 4, 5, 6] and [4] in windows and [3, 4, 5] in windows
    assert all(max(window) < 9 for window in windows), "the last two layers are left out"
    assert len({tuple(window) for window in windows}) == len(windows)
    assert windows_from([0.3, 0.2, 0.1]) == [[0]]


def test_the_score_counts_what_was_damaged() -> None:
    assert result(0.5).score == pytest.approx(0.5)
    assert result(0.5).model_copy(update={"perplexity": 1.25}).score == pytest.approx(0.3)
    for nothing in ({"perplexity": None}, {"problem": "keys depend on each other"}):
        assert result(0.9).model_copy(update=nothing).score == -1.0


# ---------------------------------------------------------------- the whole, on a tiny model


RELATION = ("The capital of {} is", "The city {} is governed from is")
WORDS = ["France", "Italy", "Canada", "Africa", "Angola", "Rome", "Paris", "English", "French", "football"]


def tiny_facts(*_: Any) -> list[Fact]:
    """Facts as if the tiny model knew them: what a random model says is of no account here."""
    questions = [Question("capital", f"{a} {b}", *RELATION, b) for a in WORDS[:4] for b in WORDS[4:]]
    return [
        Fact(q, WORDS[(i + 3) % len(WORDS)], tuple(questions[(i + j) % len(questions)] for j in (1, 2)))
        for i, q in enumerate(questions)
    ]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrating, "known_facts", tiny_facts)
    return save_tiny(tmp_path / "model", "llama", layers=5)


def job(model: Path, **given: Any) -> Calibration:
    return Calibration(str(model), minutes=0.2, tokens=200, **given)


def test_a_calibration_ends_in_a_preset_that_a_run_takes(checkpoint: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    found = calibrate(job(checkpoint), state, Display(quiet=True))
    assert found.tried >= 2 and found.final.edits == 7
    preset = tmp_path / "preset.yaml"
    preset.write_text(found.preset)
    plain = yaml.safe_load(found.preset)
    assert Fingerprint.model_validate(plain["matches"]).matches(fingerprint(checkpoint))
    config = load_config("quickstart", [f"model.name={checkpoint}"], str(preset))
    assert list(config.editor.layers) == found.winner["layers"] and config.editor.l2 == found.winner["l2"]
    assert config.editor.values.lr == found.winner["values.lr"]
    page = (state / PAGE).read_text()
    assert "Why the winner won" in page and str(found.winner["layers"]) in page and "matches:" in page


def test_it_goes_on_from_what_was_measured(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, attempts = tmp_path / "state", []
    attempt = Bench.attempt

    def interrupted(self: Bench, candidate: Any, facts: Any) -> TrialResult:
        attempts.append((json.dumps(candidate), len(facts)))
        if len(attempts) == 3:
            raise KeyboardInterrupt
        return attempt(self, candidate, facts)

    monkeypatch.setattr(Bench, "attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(job(checkpoint), state, Display(quiet=True))
    kept = (state / TRIALS).read_text()
    assert len(kept.splitlines()) == 2
    with (state / TRIALS).open("a") as file:
        file.write('{"key": "cut sho')
    before = len(attempts)
    calibrate(job(checkpoint), state, Display(quiet=True))
    assert not set(attempts[:2]) & set(attempts[before:]), "what was measured is not measured again"
    assert (state / TRIALS).read_text().startswith(kept)
    with pytest.raises(UserError, match="another model or editor"):
        calibrate(job(checkpoint, editor="memit"), state, Display(quiet=True))


def test_a_trial_leaves_the_model_as_it_was(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    attempt = Bench.attempt

    def watched(self: Bench, candidate: Any, facts: Any) -> TrialResult:
        seen.append(digest_tensors(dict(self.model.hf.state_dict())))
        found = attempt(self, candidate, facts)
        seen.append(digest_tensors(dict(self.model.hf.state_dict())))
        return found

    monkeypatch.setattr(Bench, "attempt", watched)
    calibrate(job(checkpoint, editor="memit"), tmp_path / "state", Display(quiet=True))
    assert len(seen) >= 4 and len(set(seen)) == 1
    assert torch.is_grad_enabled()


def test_models_that_know_nothing_and_editors_without_a_space_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "known_facts", lambda *_: tiny_facts()[:5])
    with pytest.raises(UserError, match="knows 5 of the shipped facts; at least 12"):
        calibrate(job(checkpoint), tmp_path / "state", Display(quiet=True))
    with pytest.raises(UserError, match="--editor 'rome' cannot be calibrated; allowed: alphaedit, memit"):
        calibrate(job(checkpoint, editor="rome"), tmp_path / "other", Display(quiet=True))
    assert not (tmp_path / "other").exists()


def test_the_page_says_what_each_setting_was_worth() -> None:
    from errata.orchestrator.calibrate.halving import Ranked

    ranked = [
        Ranked({"layers": [1], "l2": 1.0}, 8, result(0.9, 8)),
        Ranked({"layers": [1], "l2": 10.0}, 8, result(0.6, 8)),
    ]
    said = why(ranked)
    assert "nothing else was tried" in said[0] and "score 0.600 on 8 facts" in said[1]
