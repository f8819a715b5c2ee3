"""MEMIT-Merge: MEMIT with one value per subject, optimized over all its relations at once.

Requests about one subject have nearly the same key, so different values for it contradict each other and the least
squares averages them away; a value that serves all relations does not. Dong et al. 2025, arXiv:2502.07322; RoSE, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from errata.editing.editors.closed_form.locate import LeastSquaresConfig
from errata.editing.editors.closed_form.memit import Memit
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig, Variant


class MergeValues(ValueConfig):
    """Settings of the value optimization as the RoSE paper gives them; the clamp, which it does not, is MEMIT's."""

    steps: int = Field(35, ge=1)


class MemitMergeConfig(LeastSquaresConfig):
    """Settings of MEMIT-Merge."""

    type: Literal["memit_merge"] = "memit_merge"
    values: MergeValues = MergeValues()
    """How target values are optimized."""


def by_subject(requests: Sequence[EditRequest]) -> list[list[int]]:
    """Indices of the requests about each subject, in the order in which the subjects come up."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.subject.casefold(), []).append(index)
    return list(groups.values())


class MemitMerge(Memit):
    """One value per subject; keys, residuals and solution are MEMIT's."""

    def variant(self, requests: Sequence[EditRequest]) -> Variant:
        return Variant(groups=by_subject(requests))
