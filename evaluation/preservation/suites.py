"""From names to suites: what can be asked of a version, whoever loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.evaluation.edit_scores import EditScores, edit_scores
from errata.evaluation.endpoint import EndpointConfig
from errata.evaluation.free_text import SAMPLING, free_texts, prompts_of
from errata.evaluation.metrics import answer_contains, fluency
from errata.evaluation.preservation.battery import Item, Outcomes, Suite
from errata.evaluation.preservation.domains import PerplexitySuite, read_domains
from errata.evaluation.preservation.humaneval import FILE, HumanEvalSuite
from errata.evaluation.preservation.rubric import RubricSuite
from errata.evaluation.preservation.sandbox import SandboxConfig
from errata.evaluation.probes import probes_of
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from errata.evaluation.uncertainty import Embedding, SpuqConfig, sampled_answers, uncertainties, wordings_of

OWN = ("humaneval", "perplexity", "edits", "fluency", "uncertainty", "rubric")
"""Names that are not the harness's."""
ABOUT_EDITS = ("edits", "fluency", "uncertainty", "rubric")
"""Those whose items are the edits."""
EDIT_SCORES = tuple(name for name in EditScores.__dataclass_fields__ if name != "request_id")


class BatteryConfig(Closed):
    """Which benchmarks, and how they are put."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of lm-evaluation-harness, and `OWN`."""
    data: Path | None = None
    """Directory of benchmark files; what it lacks comes from the hub."""
    task_files: Path | None = None
    """Directory of further task files for the harness."""
    fewshot: dict[str, int] = {}
    """Worked examples by task, where not as many as the task says."""
    chat: bool = False
    """Put questions through the model's chat template."""
    texts: dict[str, Path] = {}
    """Domain -> text file, for ``perplexity``."""
    samples: int = Field(1, ge=1)
    """Completions of each HumanEval problem."""
    sandbox: SandboxConfig = SandboxConfig()
    free_text: SamplingConfig = SAMPLING
    """How the continuations are drawn on which fluency is measured."""
    spuq: SpuqConfig = SpuqConfig()
    wordings: dict[str, tuple[str, ...]] = {}
    """Request id -> wordings of its question, for ``uncertainty``; where there are none, `wordings_of`."""
    rubric: EndpointConfig | None = None
    """The chat model that scores continuations, for ``rubric``."""
    seed: int = Field(0, ge=0)
    """Of whatever is sampled."""


class EditSuite:
    """Whether the edits hold: `edit_scores` of each, teacher-forced, and portability of generated answers."""

    name = "edits"

    def __init__(self, requests: Sequence[EditRequest]) -> None:
        self._requests = list(requests)
        self.items: list[Item] = [(self.name, at) for at in range(len(self._requests))]

    @property
    def fingerprint(self) -> str:
        """Of the edits with all their probes."""
        return digest_json(["edits", 1, [request.model_dump(mode="json") for request in self._requests]])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Every score of `EditScores`; None where an edit has no such probe."""
        chosen = [self._requests[number] for _, number in items]
        scores = edit_scores(engine, engine.model.text, chosen)
        outcomes: Outcomes = {metric: [getattr(score, metric) for score in scores] for metric in EDIT_SCORES}
        outcomes["portability"] = _portability(engine, chosen)
        return outcomes

    def is_mean(self, metric: str) -> bool:
        """Not of all items: those without such a probe are left out."""
        return False

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Mean over the edits that have such a probe; NaN where none has."""
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else nan


def _portability(engine: SamplingEngine, requests: Sequence[EditRequest]) -> list[float | None]:
    """Share of each edit's portability questions whose greedy answer contains a right one; None without questions."""
    probes = [[probe for probe in probes_of(request) if probe.kind == "portability"] for request in requests]
    flat = [probe for own in probes for probe in own]
    answers = engine.generate([engine.model.text.encode_prompt(probe.prompt) for probe in flat])
    right = iter([answer_contains(a.text, p.expected) for a, p in zip(answers, flat, strict=True)])
    return [sum(next(right) for _ in own) / len(own) if own else None for own in probes]


class FluencySuite:
    """Free continuations of the edits' own prompts: n-gram entropy, and the log-probability of what was written."""

    name = "fluency"

    def __init__(self, requests: Sequence[EditRequest], sampling: SamplingConfig = SAMPLING) -> None:
        self._requests, self._sampling = list(requests), sampling
        self.items: list[Item] = [(self.name, at) for at in range(len(self._requests))]

    @property
    def fingerprint(self) -> str:
        """Of the prompts and the sampling."""
        settings = self._sampling.model_dump(mode="json")
        return digest_json(["fluency", 2, [[r.id, r.text] for r in self._requests], settings])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """``fluency`` by item, and ``mean_logprob`` as (sum, tokens)."""
        chosen = [self._requests[number] for _, number in items]
        texts = free_texts(engine, prompts_of(chosen), sampling=self._sampling, seed=seed)
        own = [texts[request.id] for request in chosen]
        return {
            "fluency": [fluency(text.texts[0]) for text in own],
            "mean_logprob": [(sum(text.logprobs), len(text.logprobs)) for text in own],
        }

    def is_mean(self, metric: str) -> bool:
        """Fluency is; of log-probabilities every token weighs alike."""
        return metric == "fluency"

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Mean over all tokens; of two versions the ratio is fluency* (moir C.3)."""
        tokens = sum(count for _, count in values)
        return sum(total for total, _ in values) / tokens if tokens else 0.0


class SpuqSuite:
    """Uncertainty of the answers to the edits' questions; its growth is the comparison of two versions."""

    name = "uncertainty"

    def __init__(
        self,
        requests: Sequence[EditRequest],
        embedding: Embedding | None,
        config: SpuqConfig,
        *,
        embedder: Mapping[str, Any],
        wordings: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """``embedder`` names the embedding; without an ``embedding`` the suite counts and scores but cannot run.

        ``wordings`` are those of some questions by request id; the others' are `wordings_of`.
        """
        self._requests, self._embedding, self._config = list(requests), embedding, config
        self._embedder = dict(embedder)
        self._given = dict(wordings or {})
        self.items: list[Item] = [(self.name, at) for at in range(len(self._requests))]

    @property
    def fingerprint(self) -> str:
        """Of the wordings, the sampling and the embedder."""
        wordings = [[request.id, *self._wordings(request)] for request in self._requests]
        settings = [self._config.model_dump(mode="json", exclude={"seed"}), self._embedder]
        return digest_json(["uncertainty", 1, wordings, settings])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """``aleatoric``, ``epistemic`` and ``total`` of each question."""
        config = self._config.model_copy(update={"seed": seed})
        chosen = [self._requests[number] for _, number in items]
        questions = {request.id: self._wordings(request) for request in chosen}
        if self._embedding is None:
            raise ValueError("this suite was made without an embedding")
        uncertainty_of = uncertainties(sampled_answers(engine, questions, config), self._embedding)
        own = [uncertainty_of[request.id] for request in chosen]
        return {
            "aleatoric": [u.aleatoric for u in own],
            "epistemic": [u.epistemic for u in own],
            "total": [u.total for u in own],
        }

    @property
    def told(self) -> dict[str, Any]:
        """What belongs beside a figure of it: M as it was, K, the embedder."""
        counts = [min(len(self._wordings(request)), self._config.paraphrases) for request in self._requests]
        embedder = str(self._embedder.get("model") or self._embedder.get("type") or "unknown")
        return {
            "wordings": sum(counts) / len(counts) if counts else 0.0,
            "asked_for": self._config.paraphrases,
            "samples": self._config.samples,
            "embedder": embedder,
            "chat": self._config.chat,
        }

    def _wordings(self, request: EditRequest) -> list[str]:
        given = self._given.get(request.id)
        return list(given) if given else wordings_of(request, levels=self._config.paraphrases)

    def is_mean(self, metric: str) -> bool:
        """All of them are."""
        return True

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Never needed."""
        raise ValueError(f"{metric} is a mean")


def build_suites(
    config: BatteryConfig,
    *,
    requests: Sequence[EditRequest] = (),
    embedding: Embedding | None = None,
    embedder: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Suite], list[Any]]:
    """The suites of a configuration, by name, and what must be kept while they are used.

    Args:
        requests: what `ABOUT_EDITS` ask about.
        embedding: for ``uncertainty``; not needed by who only counts and scores.
        embedder: the embedding's settings, part of what decides an outcome.

    Raises:
        UserError: a name or a file is not there, or a suite lacks what it needs; the message says which.
    """
    suites: dict[str, Suite] = {}
    held: list[Any] = []
    harness = [name for name in config.tasks if name not in OWN]
    if harness:
        for suite in _harness_suites(config, harness, held):
            suites[suite.name] = suite
    if "humaneval" in config.tasks:
        path = None if config.data is None else _file(config.data, FILE)
        if path is None:
            raise UserError(f"task 'humaneval' needs a data directory with {FILE} (--data)")
        ks = tuple(k for k in (1, 10, 100) if k <= config.samples)
        suites["humaneval"] = HumanEvalSuite(path, sandbox=config.sandbox, samples=config.samples, ks=ks)
    if "perplexity" in config.tasks:
        if not config.texts:
            raise UserError("task 'perplexity' needs texts (--text NAME=FILE)")
        for domain, documents in read_domains(config.texts).items():
            suites[f"perplexity:{domain}"] = PerplexitySuite(domain, documents)
    about_edits = [name for name in ABOUT_EDITS if name in config.tasks]
    if about_edits and not requests:
        raise UserError(f"tasks {', '.join(about_edits)} ask about edits, and there are none")
    if "edits" in config.tasks:
        suites["edits"] = EditSuite(requests)
    if "fluency" in config.tasks:
        suites["fluency"] = FluencySuite(requests, config.free_text)
    if "uncertainty" in config.tasks:
        suites["uncertainty"] = SpuqSuite(
            requests, embedding, config.spuq, embedder=embedder or {}, wordings=config.wordings
        )
    if "rubric" in config.tasks:
        if config.rubric is None:
            raise UserError("task 'rubric' needs a chat model that scores (--judge-url URL --judge-model NAME)")
        suites["rubric"] = RubricSuite(requests, config.rubric)
    return suites, held


def _harness_suites(config: BatteryConfig, names: Sequence[str], held: list[Any]) -> Sequence[Suite]:
    try:
        from errata.evaluation.preservation.harness import load_suites
    except ImportError as error:
        raise UserError(
            f"tasks {', '.join(names)} need lm-evaluation-harness, which is not installed; install the extra 'eval' "
            f"(pip install 'errata-llm[eval]'), or choose from {', '.join(OWN)}"
        ) from error
    suites, directory = load_suites(
        names, data=config.data, fewshot=config.fewshot, chat=config.chat, task_files=config.task_files
    )
    held.append(directory)
    return suites


def _file(data: Path, relative: str) -> Path | None:
    plain = data / relative.removesuffix(".gz")
    return next((path for path in (data / relative, plain) if path.is_file()), None)
