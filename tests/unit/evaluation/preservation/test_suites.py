"""The project's own suites on a tiny model, and what a user is told who asks for what cannot be had."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from errata.editing.errors import UserError
from errata.editing.request import EditRequest, PortabilityProbe
from errata.evaluation.edit_scores import edit_scores
from errata.evaluation.perplexity import perplexity, windows_of
from errata.evaluation.preservation.battery import merged, scores_of
from errata.evaluation.preservation.domains import PerplexitySuite, read_domains
from errata.evaluation.preservation.suites import BatteryConfig, build_suites
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from errata.evaluation.uncertainty import SpuqConfig
from tests.helpers.tiny import tiny_model

REQUESTS = [
    EditRequest(id=name, subject=name, prompt="{} lies in", target_new="France") for name in ("Rome", "Paris", "Angola")
]
QUICK = SpuqConfig(paraphrases=2, samples=2, sampling=SamplingConfig(max_new_tokens=3))


class Lengths:
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(t), t.count("e")] for t in texts], dtype=np.float32)


@pytest.fixture(scope="module")
def engine() -> SamplingEngine:
    return SamplingEngine(tiny_model(layers=2))


def test_perplexity_of_a_domain_weighs_tokens_alike(engine: SamplingEngine, tmp_path: Path) -> None:
    text = tmp_path / "law.txt"
    text.write_text("The question is.\n\nTherefore I think that you are right because the answer is known.\n\nyes no\n")
    documents = read_domains({"law": text})["law"]
    suite = PerplexitySuite("law", documents, window=8)
    (score,) = scores_of(suite, suite.run(engine, suite.items))
    whole = perplexity(engine, windows_of(engine.model.text, documents, window=8))
    assert score.task == "perplexity:law" and score.value == pytest.approx(whole.value, rel=1e-6)
    shares = merged([suite.run(engine, suite.items[:1]), suite.run(engine, suite.items[1:])])
    assert scores_of(suite, shares)[0].value == pytest.approx(whole.value, rel=1e-6)
    assert suite.fingerprint != PerplexitySuite("law", documents[:2], window=8).fingerprint


@pytest.mark.parametrize("name", ["fluency", "uncertainty"])
def test_suites_about_edits_do_not_depend_on_the_share(engine: SamplingEngine, name: str) -> None:
    config = BatteryConfig(tasks=(name,), spuq=QUICK, free_text=QUICK.sampling)
    suites, _ = build_suites(config, requests=REQUESTS, embedding=Lengths())
    suite = suites[name]
    whole = suite.run(engine, suite.items, seed=2)
    parts = merged([suite.run(engine, suite.items[:2], seed=2), suite.run(engine, suite.items[2:], seed=2)])
    for metric, values in whole.items():
        assert np.allclose(values, parts[metric], atol=1e-4)
    assert suite.run(engine, suite.items, seed=3) != whole
    assert all(math.isfinite(score.value) for score in scores_of(suite, whole))
    assert build_suites(config, requests=REQUESTS[:2])[0][name].fingerprint != suite.fingerprint


def test_edits_are_scored_and_their_portability_generated(engine: SamplingEngine) -> None:
    said = engine.generate([engine.model.text.encode_prompt("Rome is")])[0].text
    asked = ({"prompt": "Rome is", "answers": [said]}, {"prompt": "Rome is", "answers": ["never said"]})
    requests = [REQUESTS[0].model_copy(update={"portability": tuple(map(PortabilityProbe.model_validate, asked))})]
    suites, _ = build_suites(BatteryConfig(tasks=("edits",)), requests=[*requests, REQUESTS[1]])
    suite = suites["edits"]
    outcomes = suite.run(engine, suite.items)
    assert outcomes["portability"] == [0.5, None] and suite.aggregate("portability", [0.5, None]) == 0.5
    wanted = edit_scores(engine, engine.model.text, [*requests, REQUESTS[1]])
    assert outcomes["efficacy"] == pytest.approx([score.efficacy for score in wanted])
    # a metric that no edit has is not reported
    assert {score.metric for score in scores_of(suite, outcomes)} == {"efficacy", "portability"}


def test_uncertainty_is_counted_without_an_embedder_and_asked_with_one(engine: SamplingEngine) -> None:
    config = BatteryConfig(tasks=("uncertainty",), spuq=QUICK)
    suites, _ = build_suites(config, requests=REQUESTS)
    assert len(suites["uncertainty"].items) == 3
    worded = {"Rome": ("Where is Rome?", "Rome is where?", "Name Rome's country.")}
    other, _ = build_suites(config.model_copy(update={"wordings": worded}), requests=REQUESTS, embedding=Lengths())
    assert other["uncertainty"].fingerprint != suites["uncertainty"].fingerprint
    assert len(other["uncertainty"].run(engine, other["uncertainty"].items)["total"]) == 3
    with pytest.raises(ValueError, match="without an embedding"):
        suites["uncertainty"].run(engine, suites["uncertainty"].items)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'humaneval' needs a data directory with humaneval/HumanEval.jsonl.gz"):
        build_suites(BatteryConfig(tasks=("humaneval",), data=tmp_path))
    with pytest.raises(UserError, match="'perplexity' needs texts"):
        build_suites(BatteryConfig(tasks=("perplexity",)))
    with pytest.raises(UserError, match=r"'law' .* cannot be read"):
        build_suites(BatteryConfig(tasks=("perplexity",), texts={"law": tmp_path / "gone"}))
    (tmp_path / "blank").write_text(" \n\n ")
    with pytest.raises(UserError, match="holds no text"):
        build_suites(BatteryConfig(tasks=("perplexity",), texts={"law": tmp_path / "blank"}))
    with pytest.raises(UserError, match="tasks fluency ask about edits, and there are none"):
        build_suites(BatteryConfig(tasks=("fluency",)))
    monkeypatch.setitem(sys.modules, "errata.evaluation.preservation.harness", None)
    with pytest.raises(UserError, match=r"tasks gsm8k need lm-evaluation-harness.*the extra 'eval'"):
        build_suites(BatteryConfig(tasks=("gsm8k",)))
