"""HumanEval: complete a function, run the problem's tests on it in the sandbox (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from typing import Any

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.evaluation.metrics.card import metric
from errata.evaluation.preservation.battery import Item, Outcomes
from errata.evaluation.preservation.sandbox import Sandbox, SandboxConfig
from errata.evaluation.sampling import SamplingConfig, SamplingEngine, seed_of

FILE = "humaneval/HumanEval.jsonl.gz"
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
"""A completion ends where the function does."""
SAMPLING = SamplingConfig(temperature=0.2, top_p=0.95, max_new_tokens=512)
"""moir C.3: temperature 0.2, top_p 0.95, one sample."""
_FIELDS = ("task_id", "prompt", "entry_point", "test")


@metric("pass_at_k", version=1, source="Chen et al. 2021, eq. 1")
def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k completions passes: ``1 - C(n - c, k) / C(n, k)``.

    Raises:
        ValueError: not ``0 <= passed <= samples`` and ``1 <= k <= samples``.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} cannot be estimated from {passed} of {samples} completions")
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


@dataclass(frozen=True)
class Problem:
    """One exercise."""

    task_id: str
    prompt: str
    entry_point: str
    test: str


def read_problems(path: Path) -> list[Problem]:
    """Problems of the published file, ``.gz`` or not.

    Raises:
        UserError: it is not there, or a line is no problem; the message says which.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"HumanEval file {str(path)!r} cannot be read ({type(error).__name__})") from error
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
                problems.append(Problem(*(str(record[name]) for name in _FIELDS)))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a HumanEval problem ({error!r})") from error
    if not problems:
        raise UserError(f"HumanEval file {str(path)!r} holds no problem")
    return problems


def opening(problem: Problem) -> str:
    """The prompt without blanks at its end: they belong to the indentation of what follows."""
    return problem.prompt.rstrip(" ")


def program_of(problem: Problem, completion: str) -> str:
    """What the sandbox runs: the prompt, the completion, the tests, and their call."""
    return f"{opening(problem)}{completion}\n{problem.test}\ncheck({problem.entry_point})\n"


class HumanEvalSuite:
    """The exercises as a suite: metric ``pass@k``."""

    name = "humaneval"

    def __init__(
        self,
        path: Path,
        *,
        sandbox: SandboxConfig | None = None,
        sampling: SamplingConfig = SAMPLING,
        samples: int = 1,
        ks: Sequence[int] = (1,),
    ) -> None:
        """``samples`` completions of each problem; ``ks`` says for which k.

        Raises:
            UserError: the file, the sandbox, or a k above the number of samples.
        """
        self.problems = read_problems(path)
        self.items: list[Item] = [(self.name, at) for at in range(len(self.problems))]
        self.samples, self.ks = samples, tuple(ks)
        if any(not 1 <= k <= samples for k in self.ks):
            raise UserError(f"pass@k for k {list(self.ks)} needs at least as many samples, got {samples}")
        self._sampling = sampling
        self._sandbox = Sandbox(sandbox)

    @property
    def fingerprint(self) -> str:
        """Of the problems, the sampling and the number of completions; the sandbox's limits too."""
        limits = self._sandbox.config.model_dump(mode="json", exclude={"strength"})
        settings = [self._sampling.model_dump(mode="json"), self.samples, list(self.ks), limits]
        return digest_json(["humaneval", 1, [asdict(problem) for problem in self.problems], settings])

    def complete(self, engine: SamplingEngine, numbers: Sequence[int], *, seed: int = 0) -> list[list[str]]:
        """Completions of the problems with these numbers; each depends on its problem and on the seed only."""
        text = engine.model.text
        chosen = [self.problems[n] for n in numbers for _ in range(self.samples)]
        seeds = [seed_of("humaneval", seed, self.problems[n].task_id, k) for n in numbers for k in range(self.samples)]
        prompts = [text.encode_prompt(opening(problem)) for problem in chosen]
        samples = engine.sample(prompts, self._sampling, seeds=seeds, until=STOPS)
        return [
            [sample.text for sample in samples[at : at + self.samples]] for at in range(0, len(samples), self.samples)
        ]

    def judge(self, completions: Sequence[tuple[Problem, str]]) -> list[bool]:
        """Whether each completion passes its problem's tests."""
        programs = [program_of(problem, completion) for problem, completion in completions]
        parallel = max(1, min(4, (os.cpu_count() or 1) // 2))
        return [verdict.passed for verdict in self._sandbox.run_all(programs, parallel=parallel)]

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Complete and run the problems of the items."""
        numbers = [number for _, number in items]
        completions = self.complete(engine, numbers, seed=seed)
        pairs = [(self.problems[n], text) for n, texts in zip(numbers, completions, strict=True) for text in texts]
        passed = self.judge(pairs)
        counts = [sum(passed[at : at + self.samples]) for at in range(0, len(passed), self.samples)]
        return {f"pass@{k}": [pass_at_k(self.samples, count, k) for count in counts] for k in self.ks}

    def is_mean(self, metric: str) -> bool:
        """pass@k is."""
        return True

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Never needed."""
        raise ValueError(f"{metric} is a mean")
