"""What versions of a run kept of the model's abilities: benchmarks put to each, the same items every time.

Outcomes are kept item by item in the run's directory (``preservation/``), under a digest of the version, the task, the
items and everything that decides an answer: what is there is not asked again, and an interruption loses one task.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.editing.digest import digest_json
from errata.editing.wording import counted
from errata.evaluation.geometry import spearman
from errata.evaluation.metrics import edit_score
from errata.evaluation.metrics.composite import EDIT_PARTS
from errata.evaluation.preservation.battery import Change, Item, Outcomes, Score, Suite, change, s_p, sampled, scores_of
from errata.evaluation.preservation.rubric import falls
from errata.evaluation.preservation.suites import SpuqSuite
from errata.evaluation.uncertainty import Uncertainty, UncertaintyGrowth, growth, uncertainty_growth
from errata.orchestrator.report.preserved import KeptScore, KeptVersion

logger = logging.getLogger(__name__)

FOLDER = "preservation"
Ask = Callable[[str, Sequence[Item], str, Mapping[int, Tensor]], Outcomes]
"""(suite, items, version, its edited maps) -> outcomes."""


@dataclass(frozen=True)
class Asked:
    """A version to be asked."""

    sequence: int
    digest: str

    @property
    def name(self) -> str:
        """As people call it."""
        return f"v{self.sequence}"


@dataclass(frozen=True)
class VersionScores:
    """All scores of one version."""

    version: Asked
    scores: tuple[Score, ...]
    s_p: float | None
    """Harmonic mean of its six benchmarks where all were asked (moir eq. 20)."""


@dataclass(frozen=True)
class VersionComparison:
    """A later version against the first one, on the same items."""

    version: Asked
    changes: tuple[Change, ...]
    uncertainty: UncertaintyGrowth | None
    fluency_star: float | None
    """Mean log-probability of the version's own continuations over the first version's (moir C.3)."""
    rubric_correlation: float | None = None
    """Spearman's rho over the edits between the fall of their rubric scores and the growth of their uncertainty."""
    s_e: float | None = None
    """Harmonic mean of the edits' efficacy, generalization, specificity, portability and fluency* (moir eq. 19)."""


@dataclass(frozen=True)
class PreservationReport:
    """What `preserve` found."""

    limit: int | None
    seed: int
    versions: tuple[VersionScores, ...]
    comparisons: tuple[VersionComparison, ...]
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By suite what belongs beside its figures: of ``uncertainty`` wordings, samples and embedder."""
    lifetimes: tuple[Any, ...] = ()
    """What became of the edits (`errata.orchestrator.measuring.retention.Lifetime`), where that was asked."""


def preserve(
    directory: Path,
    versions: Sequence[Asked],
    suites: Mapping[str, Suite],
    ask: Ask,
    weights: Callable[[Asked], Mapping[int, Tensor]],
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> PreservationReport:
    """Put every suite to every version and compare each with the first.

    Args:
        directory: of the run.
        versions: at least one; the first is what the others are compared with.
        weights: the edited maps of a version; called once for each that has something to be asked.
        limit: items of each suite, drawn with ``seed``; None asks all.
        progress: (stage, done, total, note).
    """
    chosen = {name: sampled(suite.items, limit, seed) for name, suite in suites.items()}
    outcomes: dict[tuple[str, str], Outcomes] = {}
    done, total = 0, len(versions) * len(suites)
    for version in versions:
        maps: Mapping[int, Tensor] | None = None
        for name, suite in suites.items():
            kept = kept_outcomes(directory, version, suite, chosen[name], seed)
            if kept is None:
                maps = weights(version) if maps is None else maps
                kept = ask(name, chosen[name], version.digest, maps)
                keep_outcomes(directory, version, suite, chosen[name], seed, kept)
            outcomes[version.digest, name] = kept
            done += 1
            if progress is not None:
                progress("preservation", done, total, f"{version.name} {name}")
    return _report(versions, suites, outcomes, limit, seed)


def _report(
    versions: Sequence[Asked],
    suites: Mapping[str, Suite],
    by_version: Mapping[tuple[str, str], Outcomes],
    limit: int | None,
    seed: int,
) -> PreservationReport:
    tables = []
    for version in versions:
        scores = [s for name, suite in suites.items() for s in scores_of(suite, by_version[version.digest, name])]
        tables.append(VersionScores(version, tuple(scores), s_p(scores)))
    first = versions[0].digest
    comparisons = []
    for version in versions[1:]:
        changes: list[Change] = []
        steadiness, star = None, None
        for name, suite in suites.items():
            before, after = by_version[first, name], by_version[version.digest, name]
            moved = [change(suite, metric, before[metric], after[metric]) for metric in before if before[metric]]
            changes += [item for item in moved if isfinite(item.before) and isfinite(item.after)]
            if name == "uncertainty":
                steadiness = uncertainty_growth(_uncertainties(before), _uncertainties(after))
            if name == "fluency":
                own, unedited = (suite.aggregate("mean_logprob", part["mean_logprob"]) for part in (after, before))
                star = own / unedited if unedited else None
        s_e = None
        if "edits" in suites and star is not None:
            edits, outcomes = suites["edits"], by_version[version.digest, "edits"]
            # the suite names it as ROME and MOIR name the score: the exact form, all tokens or none
            named = {part: "neighborhood_score_argmax" if part == "specificity_exact" else part for part in EDIT_PARTS}
            parts = {part: edits.aggregate(m, outcomes[m]) for part, m in named.items() if m in outcomes}
            parts["fluency_star"] = star
            s_e = edit_score(parts) if all(isfinite(value) and value >= 0 for value in parts.values()) else None
        rho = None
        if {"rubric", "uncertainty"} <= set(suites):
            rho = _rubric_correlation(by_version, first, version.digest)
        comparisons.append(VersionComparison(version, tuple(changes), steadiness, star, rho, s_e))
    told = {name: suite.told for name, suite in suites.items() if isinstance(suite, SpuqSuite)}
    return PreservationReport(limit, seed, tuple(tables), tuple(comparisons), told)


def _rubric_correlation(by_version: Mapping[tuple[str, str], Outcomes], first: str, last: str) -> float | None:
    """Over the edits that have both; None for fewer than three."""
    fallen = falls(by_version[first, "rubric"], by_version[last, "rubric"])
    totals = zip(by_version[first, "uncertainty"]["total"], by_version[last, "uncertainty"]["total"], strict=True)
    pairs = [
        (fall, grown)
        for fall, (before, after) in zip(fallen, totals, strict=True)
        if fall is not None and (grown := growth(before, after)) is not None
    ]
    return spearman([fall for fall, _ in pairs], [grown for _, grown in pairs]) if len(pairs) > 2 else None


def _uncertainties(outcomes: Outcomes) -> dict[str, Uncertainty]:
    pairs = zip(outcomes["aleatoric"], outcomes["epistemic"], strict=True)
    return {str(number): Uncertainty(*pair) for number, pair in enumerate(pairs)}


def kept_versions(report: PreservationReport, edits: Mapping[str, int], head: Any) -> list[KeptVersion]:
    """What a comparison of runs needs of a report.

    Args:
        edits: of the versions, by digest.
        head: the version that the edits' lifetimes end at.
    """
    reference = report.versions[0].version.digest
    compared = {item.version.digest: item for item in report.comparisons}
    found = []
    for table in report.versions:
        own = compared.get(table.version.digest)
        growth = None if own is None or own.uncertainty is None else own.uncertainty.growth
        found.append(
            KeptVersion(
                digest=table.version.digest,
                sequence=table.version.sequence,
                edits=edits[table.version.digest],
                scores=tuple(KeptScore(**asdict(score), seed=report.seed) for score in table.scores),
                s_p=table.s_p,
                reference=None if own is None else reference,
                s_e=None if own is None else own.s_e,
                fluency_star=None if own is None else own.fluency_star,
                uncertainty_growth=growth,
            )
        )
    lives = {life.metric: life.retention.kept for life in report.lifetimes}
    if "efficacy" in lives:
        at_end = KeptVersion(
            digest=head.digest, sequence=head.sequence, edits=edits[head.digest], retention=lives["efficacy"]
        )
        found = [one.updated(at_end) if one.digest == head.digest else one for one in found]
        if head.digest not in {one.digest for one in found}:
            found.append(at_end)
    return found


# ---------------------------------------------------------------- kept outcomes


def _path(directory: Path, version: Asked, suite: Suite, items: Sequence[Item], seed: int) -> Path:
    asked = [version.digest, suite.name, suite.fingerprint, [list(item) for item in items], seed]
    return directory / FOLDER / f"{digest_json(asked)[:32]}.json"


def kept_outcomes(directory: Path, version: Asked, suite: Suite, items: Sequence[Item], seed: int) -> Outcomes | None:
    """What was found before; None where nothing was, or the file is damaged."""
    path = _path(directory, version, suite, items, seed)
    if not path.is_file():
        return None
    try:
        outcomes: Outcomes = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
        if all(len(values) == len(items) for values in outcomes.values()):
            return outcomes
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        pass
    logger.warning("%s cannot be read; its items are asked again", path)
    return None


def keep_outcomes(
    directory: Path, version: Asked, suite: Suite, items: Sequence[Item], seed: int, outcomes: Outcomes
) -> None:
    """Write outcomes where `kept_outcomes` finds them, whole or not at all."""
    path = _path(directory, version, suite, items, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"version": version.digest, "task": suite.name, "items": items, "outcomes": outcomes}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


# ---------------------------------------------------------------- as text


def report_lines(report: PreservationReport) -> Iterator[str]:
    """One line a score, then one line a change."""
    for table in report.versions:
        yield f"{table.version.name} {table.version.digest[:12]}"
        for score in table.scores:
            sure = "" if score.low is None else f"  [{score.low:.3f}, {score.high:.3f}]"
            yield f"  {score.task:<22}{score.metric:<28}{score.value:8.3f}{sure}  {score.items} of {score.of}"
        if table.s_p is not None:
            yield f"  S_p {table.s_p:.3f}"
    for compared in report.comparisons:
        yield f"{compared.version.name} against {report.versions[0].version.name}, item by item"
        for moved in compared.changes:
            difference = moved.after - moved.before
            sure = "" if moved.low is None else f"  [{moved.low:+.3f}, {moved.high:+.3f}]"
            yield f"  {moved.task:<22}{moved.metric:<28}{difference:+8.3f}{sure}"
        if compared.fluency_star is not None:
            yield f"  fluency* {compared.fluency_star:.3f}"
        if compared.rubric_correlation is not None:
            rho = f"Spearman {compared.rubric_correlation:+.3f} over the edits"
            yield f"  rubric scores fall as uncertainty grows: {rho}"
        if compared.s_e is not None:
            yield f"  S_e {compared.s_e:.3f}"
        if compared.uncertainty is not None and compared.uncertainty.growth is not None:
            grown = compared.uncertainty
            parts = (("total", grown.growth), ("of means", grown.growth_of_means))
            shown = ", ".join(f"{name} {value:+.3f}" for name, value in parts if value is not None)
            yield f"  uncertainty growth: {shown} ({counted(grown.questions, 'question')})"
            if told := report.told.get("uncertainty"):
                wordings = f"{told['wordings']:.3g} of {told['asked_for']} wordings each"
                yield f"    {wordings}, {told['samples']} answers to each, embedded by {told['embedder']}"
