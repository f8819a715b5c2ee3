"""lm-evaluation-harness over our engine against the harness's own Hugging Face model, on the real small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.evaluation.preservation.battery import sampled, scores_of
from errata.evaluation.sampling import SamplingEngine

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from errata.evaluation.preservation.harness import EngineLM, load_suites

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " London, which"),
    ("The mother tongue of Danielle Darrieux is ", "French"),  # the blank belongs to the continuation
    ("Q: What is 2 + 2?\nA:", " 4"),
    ("", "Rome lies in Italy."),
    ("Question: Which of these grows?\n" * 12, "A tree"),
]


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> EngineLM:
    return EngineLM(SamplingEngine(load_model(str(smollm2))))


@pytest.fixture(scope="module")
def theirs(ours: EngineLM) -> Any:
    return HFLM(pretrained=ours.engine.model.hf, tokenizer=ours.tokenizer, batch_size=1)


def asks(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def test_loglikelihoods_are_the_harness_models(ours: EngineLM, theirs: Any) -> None:
    got, want = ours.loglikelihood(asks("loglikelihood", *PAIRS)), theirs.loglikelihood(asks("loglikelihood", *PAIRS))
    assert [value for value, _ in got] == pytest.approx([value for value, _ in want], abs=2e-3)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]


def test_long_contexts_are_cut_alike(ours: EngineLM, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [("one two three four five six seven " * 6 + context, continuation) for context, continuation in PAIRS[:3]]
    monkeypatch.setattr(ours, "max_length", 24)
    monkeypatch.setattr(theirs, "_max_length", 24)
    assert theirs.max_length == 24
    got, want = ours.loglikelihood(asks("loglikelihood", *long)), theirs.loglikelihood(asks("loglikelihood", *long))
    assert [value for value, _ in got] == pytest.approx([value for value, _ in want], abs=2e-3)
    text = ("The town lies on a river. " * 5,)
    rolling = "loglikelihood_rolling"
    wanted = theirs.loglikelihood_rolling(asks(rolling, text))
    assert ours.loglikelihood_rolling(asks(rolling, text)) == pytest.approx(wanted, abs=5e-3)


def test_greedy_answers_are_the_harness_models(ours: EngineLM, theirs: Any) -> None:
    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    prompts = [(context, dict(settings)) for context, _ in PAIRS[:2]] + [
        ("Count: 1, 2, 3,", {**settings, "until": [" 7"]})
    ]
    assert ours.generate_until(asks("generate_until", *prompts)) == theirs.generate_until(
        asks("generate_until", *prompts)
    )


def test_sampled_answers_are_seeded_by_prompt_and_repeat(ours: EngineLM) -> None:
    one = ("Once upon a time", {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0})
    first = ours.generate_until(asks("generate_until", one, one))
    assert first[0] != first[1] and ours.generate_until(asks("generate_until", one)) == first[:1]
    other = EngineLM(ours.engine, seed=1)
    assert other.generate_until(asks("generate_until", one)) != first[:1]


def test_local_benchmarks_run_and_their_prompts_are_the_harnesss_own(ours: EngineLM, shared_data: Path) -> None:
    names = ["hellaswag", "winogrande", "arc_challenge", "mmlu", "cola"]
    suites, held = load_suites(names, data=shared_data, fewshot={"mmlu": 1})
    try:
        by_name = {suite.name: suite for suite in suites}
        assert {name: len(suite.items) for name, suite in by_name.items()} == {
            "hellaswag": 500,
            "winogrande": 500,
            "arc_challenge": 500,
            "mmlu": 480,
            "cola": 341,
        }
        assert len(by_name["mmlu"].versions) == 12 and len({suite.fingerprint for suite in suites}) == 5
        wanted = {"hellaswag": {"acc", "acc_norm"}, "winogrande": {"acc"}, "cola": {"mcc"}, "mmlu": {"acc"}}
        for name, metrics in wanted.items():
            suite = by_name[name]
            items = sampled(suite.items, 3, 0)
            outcomes = suite.run(ours.engine, items)
            assert set(outcomes) == metrics and all(len(values) == 3 for values in outcomes.values())
            assert all(score.items == 3 for score in scores_of(suite, outcomes))
            # a share gives what the whole gives, and asking again does too
            assert suite.run(ours.engine, items[1:2]) == {m: v[1:2] for m, v in outcomes.items()}
        name, task = next(iter(by_name["mmlu"]._tasks.items()))
        subject = name.removeprefix("mmlu_").replace("_", " ")
        prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=1)
        assert prompt.startswith(f"The following are multiple choice questions (with answers) about {subject}.\n\n")
        assert prompt.count("\nAnswer:") == 2 and prompt.endswith("\nAnswer:")
    finally:
        held.cleanup()


def test_a_name_that_the_harness_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'chess' is unknown to lm-eval"):
        load_suites(["chess"], data=None)
