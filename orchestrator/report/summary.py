"""What a run leaves behind in figures: ``summary.json`` and ``facts.jsonl``.

``docs/summary.md`` defines every field.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.evaluation.outcomes import Arm
from errata.evaluation.probes import ProbeKind

MemoryArm = Literal["memory", "edited_memory", "routed"]


def _number_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_number_or_none)]
"""A measured number; null where there was nothing to measure, or it was not finite."""


NO_SHARES = ("fluency", "fluency_star", "query_seconds")
"""Figures of an arm that are no shares: bits, a ratio to the unedited model, seconds."""


class ModelName(Closed):
    name: str
    digest: str


class ArmMetrics(Closed):
    """One way of knowing, on one set of facts. Shares from 0 to 1, higher is better, but for `NO_SHARES`;
    `errata.evaluation.figures` defines each."""

    efficacy: Figure = None
    generalization: Figure = None
    specificity: Figure = None
    specificity_exact: Figure = None
    locality_tf: Figure = None
    reliability: Figure = None
    generalization_gen: Figure = None
    locality: Figure = None
    locality_match: Figure = None
    locality_true: Figure = None
    portability: Figure = None
    average_true: Figure = None
    overall: Figure = None
    reliability_f1: Figure = None
    generalization_f1: Figure = None
    portability_f1: Figure = None
    fluency: Figure = None
    fluency_star: Figure = None
    consistency: Figure = None
    edit_score: Figure = None
    query_seconds: Figure = None


class ChoiceRates(Closed):
    """How often a memory arm chose no statement at all."""

    none_in_scope: Figure = None
    none_out_of_scope: Figure = None


class Perplexity(Closed):
    """On held-out text; lower is better."""

    base: Figure = None
    edited: Figure = None


class TimelinePoint(Closed):
    """One evaluation during the run."""

    edits: int = Field(ge=0)
    version: str
    facts: int = Field(ge=0)
    arms: dict[Arm, ArmMetrics] = {}
    choice: dict[MemoryArm, ChoiceRates] = {}
    perplexity: Perplexity = Perplexity()
    perplexities: dict[str, Perplexity] = {}
    norms: dict[str, Figure] = {}
    delta_norms: dict[str, Figure] = {}
    seconds: Figure = None
    skipped_probes: int | None = Field(None, ge=0)


class RefreshEvent(Closed):
    """A new covariance estimate that came into force."""

    triggered_at: int = Field(ge=0)
    swapped_at: int = Field(ge=0)
    tokens: int = Field(ge=0)
    digest: str
    source_version: str
    seconds: Figure = None


class AgeGroup(Closed):
    """Facts of like age that were asked before a repair."""

    oldest: int = Field(ge=0)
    """Edits that came after, at most; the groups double."""
    asked: int = Field(ge=0)
    before: Figure = None
    after: Figure = None


class RepairPoint(Closed):
    """One look at old facts."""

    edits: int = Field(ge=0)
    before: Figure = None
    """Share of its first sample that the model said, before anything was written."""
    last: Figure = None
    """Of its last sample: facts that the look had not asked before."""
    written: int = Field(0, ge=0)


class RepairSummary(Closed):
    """What repair found and did over the run."""

    looks: int = Field(ge=0)
    rounds: int = Field(ge=0)
    asked: int = Field(ge=0)
    said: int = Field(ge=0)
    tried: int = Field(ge=0)
    written: int = Field(ge=0)
    landed: int = Field(ge=0)
    ask_seconds: Figure = None
    write_seconds: Figure = None
    cost: Figure = None
    ages: tuple[AgeGroup, ...] = ()
    points: tuple[RepairPoint, ...] = ()


class Failure(Closed):
    id: str
    reason: str


class Stages(Closed):
    covariance_seconds: Figure = None
    evaluation_seconds: Figure = None
    edit_seconds: Figure = None
    repair_seconds: Figure = None


class Summary(Closed):
    """``summary.json``."""

    name: str
    errata_version: str
    started_at: datetime
    finished_at: datetime
    config_digest: str
    model: ModelName
    editor: str
    edits_applied: int = Field(ge=0)
    edits_failed: int = Field(ge=0)
    edits_landed: int | None = Field(None, ge=0)
    """Applied edits that the model said when they were written; None where nobody looked."""
    edits_weak: int | None = Field(None, ge=0)
    """Applied edits that it did not say."""
    edits_refused: int | None = Field(None, ge=0)
    """Edits that were rejected because they did not land, or damaged too much."""
    batches: int = Field(ge=0)
    refreshes: int = Field(ge=0)
    version: str
    wall_seconds: float = Field(ge=0)
    edit_seconds_per_edit: Figure = None
    arms: dict[Arm, ArmMetrics] = {}
    intervals: dict[Arm, dict[str, tuple[float, float]]] = {}
    portability_by_kind: dict[Arm, dict[str, Figure]] = {}
    portability_f1_by_kind: dict[Arm, dict[str, Figure]] = {}
    choice: dict[MemoryArm, ChoiceRates] = {}
    perplexity: Perplexity = Perplexity()
    perplexities: dict[str, Perplexity] = {}
    timeline: tuple[TimelinePoint, ...] = ()
    refresh_events: tuple[RefreshEvent, ...] = ()
    repair: RepairSummary | None = None
    failures: tuple[Failure, ...] = ()
    stages: Stages = Stages()
    facts_measured: int | None = Field(None, ge=0)
    skipped_probes: int | None = Field(None, ge=0)
    """Questions of these facts that were not asked: the model cannot take them in. None in summaries of before."""
    judge: str = "contains"
    metric_versions: dict[str, int] = {}


class ProbeAnswer(Closed):
    """What one arm said to one probe."""

    answer: str
    ok: bool
    right: bool | None = None
    f1: Figure = None
    accuracy: Figure = None
    exact: bool | None = None
    agreement: Figure = None
    reasoning: str | None = None
    chosen: str | None = None
    reason: str | None = None
    retrieved: tuple[Any, ...] = ()


class ProbeRecord(Closed):
    kind: ProbeKind
    prompt: str
    expected: tuple[str, ...] = ()
    arms: dict[Arm, ProbeAnswer] = {}


class FactRecord(Closed):
    """One line of ``facts.jsonl``: a fact that was written, and how each arm answers for it at the end."""

    id: str
    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    relation: str | None = None
    sequence: int = Field(ge=1)
    probes: tuple[ProbeRecord, ...] = ()


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json``; a reader sees the old file or the new one, never half of one."""
    _replace(path, summary.model_dump_json(indent=2) + "\n")


def read_summary(path: Path) -> Summary:
    """Read ``summary.json``.

    Raises:
        UserError: no such file, or it is not a summary.
    """
    try:
        return Summary.model_validate_json(_text(path))
    except ValidationError as error:
        raise UserError(f"{path} is not a run's summary: {_first(error)}") from error


def write_facts(path: Path, facts: Iterable[FactRecord]) -> None:
    """Write ``facts.jsonl``, one fact a line; atomic as :func:`write_summary`."""
    _replace(path, "".join(fact.model_dump_json() + "\n" for fact in facts))


def read_facts(path: Path) -> Iterator[FactRecord]:
    """Read ``facts.jsonl``.

    Raises:
        UserError: no such file, or a line that is not a fact (names the line).
    """
    # split at newlines only: answers may hold other line separators
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield FactRecord.model_validate_json(line)
            except ValidationError as error:
                raise UserError(f"{path}:{number}: not a fact of a run: {_first(error)}") from error


def _text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _replace(path: Path, text: str) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
