"""What the guard compares: answers to sentinel probes and perplexity, of a version and of its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.config.guard import GuardConfig
from errata.orchestrator.history.bisect import RegressionProbe, read_probes
from errata.orchestrator.measuring.measurer import read_held_out


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured on one version."""

    answers: tuple[str, ...]
    """One a probe, in their order."""
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """A reading against the base's."""

    good: bool
    kept: float | None
    """Share of the probes that hold on the base and still do; None if none does."""
    ratio: float | None
    """Perplexity over the base's."""
    reasons: tuple[str, ...] = ()
    """Which thresholds were passed, with the figures."""
    broken: tuple[str, ...] = ()
    """Probes that held on the base and do not any more, by id or prompt."""


def judge(config: GuardConfig, probes: Sequence[RegressionProbe], base: Reading, now: Reading) -> GuardVerdict:
    """Compare a version with the base; pure."""
    held = [i for i, probe in enumerate(probes) if probe.holds(base.answers[i], base.answers[i])]
    broken = [i for i in held if not probes[i].holds(now.answers[i], base.answers[i])]
    kept = 1 - len(broken) / len(held) if held else None
    ratio = None if now.perplexity is None or not base.perplexity else now.perplexity / base.perplexity
    reasons = []
    # counted, not by shares: 1 - 0.9 is a little less than 0.1
    if held and len(broken) > config.max_sentinel_loss * len(held) + 1e-9:
        reasons.append(
            f"{len(broken)} of {counted(len(held), 'sentinel')} no longer hold "
            f"(allowed: {config.max_sentinel_loss:.0%})"
        )
    limit = config.max_perplexity_ratio
    if limit is not None and ratio is not None and not ratio <= limit:  # also when it is not a number
        reasons.append(f"perplexity is {ratio:.4g} times the base's (allowed: {limit:g})")
    names = tuple(probes[i].id or probes[i].prompt for i in broken)
    return GuardVerdict(not reasons, kept, ratio, tuple(reasons), names)


def read_guard(config: GuardConfig, held_out: str | None) -> tuple[list[RegressionProbe], str | None]:
    """The probes and the text of a guard, read before anything starts.

    Args:
        held_out: ``evaluation.held_out``, for a guard that names no text of its own.

    Raises:
        UserError: a file cannot be read or holds nothing, or the guard would measure nothing.
    """
    if config.every is None:
        return [], None
    probes = [] if config.sentinels is None else read_probes_of(config.sentinels)
    text = None if config.max_perplexity_ratio is None else read_held_out(config.held_out or held_out)
    if not probes and text is None:
        raise UserError("guard.every is set and there is nothing to measure: give guard.sentinels or guard.held_out")
    return probes, text


def read_probes_of(path: str) -> list[RegressionProbe]:
    """`read_probes` with the setting named in errors.

    Raises:
        UserError: see `read_probes`.
    """
    try:
        return read_probes(path)
    except UserError as error:
        raise UserError(f"guard.sentinels: {error}") from error
