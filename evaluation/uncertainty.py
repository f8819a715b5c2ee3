"""SPUQ: how much the answers to one question vary, by chance and by wording, before and after an edit.

Gao et al. 2024 (arXiv:2403.02509) as specialized to edited models in "uncertainty" (section 4, appendix C): six
paraphrases of a question from near-identical to freely restructured, five sampled answers to each, embedded.
Letters: M paraphrases, K answers each, D width of an embedding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.errors import ErrataError
from errata.editing.request import EditRequest
from errata.editing.scripts import find_word
from errata.evaluation.endpoint import ChatEndpoint, Messages
from errata.evaluation.metrics.card import metric
from errata.evaluation.sampling import SamplingConfig, SamplingEngine, seed_of

logger = logging.getLogger(__name__)

LEVELS = 6
_SOURCE = "uncertainty, section 4 and C.1 (SPUQ, Gao et al. 2024)"


class Embedding(Protocol):
    """What turns answers into vectors; the memory's embedder fits."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D), one row a text."""


class SpuqConfig(Closed):
    """How a question is put."""

    paraphrases: int = Field(LEVELS, ge=2)
    """M: at most this many wordings of a question."""
    samples: int = Field(5, ge=2)
    """K: answers to each."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=100)
    """Nucleus sampling; the source gives neither its temperature nor its top_p, and 100 new tokens."""
    chat: bool = False
    """Put questions through the model's chat template, with `system` if it is not empty."""
    system: str = ""
    seed: int = 0


# --- the measure ---


@dataclass(frozen=True)
class Uncertainty:
    """Spread of the answers to one question, in the embedding's distance."""

    aleatoric: float
    epistemic: float

    @property
    def total(self) -> float:
        """Mean of the two."""
        return (self.aleatoric + self.epistemic) / 2


def _checked(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 3 or vectors.shape[0] < 2 or vectors.shape[1] < 1:
        raise ValueError(f"embeddings must be (M >= 2, K >= 1, D), got shape {vectors.shape}")
    return vectors


@metric("aleatoric_uncertainty", version=1, source=_SOURCE, higher_is_better=False)
def aleatoric(embeddings: NDArray[np.floating]) -> float:
    """Mean Euclidean distance of an answer from the centroid of the answers to the same wording.

    Args:
        embeddings: (M, K, D).
    """
    vectors = _checked(embeddings)
    return float(np.linalg.norm(vectors - vectors.mean(axis=1, keepdims=True), axis=2).mean())


@metric("epistemic_uncertainty", version=1, source=_SOURCE, higher_is_better=False)
def epistemic(embeddings: NDArray[np.floating]) -> float:
    """Mean Euclidean distance between the centroids of two wordings' answers, over all pairs of wordings.

    Args:
        embeddings: (M, K, D).
    """
    centroids = _checked(embeddings).mean(axis=1)
    first, second = np.triu_indices(len(centroids), k=1)
    return float(np.linalg.norm(centroids[first] - centroids[second], axis=1).mean())


def uncertainty_of(embeddings: NDArray[np.floating]) -> Uncertainty:
    """Both parts for one question; embeddings (M, K, D)."""
    return Uncertainty(aleatoric(embeddings), epistemic(embeddings))


@metric("uncertainty_growth", version=1, source=_SOURCE, higher_is_better=False)
def growth(before: float, after: float) -> float | None:
    """``(U_post - U_pre) / U_pre``; None where there was no uncertainty before, as the ratio is undefined."""
    return None if before == 0 else (after - before) / before


# --- wordings ---

_QUESTION = "the question that this sentence answers when it is completed"
_LEVEL_TEXTS = (
    "change a word or two for synonyms, keep the structure",
    "reorder the phrases, keep the exact meaning",
    "use simpler words and a simpler structure",
    "use a formal, academic tone",
    "turn it into an indirect statement with subordinate clauses",
    "restructure it freely, with a metaphor or an abstraction, and keep what is asked",
)
_TEMPLATES = (
    "{}",
    "As is known, {}",
    "Please complete: {}",
    "According to the records, {}",
    "It would be of interest to state the following: {}",
    "Were one to finish this thought, it would read: {}",
)
"""Frames around a prompt that is to be continued, from bare to roundabout. They vary less than real paraphrases."""


def wordings_of(request: EditRequest, *, levels: int = LEVELS, frames: Sequence[str] = _TEMPLATES) -> list[str]:
    """Wordings of an edit's question: the data set's own paraphrases first, frames around the prompt for the rest.

    Raises:
        ValueError: there are fewer than ``levels`` distinct wordings.
    """
    wordings = list(dict.fromkeys([*request.paraphrases, *(frame.format(request.text) for frame in frames)]))
    if len(wordings) < levels:
        raise ValueError(f"{request.id}: {len(wordings)} wordings, {levels} are wanted; give more frames")
    return wordings[:levels]


def rephrasing_messages(request: EditRequest) -> Messages:
    """What a chat model is asked for: one wording of each level, as JSON."""
    levels = "\n".join(f"{number}. {text}" for number, text in enumerate(_LEVEL_TEXTS, 1))
    return [
        {
            "role": "system",
            "content": "You rephrase questions. Every version asks for exactly the same fact, names the subject as it "
            "is given, and does not contain the answer. Reply with a JSON list of strings and nothing else.",
        },
        {
            "role": "user",
            "content": f"Sentence: {request.text} ...\nSubject: {request.subject}\n\nWrite {_QUESTION}, in "
            f"{len(_LEVEL_TEXTS)} versions:\n{levels}",
        },
    ]


def rephrased(endpoint: ChatEndpoint, requests: Sequence[EditRequest]) -> dict[str, list[str]]:
    """Six wordings of each question from a chat model, by request id.

    A version that leaves the subject out or gives the answer away is dropped; a question with fewer than two left
    is reported in a warning and not among the results.

    Raises:
        EndpointError: the endpoint failed.
        ErrataError: no reply could be used at all.
    """
    replies = endpoint.ask_many([rephrasing_messages(request) for request in requests])
    wordings = {}
    for request, reply in zip(requests, replies, strict=True):
        versions = [text for text in _strings(reply) if _keeps_to(request, text)]
        if len(versions) >= 2:
            wordings[request.id] = versions[:LEVELS]
        else:
            logger.warning("%s: %d usable wordings in the reply; left out", request.id, len(versions))
    if requests and not wordings:
        raise ErrataError("the chat model gave no usable wording of any question")
    return wordings


def _strings(reply: str) -> list[str]:
    start, end = reply.find("["), reply.rfind("]")
    try:
        value = json.loads(reply[start : end + 1]) if 0 <= start < end else []
    except ValueError:
        return []
    return list(dict.fromkeys(item.strip() for item in value if isinstance(item, str) and item.strip()))


def _keeps_to(request: EditRequest, text: str) -> bool:
    folded = text.casefold()
    named, told = (find_word(folded, word.casefold()) >= 0 for word in (request.subject, request.target_new))
    return named and not told


# --- measuring ---


def sampled_answers(
    engine: SamplingEngine, questions: Mapping[str, Sequence[str]], config: SpuqConfig
) -> dict[str, list[list[str]]]:
    """K answers to every wording of every question, on the weights the model has now.

    The seeds depend on the question, the wording and the number of the sample, not on the weights: before and after
    an edit the same random numbers are drawn.

    Returns:
        question id -> M lists of K answers.
    """
    text = engine.model.text
    prompts, seeds, places = [], [], []
    for name, wordings in questions.items():
        for level, wording in enumerate(wordings[: config.paraphrases]):
            prompt = text.encode_chat(_chat(wording, config.system)) if config.chat else text.encode_prompt(wording)
            for number in range(config.samples):
                prompts.append(prompt)
                seeds.append(seed_of("spuq", config.seed, name, level, number))
                places.append((name, level))
    samples = engine.sample(prompts, config.sampling, seeds=seeds)
    answers: dict[str, list[list[str]]] = {
        name: [[] for _ in wordings[: config.paraphrases]] for name, wordings in questions.items()
    }
    for (name, level), sample in zip(places, samples, strict=True):
        answers[name][level].append(sample.text.strip())
    return answers


def _chat(question: str, system: str) -> Messages:
    spoken = [{"role": "user", "content": question}]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


def uncertainties(answers: Mapping[str, Sequence[Sequence[str]]], embedding: Embedding) -> dict[str, Uncertainty]:
    """Uncertainty of each question from its answers, embedded together, each distinct answer once."""
    distinct = list(dict.fromkeys(text for levels in answers.values() for level in levels for text in level))
    vectors = np.asarray(embedding.embed(distinct), dtype=np.float64)
    place = {text: at for at, text in enumerate(distinct)}
    return {
        name: uncertainty_of(np.stack([vectors[[place[text] for text in level]] for level in levels]))
        for name, levels in answers.items()
    }


@dataclass(frozen=True)
class UncertaintyGrowth:
    """What an edit did to the steadiness of many answers: means over the questions."""

    questions: int
    before: Uncertainty
    after: Uncertainty
    growth: float | None
    """Mean of the questions' own growth; questions without uncertainty before are left out."""
    growth_aleatoric: float | None
    growth_epistemic: float | None
    growth_of_means: float | None
    """Growth of the mean total: not thrown about by questions with hardly any uncertainty before."""


def uncertainty_growth(before: Mapping[str, Uncertainty], after: Mapping[str, Uncertainty]) -> UncertaintyGrowth:
    """Compare the same questions before and after.

    Raises:
        ValueError: no question, or not the same ones.
    """
    if not before or set(before) != set(after):
        raise ValueError(f"the same questions must be measured before and after: {len(before)} and {len(after)}")

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def grown(part: str) -> float | None:
        growths = [growth(getattr(before[name], part), getattr(after[name], part)) for name in before]
        values = [value for value in growths if value is not None]
        return mean(values) if values else None

    def means(of: Mapping[str, Uncertainty]) -> Uncertainty:
        return Uncertainty(mean([u.aleatoric for u in of.values()]), mean([u.epistemic for u in of.values()]))

    first, second = means(before), means(after)
    return UncertaintyGrowth(
        questions=len(before),
        before=first,
        after=second,
        growth=grown("total"),
        growth_aleatoric=grown("aleatoric"),
        growth_epistemic=grown("epistemic"),
        growth_of_means=growth(first.total, second.total),
    )
