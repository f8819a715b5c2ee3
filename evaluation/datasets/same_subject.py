"""Many edits of one subject: S2RKE (Duan et al. 2025, arXiv:2502.06868) and LoCoMo-Edit (rose, appendix
D.1)."""

from __future__ import annotations

from collections.abc import Iterator

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

LOCOMO_KINDS = {1: "multi_hop", 2: "temporal", 4: "single_hop"}
"""The question categories that LoCoMo-Edit keeps; 3 needs outside knowledge, 5 is adversarial."""


def convert_s2rke(raw: Raw, target: str) -> Iterator[Draft]:
    """All edits of a record's `Star_Topology`; targets are plain strings, the subject is the record's."""
    subject = text_of(raw, "subject", "name")
    for part, item in enumerate(items_of(raw, "Star_Topology")):
        old = text_of(item, "requested_rewrite", "target_true")
        yield {
            "id": raw_id("s2rke", raw, target, part),
            "subject": subject,
            "prompt": text_of(item, "requested_rewrite", "prompt"),
            "target_new": text_of(item, "requested_rewrite", "target_new"),
            "target_true": old,
            "relation": optional_text(item, "requested_rewrite", "relation"),
            "paraphrases": tuple(texts(item.get("paraphrase_prompts", ()))),
            "neighborhood": tuple(
                {"prompt": text, "answer": old} for text in texts(item.get("neighborhood_prompts", ()))
            ),
        }


def convert_locomo(raw: Raw, target: str) -> Iterator[Draft]:
    """The questions of one conversation (single hop, multi hop, temporal) about one of its two speakers.

    The paper writes a declarative sentence extracted by a language model and then asks the question. Where
    a question carries that sentence as ``"fact": {"prompt", "target"}``, it is the edit and the question a
    portability probe of its kind; otherwise the question itself is the prompt and its answer the target.
    """
    speakers = [text_of(raw, "conversation", "speaker_a"), text_of(raw, "conversation", "speaker_b")]
    source = optional_text(raw, "sample_id") or "locomo"
    # a category that is no number cannot be looked up
    numbered = [item for item in items_of(raw, "qa") if isinstance(item.get("category"), int | float)]
    kept = [item for item in numbered if item["category"] in LOCOMO_KINDS]
    if not kept:
        raise RecordError(f"no question of the categories {sorted(LOCOMO_KINDS)}")
    for part, item in enumerate(kept):
        question, answer = optional_text(item, "question") or "", optional_text(item, "answer") or ""
        kind = LOCOMO_KINDS[item["category"]]
        draft: Draft = {
            "id": raw_id("locomo", item, target, part),
            "prompt": question,
            "target_new": answer,
            "provenance": {"source": f"{source} {kind} {','.join(texts(item.get('evidence', ())))}"},
        }
        if "fact" in item:
            draft |= {
                "prompt": text_of(item, "fact", "prompt"),
                "target_new": text_of(item, "fact", "target"),
            }
            draft["portability"] = ({"prompt": question, "answers": (answer,), "kind": kind},)
        named = [name for name in speakers if name in draft["prompt"]]
        # without a speaker's name the request is refused by its own check, which says what is missing
        draft["subject"] = min(named, key=draft["prompt"].find) if named else speakers[0]
        yield draft


S2RKE = Loader("s2rke", detect=lambda raw: "Star_Topology" in raw, convert=convert_s2rke)
LOCOMO = Loader(
    "locomo",
    detect=lambda raw: {"conversation", "qa"} <= raw.keys(),
    convert=convert_locomo,
    targets=("answer",),
)
