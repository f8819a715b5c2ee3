"""KnowEdit (Zhang et al. 2024, arXiv:2401.01286): ZsRE, WikiData counterfact, WikiData recent, WikiBio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from errata.evaluation.datasets.record import (
    Draft,
    Loader,
    Raw,
    RecordError,
    items_of,
    optional_text,
    raw_id,
    text_of,
    texts,
)


def _probes(groups: Any) -> Iterator[tuple[str, str, list[str]]]:
    """(kind, prompt, answers) of `locality` or `portability`; one without answers is left out."""
    if not isinstance(groups, Mapping):
        return
    for kind in groups:
        for item in _items(groups, kind):
            prompt, answers = optional_text(item, "prompt"), texts(item.get("ground_truth"))
            if prompt and answers:
                yield kind.lower(), prompt, answers


def _items(groups: Raw, kind: str) -> list[Raw]:
    """Probes as a list of objects, or as EasyEdit's API takes them: an object of columns, or of one probe."""
    group = groups.get(kind)
    if not isinstance(group, Mapping):
        return items_of(groups, kind, required=False)
    prompts, truths = group.get("prompt"), group.get("ground_truth")
    if isinstance(prompts, str):
        return [group]
    if not isinstance(prompts, list) or not isinstance(truths, list) or len(prompts) != len(truths):
        raise RecordError(f"field {kind!r} must hold as many ground_truth as prompt")
    return [{"prompt": prompt, "ground_truth": truth} for prompt, truth in zip(prompts, truths, strict=True)]


def _neighborhood(raw: Raw) -> tuple[dict[str, str], ...]:
    # a neighborhood probe has one answer: the first alias of the first answer, the name Wikidata gives
    return tuple({"prompt": prompt, "answer": answers[0]} for _, prompt, answers in _probes(raw.get("locality")))


def _convert(schema: str) -> Callable[[Raw, str], Iterator[Draft]]:
    def convert(raw: Raw, target: str) -> Iterator[Draft]:
        """`target_new` is written; `ground_truth` (text, list, or absent) is the old answer.

        Every alias of a portability answer counts as right. Kinds: `reasoning`, `logical_generalization`,
        `subject_aliasing`. Locality of both kinds (`Relation_Specificity`, `Forgetfulness`) is
        neighborhood.
        """
        old = texts(raw.get("ground_truth", ()))
        yield {
            "id": raw_id(schema, raw, target),
            "subject": text_of(raw, "subject"),
            "prompt": text_of(raw, "prompt"),
            "target_new": text_of(raw, "target_new"),
            "target_true": old[0] if old else None,
            "paraphrases": tuple(texts(raw.get("rephrase_prompt", ()))),
            "neighborhood": _neighborhood(raw),
            "portability": tuple(
                {"prompt": prompt, "answers": tuple(answers), "kind": kind}
                for kind, prompt, answers in _probes(raw.get("portability"))
            ),
        }

    return convert


def convert_wikibio(raw: Raw, target: str) -> Iterator[Draft]:
    """The passage so far is the prompt, the correct next sentence the target, the person the subject."""
    yield {
        "id": raw_id("wikibio", raw, target),
        "subject": text_of(raw, "concept"),
        "prompt": text_of(raw, "text"),
        "target_new": text_of(raw, "labels"),
        "statement": text_of(raw, "labels"),
        "neighborhood": _neighborhood(raw),
    }


def has_groups(raw: Raw) -> bool:
    """Whether probes stand in groups by kind, as here and in the keywords of EasyEdit's API; one may be absent."""
    return any(isinstance(raw.get(name), Mapping) for name in ("locality", "portability"))


def _is_wiki(raw: Raw) -> bool:
    return {"subject", "prompt", "target_new"} <= raw.keys() and has_groups(raw) and "rephrase_prompt" not in raw


KNOWEDIT_ZSRE = Loader(
    "knowedit_zsre",
    detect=lambda raw: {"prompt", "rephrase_prompt"} <= raw.keys() and has_groups(raw),
    convert=_convert("knowedit-zsre"),
)
KNOWEDIT_WIKI_COUNTERFACT = Loader(
    "knowedit_wiki_counterfact",
    detect=lambda raw: _is_wiki(raw) and "ground_truth" in raw,
    convert=_convert("wiki-counterfact"),
)
KNOWEDIT_WIKI_RECENT = Loader(
    "knowedit_wiki_recent",
    detect=lambda raw: _is_wiki(raw) and "ground_truth" not in raw,
    convert=_convert("wiki-recent"),
)
KNOWEDIT_WIKIBIO = Loader(
    "knowedit_wikibio",
    detect=lambda raw: {"concept", "text", "labels"} <= raw.keys(),
    convert=convert_wikibio,
)
