"""The facts of a run as the report shows them: each question with the arms' actual answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.editing.scripts import first_sentence
from errata.editing.texts import spelled_out
from errata.evaluation.outcomes import MEMORY_ARMS
from errata.orchestrator.report.formats import DASH, fixed, mapping, number, percent, sequence
from errata.orchestrator.report.wording import ARM_LABELS, KIND_SHORT, KINDS, shown


@dataclass(frozen=True)
class AnswerView:
    """One arm's answer; `ok` is None where the arm was not asked, `retrieved` are (statement, similarity)."""

    style: str
    arm: str
    text: str
    ok: bool | None
    verdict: str
    tokens: str
    asks_memory: bool
    chosen: str | None
    reason: str
    retrieved: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProbeView:
    """One question with what was expected and what each arm said, in the arms' order."""

    kind: str
    label: str
    prompt: str
    expected: str
    answers: tuple[AnswerView, ...]


@dataclass(frozen=True)
class TallyView:
    """How one arm did on a fact's other questions of one kind: a mark for each, and the sentence that says it."""

    kind: str
    marks: tuple[bool, ...]
    spoken: str


@dataclass(frozen=True)
class FactView:
    """One update: the question that was rewritten, the questions around it, and words to filter by."""

    name: str
    position: str
    prompt: str
    old: str
    new: str
    relation: str
    main: ProbeView | None
    others: tuple[ProbeView, ...]
    tallies: tuple[tuple[TallyView, ...], ...]
    tags: str


def kind_counts(facts: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many questions of each kind were asked."""
    return Counter(str(mapping(probe).get("kind")) for fact in facts for probe in sequence(fact.get("probes")))


def fact_view(fact: Mapping[str, Any]) -> FactView:
    """One line of facts.jsonl, ready to be shown."""
    probes = [probe_view(mapping(probe)) for probe in sequence(fact.get("probes"))]
    main = next((probe for probe in probes if probe.kind == "edit"), None)
    order = list(KINDS)
    others = sorted(
        (probe for probe in probes if probe is not main),
        key=lambda probe: order.index(probe.kind) if probe.kind in order else len(order),
    )
    subject = _text(fact.get("subject"))
    return FactView(
        name=_text(fact.get("id")),
        position=_text(fact.get("sequence")),
        prompt=spelled_out(_text(fact.get("prompt")), subject),
        old=_text(fact.get("target_true")),
        new=_text(fact.get("target_new")),
        relation=_text(fact.get("relation")),
        main=main,
        others=tuple(others),
        tallies=tuple(_tallies(others, index) for index in range(len(ARM_LABELS))),
        tags=" ".join(_tags(main, others)),
    )


def probe_view(probe: Mapping[str, Any]) -> ProbeView:
    """One question of a fact, ready to be shown."""
    kind = _text(probe.get("kind"))
    arms = mapping(probe.get("arms"))
    expected = probe.get("expected")
    listed = [_text(item) for item in expected] if isinstance(expected, list | tuple) else [_text(expected)]
    prompt = _text(probe.get("prompt"))
    return ProbeView(
        kind=kind,
        label=KINDS.get(kind, kind),
        prompt=prompt,
        expected=" / ".join(dict.fromkeys(item for item in listed if item)),
        answers=tuple(
            _answer(kind, arm.key, arm.name, mapping(arms.get(arm.key)), prompt, listed) for arm in shown(arms)
        ),
    )


def _answer(
    kind: str, key: str, name: str, answer: Mapping[str, Any], prompt: str, expected: Sequence[str]
) -> AnswerView:
    raw = answer.get("ok")
    ok = raw if isinstance(raw, bool) else None
    words = ("unchanged", "changed") if kind == "neighborhood" else ("right", "wrong")
    text = answer.get("answer")
    accuracy = number(answer.get("accuracy"))
    chosen = answer.get("chosen")
    return AnswerView(
        style=key,
        arm=name,
        text=DASH if text is None else shown_answer(_text(text), prompt, expected) or "(nothing)",
        ok=ok,
        verdict="not asked" if ok is None else words[0] if ok else words[1],
        tokens="" if accuracy is None else percent(accuracy, 0),
        asks_memory=key in MEMORY_ARMS and bool(answer),
        chosen=None if chosen is None else _statement(chosen),
        reason=_text(answer.get("reason")),
        retrieved=tuple((_statement(item), _score(item)) for item in sequence(answer.get("retrieved"))),
    )


def shown_answer(text: str, prompt: str, expected: Sequence[str]) -> str:
    """An answer as people read it: a completed sentence up to its end.

    The figures judge all of the text, so more of it is shown where what was expected comes only then.
    """
    if prompt.rstrip().endswith("?"):
        return text
    first = first_sentence(text.strip())
    missed = any(item in text and item not in first for item in expected if item)
    return text if missed else first


def _tallies(others: list[ProbeView], index: int) -> tuple[TallyView, ...]:
    rows = []
    for kind in KINDS:
        answers = [p.answers[index] for p in others if p.kind == kind and index < len(p.answers)]
        marks = tuple(answer.ok is True for answer in answers if answer.ok is not None)
        if marks:
            good = "unchanged" if kind == "neighborhood" else "right"
            rows.append(TallyView(kind, marks, f"{KIND_SHORT[kind]}: {sum(marks)} of {len(marks)} {good}"))
    return tuple(rows)


def _tags(main: ProbeView | None, others: list[ProbeView]) -> list[str]:
    """The words of `wording.OUTCOMES` that hold for a fact."""
    tags = []
    if main is not None:
        verdicts = {answer.style: answer.ok for answer in main.answers}
        updated = ("routed", "edited", "memory", "edited_memory")
        tags += [f"{arm}-wrong" for arm in updated if verdicts.get(arm) is False]
        if len({verdicts.get(arm) for arm in updated} - {None}) > 1:
            tags.append("disagree")
    neighbors = [answer for probe in others if probe.kind == "neighborhood" for answer in probe.answers]
    if any(answer.style == "edited" and answer.ok is False for answer in neighbors):
        tags.append("side-effect")
    return tags


def _statement(item: Any) -> str:
    """A retrieved statement, which may come as text or as a record that holds it."""
    if isinstance(item, Mapping):
        return _text(item.get("statement") or item.get("text") or json.dumps(dict(item), default=str, sort_keys=True))
    if isinstance(item, list | tuple) and item:
        return _statement(item[0])
    return _text(item)


def _score(item: Any) -> str:
    score = number(item.get("score")) if isinstance(item, Mapping) else None
    return "" if score is None else fixed(score)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
