"""ZsRE in the schema of MEND and ROME (Levy et al. 2017; Mitchell et al. 2022; Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from errata.evaluation.datasets.record import Draft, Loader, Raw, RecordError, optional_text, raw_id, text_of, texts


def convert(raw: Raw, target: str) -> Iterator[Draft]:
    """One question about a subject.

    ``target``: ``answers0`` (ROME, MEMIT, AlphaEdit: the true answer is written) or ``alt`` (EasyEdit:
    another,
    as a rule false answer). The two give different numbers. One-hop and inverse questions were written for
    `alt`, so they are probes only there. The unrelated question keeps its prefix "nq question:" and gets the
    question mark that ROME adds.
    """
    answers = texts(raw.get("answers", ()))
    alt = optional_text(raw, "alt")
    if target == "alt":
        if alt is None:
            raise RecordError("field 'alt' is empty and the target setting is 'alt'")
        new, old = alt, answers[0] if answers else None
    else:
        if not answers:
            raise RecordError("field 'answers' holds no answer and the target setting is 'answers0'")
        new, old = answers[0], None
    subject = text_of(raw, "subject")
    portability = []
    if target == "alt" and (question := optional_text(raw, "portability", "New Question")):
        portability.append({"prompt": question, "answers": (text_of(raw, "portability", "New Answer"),)})
    if target == "alt" and (question := optional_text(raw, "inverse question")):
        portability.append({"prompt": question, "answers": (subject,), "kind": "inverse"})
    if question := optional_text(raw, "alter_subject_question"):
        portability.append({"prompt": question, "answers": (new,), "kind": "subject_alias"})
    loc = optional_text(raw, "loc")
    yield {
        "id": raw_id("zsre", raw, target),
        "subject": subject,
        "prompt": text_of(raw, "src"),
        "target_new": new,
        "target_true": old,
        "paraphrases": tuple(texts(raw.get("rephrase", ()))),
        "neighborhood": ({"prompt": f"{loc}?", "answer": text_of(raw, "loc_ans")},) if loc else (),
        "portability": tuple(portability),
    }


ZSRE = Loader(
    "zsre",
    detect=lambda raw: {"src", "subject", "answers"} <= raw.keys(),
    convert=convert,
    targets=("answers0", "alt"),
)
