"""What curves are called in MLflow: a group, by which its page groups, a slash, the figure with its unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from errata.evaluation.outcomes import ALL_ARMS

TIMELINE: Final = "timeline"
"""Kind of evaluation whose curves stand under the arm alone."""

_ARM: Final = "|".join(sorted(ALL_ARMS, key=len, reverse=True))
_OLD_ARM: Final = re.compile(rf"(?:(?P<kind>\w+)\.)?(?P<arm>{_ARM})\.(?P<figure>.+)")
_OLD_NORM: Final = re.compile(r"norm\.layer(\d+)")
_OLD: Final = {
    "edit_seconds": "time/batch_seconds",
    "covariance_tokens": "covariance/tokens",
    "verify.landed": "verify/landed_edits",
    "verify.weak": "verify/weak_edits",
    "verify.moved": "verify/moved_share",
    "guard.breach": "guard/breaches",
    "guard.sentinels_kept": "guard/sentinels_kept_share",
    "cells.done": "sweep/done_cells",
    "cells.failed": "sweep/failed_cells",
}


def arm_figures(kind: str, arm: str, figures: Mapping[str, float | None]) -> dict[str, float]:
    """Curves of one arm at one evaluation: ``edited/reliability``; ``final_edited/reliability`` of the final one."""
    group = arm if kind == TIMELINE else f"{kind}_{arm}"
    return {f"{group}/{name}": value for name, value in figures.items() if value is not None}


def perplexities(kind: str, whole: float | None, texts: Mapping[str, float]) -> dict[str, float]:
    """Curves of the edited model's perplexity: on the held-out text, and on others by name."""
    named = {f"perplexity_{name}": value for name, value in texts.items()}
    return arm_figures(kind, "edited", {"perplexity": whole, **named})


def norm(layer: int) -> str:
    """Curve of an edited matrix's Frobenius norm; two digits, so that they are listed in their order."""
    return f"norms/layer_{layer:02d}"


def verified(figures: Mapping[str, float]) -> dict[str, float]:
    """Curves of what a batch's verification found."""
    return {_OLD.get(f"verify.{name}", f"verify/{name}"): float(value) for name, value in figures.items()}


def renamed(old: str) -> str | None:
    """What a release that wrote dots calls a curve now; None for a name that is not of that kind."""
    if "/" in old:
        return None
    if old in _OLD:
        return _OLD[old]
    if found := _OLD_NORM.fullmatch(old):
        return norm(int(found[1]))
    if found := _OLD_ARM.fullmatch(old):
        kind, figure = found["kind"] or TIMELINE, found["figure"].replace("perplexity.", "perplexity_")
        return next(iter(arm_figures(kind, found["arm"], {figure: 0.0})))
    group, dot, rest = old.partition(".")
    return f"{group}/{rest.replace('.', '_')}" if dot and group in ("guard", "verify") else None
