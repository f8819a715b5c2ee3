"""CounterFact (Meng et al. 2022, arXiv:2202.05262): full records and the flat layout of EasyEdit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from errata.evaluation.datasets.knowedit import has_groups
from errata.evaluation.datasets.record import Draft, Loader, Raw, optional_text, raw_id, text_of, texts


def convert(raw: Raw, target: str) -> Iterator[Draft]:
    """`requested_rewrite` with its paraphrases; neighborhood prompts share the *old* object.

    Added fields are used where they are: `portability` (one hop, Yao et al. 2023) and
    `alternative_subject`, whose question is the edit's own template about the alias. `attribute_prompts`
    and `generation_prompts` are not part of a request; `openings` reads the latter.
    """
    yield _draft(raw, "neighborhood_prompts")


def convert_distracting(raw: Raw, target: str) -> Iterator[Draft]:
    """The same with the edited statement in front of each neighborhood prompt (Hoelscher-Obermaier et al.
    2023)."""
    yield _draft(raw, "distracting_neighborhood_prompts")


def _draft(raw: Raw, neighborhood: str) -> Draft:
    old, new = _object_of(raw, "target_true"), _object_of(raw, "target_new")
    prompt = text_of(raw, "requested_rewrite", "prompt")
    portability = []
    if question := optional_text(raw, "portability", "New Question"):
        portability.append({"prompt": question, "answers": (text_of(raw, "portability", "New Answer"),)})
    if alias := optional_text(raw, "alternative_subject"):
        portability.append({"prompt": prompt.replace("{}", alias), "answers": (new,), "kind": "subject_alias"})
    return {
        "id": f"cf-{text_of(raw, 'case_id')}" if "case_id" in raw else raw_id("cf", raw, "target_new"),
        "subject": text_of(raw, "requested_rewrite", "subject"),
        "prompt": prompt,
        "target_new": new,
        "target_true": old,
        "relation": optional_text(raw, "requested_rewrite", "relation_id"),
        "paraphrases": tuple(texts(raw.get("paraphrase_prompts", ()))),
        "neighborhood": tuple({"prompt": text, "answer": old} for text in texts(raw.get(neighborhood, ()))),
        "portability": tuple(portability),
    }


def _object_of(raw: Raw, field: str) -> str:
    """A target: ``{"str": ...}`` as published, or the plain string that many make of it."""
    rewrite = raw.get("requested_rewrite")
    plain = isinstance(rewrite, Mapping) and isinstance(rewrite.get(field), str)
    return text_of(raw, "requested_rewrite", field) if plain else text_of(raw, "requested_rewrite", field, "str")


def convert_flat(raw: Raw, target: str) -> Iterator[Draft]:
    """EasyEdit's flat layout: the subject is spelled out in the prompt, one probe of each kind.

    `rephrase_prompt` is as a rule one of CounterFact's *generation* prompts, not a paraphrase:
    generalization measured with it does not compare with the paraphrase score of the full records.
    """
    probe = optional_text(raw, "locality_prompt")
    yield {
        "id": f"cfe-{text_of(raw, 'case_id')}" if "case_id" in raw else raw_id("cfe", raw, target),
        "subject": text_of(raw, "subject"),
        "prompt": text_of(raw, "prompt"),
        "target_new": text_of(raw, "target_new"),
        "target_true": optional_text(raw, "ground_truth"),
        "paraphrases": tuple(texts(raw.get("rephrase_prompt", ()))),
        "neighborhood": ({"prompt": probe, "answer": text_of(raw, "locality_ground_truth")},) if probe else (),
    }


def openings(records: Iterable[Raw]) -> dict[str, list[str]]:
    """Per edit the openings that ROME lets a model continue (`generation_prompts`; they repeat, as there)."""
    return {
        f"cf-{raw['case_id']}": [str(text) for text in raw["generation_prompts"]]
        for raw in records
        if isinstance(raw, Mapping) and "case_id" in raw and raw.get("generation_prompts")
    }


def references(records: Iterable[Raw], snippets: Iterable[Raw]) -> dict[str, list[str]]:
    """Per edit texts about other subjects that have the new object, from ROME's ``attribute_snippets.json``: objects
    with ``relation_id``, ``target_id`` and ``samples``, each with a ``text``."""
    known = {
        (str(item["relation_id"]), str(item["target_id"])): [str(sample["text"]) for sample in item["samples"]]
        for item in snippets
    }
    by_edit = {}
    for raw in records:
        rewrite = raw.get("requested_rewrite") if isinstance(raw, Mapping) else None
        if isinstance(rewrite, Mapping) and isinstance(new := rewrite.get("target_new"), Mapping):
            texts_of_it = known.get((str(rewrite.get("relation_id")), str(new.get("id"))))
            if texts_of_it:
                by_edit[f"cf-{raw['case_id']}"] = texts_of_it
    return by_edit


def _is_full(raw: Raw) -> bool:
    rewrite = raw.get("requested_rewrite")
    return isinstance(rewrite, Mapping) and "subject" in rewrite


_FLAT = {"subject", "prompt", "target_new"}
_FLAT_MARKS = {"locality_prompt", "rephrase_prompt", "ground_truth", "case_id"}
"""Any of these beside the three tells EasyEdit's flat layout from a request of our own."""

COUNTERFACT = Loader("counterfact", detect=_is_full, convert=convert)
COUNTERFACT_DISTRACTING = Loader("counterfact_distracting", detect=lambda raw: False, convert=convert_distracting)
"""Never chosen by itself: its records look like CounterFact's."""
COUNTERFACT_EASYEDIT = Loader(
    "counterfact_easyedit",
    detect=lambda raw: raw.keys() >= _FLAT and bool(_FLAT_MARKS & raw.keys()) and not has_groups(raw),
    convert=convert_flat,
)
