"""Successive halving: many candidates on few edits, the better ones on more (arXiv:1502.07943)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.orchestrator.calibrate.space import Candidate
from errata.orchestrator.calibrate.trial import TrialResult


@dataclass(frozen=True)
class Ranked:
    """A candidate with its result on the largest number of edits it was tried on."""

    candidate: Candidate
    edits: int
    result: TrialResult


Try = Callable[[Candidate, int], TrialResult]


def halve(
    candidates: Sequence[Candidate],
    rungs: Sequence[int],
    attempt: Try,
    *,
    keep: int = 3,
    stop: Callable[[Candidate, int], bool] = lambda *_: False,
) -> list[Ranked]:
    """Try all on the first rung's edits, the best one of ``keep`` on the next rung's, and so on.

    Args:
        rungs: edits of each rung, ascending.
        stop: asked before each trial, with what it would be; the rung it stops in counts with what was tried.

    Returns:
        Every candidate that was tried, best first: by the rung it came to, then by its score there.
    """
    results: dict[int, Ranked] = {}
    alive = list(range(len(candidates)))
    for edits in rungs:
        tried = []
        for number in alive:
            if stop(candidates[number], edits):
                break
            results[number] = Ranked(candidates[number], edits, attempt(candidates[number], edits))
            tried.append(number)
        if len(tried) < len(alive) or len(alive) == 1:
            break
        tried.sort(key=lambda number: -results[number].result.score)
        alive = tried[: max(1, len(tried) // keep)]
    return sorted(results.values(), key=lambda ranked: (-ranked.edits, -ranked.result.score))


def affordable(seconds: float, per_edit: float, rungs: Sequence[int], *, keep: int = 3) -> int:
    """How many candidates can begin so that all rungs fit into ``seconds``; at least one."""
    share, cost = 1.0, 0.0
    for edits in rungs:
        cost += share * edits * per_edit
        share /= keep
    return max(1, int(seconds / max(cost, 1e-9)))
