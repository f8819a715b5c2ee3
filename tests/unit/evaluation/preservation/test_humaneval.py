"""HumanEval: reading, the estimate of pass@k, and verdicts of the sandbox on right and wrong completions."""

from __future__ import annotations

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest

from errata.editing.errors import UserError
from errata.evaluation.preservation.humaneval import HumanEvalSuite, Problem, pass_at_k, program_of, read_problems
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from tests.helpers.tiny import tiny_model

ADD = {
    "task_id": "Own/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n    ',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n",
}
ONE = {
    **ADD,
    "task_id": "Own/1",
    "prompt": "def one():\n",
    "entry_point": "one",
    "test": "def check(c):\n    assert c() == 1",
}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in (ADD, ONE)).encode()))
    return path


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n in range(1, 6):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError, match="pass@3 cannot be estimated from 1 of 2"):
        pass_at_k(2, 1, 3)


def test_reading(problems: Path, tmp_path: Path) -> None:
    assert [p.task_id for p in read_problems(problems)] == ["Own/0", "Own/1"]
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps(ADD) + '\n{"task_id": 3}\n')
    with pytest.raises(UserError, match=r"plain.jsonl:2: not a HumanEval problem"):
        read_problems(plain)
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(tmp_path / "gone")


def test_right_and_wrong_completions(problems: Path) -> None:
    suite = HumanEvalSuite(problems)
    add, one = suite.problems
    found = suite.judge([(add, "    return a + b\n"), (add, "    return a - b\n"), (one, "    return 1"), (one, "")])
    assert found == [True, False, True, False]
    assert program_of(add, "    return a + b").count("check(add)") == 1


def test_every_published_solution_passes_and_an_empty_one_does_not(shared_data: Path) -> None:
    path = shared_data / "humaneval/HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]
    suite = HumanEvalSuite(path)
    chosen = range(0, len(rows), 14)
    right = [(suite.problems[n], rows[n]["canonical_solution"]) for n in chosen]
    assert suite.judge(right) == [True] * len(right)
    assert suite.judge([(problem, "    pass\n") for problem, _ in right[:4]]) == [False] * 4


def test_a_model_is_asked_and_judged(problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SamplingEngine(tiny_model(layers=2))
    suite = HumanEvalSuite(problems, sampling=SamplingConfig(max_new_tokens=5), samples=2, ks=(1, 2))
    first = suite.complete(engine, [0, 1])
    assert [len(texts) for texts in first] == [2, 2] and suite.complete(engine, [1]) == first[1:]
    assert suite.complete(engine, [0, 1], seed=1) != first
    answers = iter([True, False, False, False])

    def judge(pairs: list[tuple[Problem, str]]) -> list[bool]:
        assert [problem.task_id for problem, _ in pairs] == ["Own/0", "Own/0", "Own/1", "Own/1"]
        return list(answers)

    monkeypatch.setattr(suite, "judge", judge)
    assert suite.run(engine, suite.items) == {"pass@1": [0.5, 0.0], "pass@2": [1.0, 0.0]}
    with pytest.raises(UserError, match="needs at least as many samples, got 1"):
        HumanEvalSuite(problems, ks=(10,))
