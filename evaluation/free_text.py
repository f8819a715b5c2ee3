"""Free continuations of prompts about edited subjects, and what is measured on them: fluency, fluency*, consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errata.editing.request import EditRequest
from errata.evaluation.metrics import TfIdf, consistency, fluency, fluency_star
from errata.evaluation.sampling import Sample, SamplingConfig, SamplingEngine, seed_of

SAMPLING = SamplingConfig(temperature=1.0, top_k=5, max_new_tokens=100)
"""ROME's: the five likeliest tokens, about 100 tokens a text."""


@dataclass(frozen=True)
class FreeText:
    """Continuations of one edit's prompts, and log-probabilities of all their tokens by the model that wrote them."""

    texts: tuple[str, ...]
    """Prompt and continuation."""
    logprobs: tuple[float, ...]


def free_texts(
    engine: SamplingEngine,
    prompts: Mapping[str, Sequence[str]],
    *,
    sampling: SamplingConfig = SAMPLING,
    seed: int = 0,
) -> dict[str, FreeText]:
    """Continue the prompts of every edit on the weights the model has now.

    Args:
        prompts: per request id the openings, such as CounterFact's ``generation_prompts``.
        seed: with it, the id and the prompt's number decide a continuation's random numbers, so that the unedited
            and the edited model draw the same.
    """
    places = [(name, number) for name, own in prompts.items() for number in range(len(own))]
    encoded = [engine.model.text.encode_prompt(prompts[name][number]) for name, number in places]
    seeds = [seed_of("free text", seed, name, number) for name, number in places]
    samples = dict(zip(places, engine.sample(encoded, sampling, seeds=seeds), strict=True))
    return {
        name: _together([(opening, samples[name, number]) for number, opening in enumerate(own)])
        for name, own in prompts.items()
    }


def _together(parts: Sequence[tuple[str, Sample]]) -> FreeText:
    texts = tuple(opening + sample.text for opening, sample in parts)
    return FreeText(texts, tuple(value for _, sample in parts for value in sample.logprobs))


def prompts_of(requests: Sequence[EditRequest]) -> dict[str, list[str]]:
    """Openings where a data set gives none: each edit's own prompt."""
    return {request.id: [request.text] for request in requests}


@dataclass(frozen=True)
class FreeTextScores:
    """Means over the edits; None where it could not be measured."""

    fluency: float | None
    """Entropy of n-grams, bits."""
    fluency_star: float | None
    consistency: float | None
    """Only over edits with reference texts."""
    edits: int


def free_text_scores(
    edited: Mapping[str, FreeText],
    unedited: Mapping[str, FreeText],
    *,
    references: Mapping[str, Sequence[str]] | None = None,
    tfidf: TfIdf | None = None,
) -> FreeTextScores:
    """Score an edited model's texts against the unedited model's on the same openings.

    Args:
        references: per request id texts about other subjects that have the new object.
        tfidf: term weights; by default from all the references.
    """
    known = {name: list(texts) for name, texts in (references or {}).items() if texts}
    weights = tfidf or (TfIdf([text for texts in known.values() for text in texts]) if known else None)
    fluencies = [sum(map(fluency, text.texts)) / len(text.texts) for text in edited.values() if text.texts]
    matches = [
        value
        for name, text in edited.items()
        if weights is not None and (value := consistency(text.texts, known.get(name, ()), weights)) is not None
    ]
    own = [value for text in edited.values() for value in text.logprobs]
    before = [value for text in unedited.values() for value in text.logprobs]
    return FreeTextScores(
        fluency=sum(fluencies) / len(fluencies) if fluencies else None,
        fluency_star=fluency_star(own, before) if own and before and any(before) else None,
        consistency=sum(matches) / len(matches) if matches else None,
        edits=len(edited),
    )
