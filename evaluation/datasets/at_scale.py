"""The two large collections that lifelong editing is measured on: WikiBigEdit (Thede et al. 2025, arXiv:2503.05683) and
UltraEditBench (Gu et al. 2025, arXiv:2505.14679). Neither marks the subject within its question."""

from __future__ import annotations

from collections.abc import Iterator

from errata.editing.scripts import spans_of_words
from errata.evaluation.datasets.record import Draft, Loader, Raw, RecordError, optional_text, raw_id, text_of, texts


def subject_in(question: str, subject: str) -> str:
    """What stands for a subject in a question, as it is written there.

    The whole subject, whatever its case and punctuation; else the longest run of its words that the question holds,
    the first of equally long ones; else the question itself, whose last token is then where a method that reads keys
    at the subject takes them. Methods that need no subject see no difference.
    """
    words = [subject[start:end].casefold() for start, end in spans_of_words(subject)]
    spans = list(spans_of_words(question))
    here = [question[start:end].casefold() for start, end in spans]
    runs = [
        (end - start, -at, at)
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        for at in range(len(here) - (end - start) + 1)
        if here[at : at + end - start] == words[start:end] and _tells(words[start:end])
    ]
    if not runs:
        return question
    length, _, at = max(runs)
    return question[spans[at][0] : spans[at + length - 1][1]]


def _tells(words: list[str]) -> bool:
    """Whether words can name something: not only a letter or an article or two."""
    return any(len(word) > 3 or not word.isascii() or word.isdigit() for word in words)


def convert_wikibigedit(raw: Raw, target: str) -> Iterator[Draft]:
    """A fact of Wikidata that is new or has changed: a question, the same in other words and as a persona asks it, a
    question about a neighbor, and of a few records one that goes a step on."""
    question, answer = text_of(raw, "update"), text_of(raw, "ans")
    portability = []
    if persona := optional_text(raw, "personas"):
        portability.append({"prompt": persona, "answers": (answer,), "kind": "persona"})
    if further := optional_text(raw, "mhop"):
        portability.append({"prompt": further, "answers": (text_of(raw, "mhop_ans"),), "kind": "multi_hop"})
    yield {
        "id": raw_id("wbe", raw, target),
        "subject": subject_in(question, text_of(raw, "subject")),
        "prompt": question,
        "target_new": answer,
        # names the fact, which a record of a later month may update
        "relation": optional_text(raw, "relation_id") or optional_text(raw, "relation"),
        "paraphrases": tuple(texts(raw.get("rephrase"))),
        "neighborhood": _neighbor(raw),
        "portability": tuple(portability),
    }


def convert_ultraeditbench(raw: Raw, target: str) -> Iterator[Draft]:
    """A fact of Wikidata as a question, the same in other words, and an unrelated question."""
    question = text_of(raw, "prompt")
    yield {
        "id": f"ueb-{text_of(raw, 'case_id')}" if "case_id" in raw else raw_id("ueb", raw, target),
        "subject": subject_in(question, optional_text(raw, "subject") or question),
        "prompt": question,
        "target_new": text_of(raw, "ans"),
        "paraphrases": tuple(texts(raw.get("rephrase_prompt"))),
        "neighborhood": _neighbor(raw),
    }


def _neighbor(raw: Raw) -> tuple[dict[str, str], ...]:
    question = optional_text(raw, "loc")
    if question is None:
        return ()
    answer = optional_text(raw, "loc_ans")
    if answer is None:
        raise RecordError("field 'loc' asks something and field 'loc_ans' is missing")
    return ({"prompt": question, "answer": answer},)


WIKIBIGEDIT = Loader("wikibigedit", detect=lambda raw: {"update", "ans"} <= raw.keys(), convert=convert_wikibigedit)
ULTRAEDITBENCH = Loader(
    "ultraeditbench",
    detect=lambda raw: {"prompt", "ans"} <= raw.keys() and "target_new" not in raw,
    convert=convert_ultraeditbench,
)
