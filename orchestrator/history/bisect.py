"""Which commit changed the answer to a probe: a binary search over versions, without editing anything again.

The model is loaded once; each version asked is put into it by replaying deltas from the newest one known to lie
before the change, so over n commits all steps together apply about 2n deltas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.texts import clean_all, read_text
from errata.evaluation.matching import contains, exact_match
from errata.orchestrator.history.gaps import Gaps
from errata.orchestrator.history.modules import changed
from errata.orchestrator.history.rebuild import advance, changes, weights_at
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version


class RegressionProbe(Closed):
    """A question to a version. It holds if the greedy answer is as expected; words are compared, not characters.

    Without ``expected`` and ``expected_not`` it holds as long as the answer is that of the good version.
    """

    prompt: str = Field(min_length=1)
    """Continued as it stands, without white space at its ends."""
    expected: tuple[str, ...] = ()
    """Any of these must be in the answer; one text or a list."""
    expected_not: tuple[str, ...] = ()
    """None of these may be in it."""
    match: Literal["contains", "exact"] = "contains"
    """Whether the expected words stand somewhere in the answer, or are all of it."""
    max_new_tokens: int = Field(12, ge=1)
    chat: bool = False
    """Ask through the model's chat template instead of continuing the prompt."""
    id: str = ""

    @field_validator("expected", "expected_not", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def holds(self, answer: str, reference: str | None) -> bool:
        """Whether an answer is right; ``reference`` is the good version's, None while that is being asked."""
        same = contains if self.match == "contains" else exact_match
        if not self.expected and not self.expected_not:
            return reference is None or answer == reference
        return (not self.expected or same(answer, self.expected)) and not same(answer, self.expected_not)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A version's answers to all probes, and which of them were right."""

    sequence: int
    answers: tuple[str, ...]
    holds: tuple[bool, ...]

    @property
    def good(self) -> bool:
        """All of them."""
        return all(self.holds)


@dataclass(frozen=True, slots=True)
class Bisection:
    """The first commit at which the verdict is that of the later end, between two neighbors that were asked."""

    commit: Version
    broke: bool
    """True if the probes held before it; False if they hold since."""
    before: Verdict
    after: Verdict
    asked: tuple[Verdict, ...]
    """Every version that was evaluated, in the order of asking: both ends first."""


def read_probes(path: str | Path) -> list[RegressionProbe]:
    """Probes from a JSON file (one object or a list) or JSON Lines.

    Raises:
        UserError: the file is not there, is neither, is empty, or a probe does not fit; the message says where.
    """
    text = read_text(path, "probe file")
    probes = []
    for where, record in _records(text, str(path)):
        try:
            kept = clean_all(record)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        try:
            probes.append(RegressionProbe.model_validate(kept))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "probe"
            allowed = ", ".join(RegressionProbe.model_fields)
            raise UserError(f"{where}: {key}: {first['msg']}; a probe has the keys {allowed}") from error
    if not probes:
        raise UserError(f"probe file {str(path)!r} holds no probe")
    return probes


def _records(text: str, path: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except ValueError:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: neither JSON nor JSON Lines ({error})") from error
        return
    records = whole if isinstance(whole, list) else [whole]
    for number, record in enumerate(records, 1):
        yield (path if len(records) == 1 else f"{path}: probe {number}"), record


def bisect(
    versions: Sequence[Version], ask: Callable[[Version], Verdict], *, progress: Callable[[int], None] | None = None
) -> Bisection:
    """Find the commit between the first and the last version at which the verdict changes.

    Asks both ends and then log2(n) versions in between, each newer than the newest that was like the first end or
    older than the oldest that was like the last. If the verdict changes more than once, one of the changes is found.

    Args:
        versions: in order, the good end first.
        progress: called with the number of versions that may still be asked.

    Raises:
        UserError: fewer than two versions, or both ends have the same verdict.
    """
    if len(versions) < 2:
        raise UserError("between the good and the bad version there is no commit that changed the weights")
    first, last = ask(versions[0]), ask(versions[-1])
    asked = [first, last]
    if first.good == last.good:
        state = "hold" if first.good else "do not hold"
        raise UserError(
            f"the probes {state} at both ends, v{first.sequence} and v{last.sequence}: there is no change to find; "
            "choose the ends with --good and --bad"
        )
    low, high = 0, len(versions) - 1
    before, after = first, last
    while high - low > 1:
        if progress is not None:
            progress((high - low - 1).bit_length())
        middle = (low + high) // 2
        verdict = ask(versions[middle])
        asked.append(verdict)
        if verdict.good == first.good:
            low, before = middle, verdict
        else:
            high, after = middle, verdict
    return Bisection(versions[high], first.good, before, after, tuple(asked))


def candidates(journal: JournalReader, good: Version, bad: Version) -> list[Version]:
    """The good version and every later one, up to the bad, whose weights differ from its parent's.

    Raises:
        UserError: the good version is not older than the bad one.
    """
    if good.sequence >= bad.sequence:
        raise UserError(f"--good v{good.sequence} is not older than --bad v{bad.sequence}")
    between = journal.versions_between(good.sequence, bad.sequence)
    return [good, *(version for version in between if changed(version))]


class VersionAsker:
    """Puts versions into one loaded model and asks them the probes.

    Args:
        model: loaded from the run's base checkpoint; its edited maps are overwritten.
        base: unedited maps, float32 (O, I) by layer.
    """

    def __init__(
        self,
        journal: JournalReader,
        store: ArtifactStore,
        model: EditableModel,
        base: Mapping[int, Tensor],
        probes: Sequence[RegressionProbe],
    ) -> None:
        self._journal, self._store, self._model, self._base = journal, store, model, base
        self._probes = tuple(probes)
        self._engine = LanguageEngine(model)
        self._reference: Verdict | None = None
        # the newest version that was like the first: whatever is asked next is newer
        self._near: tuple[int, dict[int, Tensor]] | None = None

    def ask(self, version: Version) -> Verdict:
        """The answers at a version; those of the first one asked are the reference.

        Raises:
            DamagedFileError: a delta on the way there is damaged or gone.
        """
        weights = self._weights(version)
        self._model.set_weights(weights)
        answers = self._answers()
        first = self._reference
        references: Sequence[str | None] = (None,) * len(answers) if first is None else first.answers
        holds = tuple(
            probe.holds(answer, same) for probe, answer, same in zip(self._probes, answers, references, strict=True)
        )
        verdict = Verdict(version.sequence, answers, holds)
        if first is None or verdict.good == first.good:
            self._near = (version.sequence, weights)
        self._reference = first or verdict
        return verdict

    def _weights(self, version: Version) -> dict[int, Tensor]:
        if self._near is None or self._near[0] > version.sequence:
            return weights_at(self._journal, self._store, self._base, version)
        start, weights = self._near
        gap = Gaps.of(self._journal).floor(version.sequence)
        if gap is not None and gap.floor > start:
            return weights_at(self._journal, self._store, self._base, version)
        for _, delta in changes(self._journal, self._store, start, version.sequence):
            weights = advance(weights, delta)
        return weights

    def _answers(self) -> tuple[str, ...]:
        answers = [""] * len(self._probes)
        text = self._model.text
        for length in sorted({probe.max_new_tokens for probe in self._probes}):
            chosen = [i for i, probe in enumerate(self._probes) if probe.max_new_tokens == length]
            prompts = [
                text.encode_chat([{"role": "user", "content": self._probes[i].prompt}])
                if self._probes[i].chat
                else text.encode_prompt(self._probes[i].prompt)
                for i in chosen
            ]
            for i, answer in zip(chosen, self._engine.generate(prompts, max_new_tokens=length), strict=True):
                answers[i] = answer.text
        return tuple(answers)
