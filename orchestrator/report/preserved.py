"""What `errata preserve` has found of a run's versions, kept beside the items' outcomes for whoever compares runs."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from errata.editing.closed import Closed
from errata.orchestrator.report.summary import Figure

logger = logging.getLogger(__name__)

FILE: Final = "preservation/scores.json"
_MAIN: Final[Mapping[str, str]] = {
    "mmlu": "acc",
    "gsm8k": "exact_match,strict-match",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_challenge": "acc_norm",
    "humaneval": "pass@1",
    "nq_open": "exact_match,remove_whitespace",
    "samsum": "rouge_mean",
    "mose_nq": "exact_match,remove_whitespace",
    "mose_samsum": "rouge_mean",
}
"""Which of a task's metrics stands for it, where it has several: S_p's (moir, table 3) and MOSE's; else the first."""
_ABOUT_EDITS: Final = ("edits", "fluency", "uncertainty", "rubric")
"""Suites whose figures are not of tasks: what they are for is in the fields beside the scores."""


class KeptScore(Closed):
    """One metric of one task, over the items that were asked."""

    task: str
    metric: str
    value: float
    low: Figure = None
    high: Figure = None
    items: int = Field(ge=0)
    of: int = Field(ge=0)
    seed: int = Field(0, ge=0)


class KeptVersion(Closed):
    """One version. Figures that compare are against the version ``reference``."""

    digest: str
    sequence: int = Field(ge=0)
    edits: int = Field(ge=0)
    scores: tuple[KeptScore, ...] = ()
    s_p: Figure = None
    reference: str | None = None
    s_e: Figure = None
    fluency_star: Figure = None
    uncertainty_growth: Figure = None
    retention: Figure = None
    """Of the efficacy that the edits had right after they were written the share that is left here."""

    def updated(self, newer: KeptVersion) -> KeptVersion:
        """With what another look has found, which goes before."""
        scores = {(score.task, score.metric): score for score in (*self.scores, *newer.scores)}
        told = {k: v for k, v in newer.model_dump(exclude={"scores"}).items() if v is not None}
        return KeptVersion(**{**self.model_dump(exclude={"scores"}), **told, "scores": tuple(scores.values())})

    def tasks(self) -> dict[str, KeptScore]:
        """The score that stands for each task, by task."""
        found: dict[str, KeptScore] = {}
        for score in self.scores:
            if score.task in _ABOUT_EDITS:
                continue
            if score.task not in found or _MAIN.get(score.task) == score.metric:
                found[score.task] = score
        return found


class Preserved(Closed):
    """The file."""

    versions: tuple[KeptVersion, ...] = ()


def read_preserved(run: Path) -> tuple[KeptVersion, ...]:
    """What is kept of a run, in the order of its versions; nothing where there is no file, or a damaged one."""
    path = run / FILE
    if not path.is_file():
        return ()
    try:
        return Preserved.model_validate_json(path.read_text(encoding="utf-8")).versions
    except (OSError, ValidationError, UnicodeDecodeError):
        logger.warning("%s cannot be read; `errata preserve` writes it anew from the outcomes beside it", path)
        return ()


def keep_preserved(run: Path, versions: Iterable[KeptVersion]) -> None:
    """Add what was found to what is kept; a reader sees the old file or the new one."""
    known = {version.digest: version for version in read_preserved(run)}
    for version in versions:
        known[version.digest] = known[version.digest].updated(version) if version.digest in known else version
    path = run / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = Preserved(versions=tuple(sorted(known.values(), key=lambda version: version.sequence)))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(ordered.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
