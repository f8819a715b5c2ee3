"""Records that ask for several edits at once: MQuAKE (arXiv:2305.14795) and ConflictEdit
(arXiv:2310.02129)."""

from __future__ import annotations

from collections.abc import Iterator

from errata.evaluation.datasets.record import Draft, Loader, Raw, items_of, optional_text, raw_id, text_of, texts


def convert_mquake(raw: Raw, target: str) -> Iterator[Draft]:
    """All edits of a record; its multi-hop questions are asked with the last one, when every hop is written.

    The single-hop question of an edit is its paraphrase.
    """
    case, rewrites = text_of(raw, "case_id"), items_of(raw, "requested_rewrite")
    answers = tuple(texts([text_of(raw, "new_answer"), raw.get("new_answer_alias") or []]))
    hops = tuple(
        {"prompt": question, "answers": answers, "kind": "multi_hop"} for question in texts(raw.get("questions", ()))
    )
    for part, rewrite in enumerate(rewrites):
        yield {
            "id": f"mquake-{case}-{part}",
            "subject": text_of(rewrite, "subject"),
            "prompt": text_of(rewrite, "prompt"),
            "target_new": text_of(rewrite, "target_new", "str"),
            "target_true": optional_text(rewrite, "target_true", "str"),
            "relation": optional_text(rewrite, "relation_id"),
            "paraphrases": tuple(texts(rewrite.get("question", ()))),
            "portability": hops if part == len(rewrites) - 1 else (),
        }


def convert_conflictedit(raw: Raw, target: str) -> Iterator[Draft]:
    """The pair of edits in the order in which they are applied; each is also asked as a question.

    In `coverage` pairs both write the same (subject, relation): the second supersedes the first, and its
    old object is the first one's new object.
    """
    for part, edit in enumerate(items_of(raw, "edits")):
        subject = text_of(edit, "subject", "label")
        query = optional_text(edit, "relation", "query")
        yield {
            "id": raw_id("conflict", raw, target, part),
            "subject": subject,
            "prompt": text_of(edit, "relation", "prompt"),
            "target_new": text_of(edit, "new_object", "label"),
            "target_true": optional_text(edit, "object", "label"),
            "relation": text_of(edit, "relation", "id"),
            "paraphrases": (query.replace("{}", subject),) if query else (),
        }


MQUAKE = Loader("mquake", detect=lambda raw: isinstance(raw.get("requested_rewrite"), list), convert=convert_mquake)
CONFLICTEDIT = Loader(
    "conflictedit", detect=lambda raw: {"edits", "triples"} <= raw.keys(), convert=convert_conflictedit
)
