"""The questions by which one edit is measured, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from errata.editing.request import EditRequest

ProbeKind = Literal["edit", "paraphrase", "neighborhood", "portability"]
IN_SCOPE: frozenset[str] = frozenset({"edit", "paraphrase", "portability"})
"""Kinds whose right answer depends on the edit; only `neighborhood` is out of scope."""


@dataclass(frozen=True)
class Probe:
    """One question about one edit."""

    kind: ProbeKind
    prompt: str
    expected: tuple[str, ...]
    """Right answers, any of which will do. For `neighborhood` the true answer, the same before and after."""
    teacher: str | None = None
    """The continuation whose tokens are scored teacher-forced, if any."""
    detail: str = ""
    """For `portability` its kind, such as ``one_hop``."""

    @property
    def in_scope(self) -> bool:
        """Whether the edit bears on this question."""
        return self.kind in IN_SCOPE


def probes_of(request: EditRequest) -> list[Probe]:
    """The edit prompt, its paraphrases, the neighborhood and the portability questions of one request."""
    new = request.target_new
    probes = [Probe("edit", request.text, (new,), new)]
    probes += [Probe("paraphrase", prompt, (new,), new) for prompt in request.paraphrases]
    probes += [Probe("neighborhood", item.prompt, (item.answer,), item.answer) for item in request.neighborhood]
    probes += [
        Probe("portability", item.prompt, item.answers, item.answers[0], item.kind) for item in request.portability
    ]
    return probes


def questions_of(requests: Iterable[EditRequest]) -> list[str]:
    """Every distinct question of the requests' probes, in order: what the memory has to be searched for."""
    return list(dict.fromkeys(probe.prompt for request in requests for probe in probes_of(request)))
