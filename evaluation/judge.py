"""Who decides whether a generated answer is right: string rules, or a language model."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field

from errata.editing.closed import Closed
from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig
from errata.evaluation.metrics import answer_contains, answer_exact, answer_f1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One answer to be judged."""

    question: str
    answer: str
    expected: tuple[str, ...]


class Judge(Protocol):
    """Says of each case whether the answer is right."""

    name: str

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        """One verdict a case, in order."""
        ...


class ExactJudgeConfig(Closed):
    """The answer equals an expected one, but for case, articles and punctuation."""

    type: Literal["exact"] = "exact"


class ContainsJudgeConfig(Closed):
    """The answer contains an expected one, word by word."""

    type: Literal["contains"] = "contains"


class F1JudgeConfig(Closed):
    """The word-level F1 with an expected answer reaches the threshold."""

    type: Literal["f1"] = "f1"
    threshold: float = Field(0.5, gt=0, le=1)


class LlmJudgeConfig(Closed):
    """A language model decides whether the answer means the same."""

    type: Literal["llm"] = "llm"
    endpoint: EndpointConfig


JudgeConfig = Annotated[
    ExactJudgeConfig | ContainsJudgeConfig | F1JudgeConfig | LlmJudgeConfig, Field(discriminator="type")
]


class ExactJudge:
    """`answer_exact`."""

    name = "exact"

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        """One verdict a case."""
        return [answer_exact(case.answer, case.expected) for case in cases]


class ContainsJudge:
    """`answer_contains`, the default."""

    name = "contains"

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        """One verdict a case."""
        return [answer_contains(case.answer, case.expected) for case in cases]


class F1Judge:
    """`answer_f1` against a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.name = judge_name(F1JudgeConfig(threshold=threshold))

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        """One verdict a case."""
        return [answer_f1(case.answer, case.expected) >= self.threshold for case in cases]


_INSTRUCTION = (
    "You check answers. Given a question, the reference answers and a model's answer, decide whether the "
    "model's answer means the same as one of the reference answers. Wording, case and further true remarks do not "
    "count. Wrong is an answer that names something else or hedges between several; one that repeats itself over "
    "and over or goes on without end, even if it holds the reference; one that gives only a part of a reference "
    "that lists several things; and one that says nothing. Reply with one word: correct or incorrect."
)
_VERDICT = re.compile(r"\b(correct|incorrect)\b", re.IGNORECASE)


class LlmJudge:
    """A chat model's verdict; where the reply holds none, the string judge's stands in and is counted."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint = endpoint
        self.name = judge_name(LlmJudgeConfig(endpoint=endpoint.config))
        self.unreadable = 0
        self._fallback = ContainsJudge()

    def judge(self, cases: Sequence[Case]) -> list[bool]:
        """One verdict a case; empty answers are wrong without asking.

        Raises:
            EndpointError: the endpoint failed after its retries.
        """
        asked = [case for case in cases if case.answer.strip()]
        replies = iter(self.endpoint.ask_many([self._messages(case) for case in asked]))
        return [self._read(next(replies), case) if case.answer.strip() else False for case in cases]

    @staticmethod
    def _messages(case: Case) -> list[dict[str, str]]:
        references = "\n".join(f"- {item}" for item in case.expected)
        answer = case.answer.strip()
        text = f"Question: {case.question}\nReference answers:\n{references}\nModel's answer: {answer}"
        return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": text}]

    def _read(self, reply: str, case: Case) -> bool:
        # the last verdict counts: reasoning models think aloud before they decide
        verdicts = _VERDICT.findall(reply)
        if not verdicts:
            self.unreadable += 1
            logger.warning("judge %s gave no verdict (%r); the string judge decides", self.name, reply[:80])
            return self._fallback.judge([case])[0]
        return bool(verdicts[-1].lower() == "correct")


def judge_name(config: ExactJudgeConfig | ContainsJudgeConfig | F1JudgeConfig | LlmJudgeConfig) -> str:
    """What a judge of this configuration is called in tables, without making it."""
    if isinstance(config, F1JudgeConfig):
        return f"f1>={config.threshold:g}"
    return f"llm:{config.endpoint.model}" if isinstance(config, LlmJudgeConfig) else config.type


def build_judge(config: ExactJudgeConfig | ContainsJudgeConfig | F1JudgeConfig | LlmJudgeConfig) -> Judge:
    """The judge a configuration describes."""
    if isinstance(config, ExactJudgeConfig):
        return ExactJudge()
    if isinstance(config, ContainsJudgeConfig):
        return ContainsJudge()
    if isinstance(config, F1JudgeConfig):
        return F1Judge(config.threshold)
    return LlmJudge(ChatEndpoint(config.endpoint))


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the same cases."""

    cases: int
    share: float
    kappa: float | None
    """Cohen's kappa: agreement beyond chance; None where chance alone would agree always."""


def agreement(one: Sequence[bool], other: Sequence[bool]) -> Agreement:
    """Compare two judges' verdicts. ValueError: different numbers of verdicts, or none."""
    if len(one) != len(other) or not one:
        raise ValueError(f"two judges need as many verdicts each, at least one; got {len(one)} and {len(other)}")
    share = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    p, q = sum(one) / len(one), sum(other) / len(other)
    chance = p * q + (1 - p) * (1 - q)
    return Agreement(len(one), share, None if chance == 1 else (share - chance) / (1 - chance))
