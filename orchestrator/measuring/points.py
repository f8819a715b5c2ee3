"""Versions of a run by the names that people give them, and by those of its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

TIMELINE: Final = "timeline"
"""Stands for every version at which the run was measured as it went on."""


def timeline_versions(journal: JournalReader) -> list[Version]:
    """Those with a point of the timeline, the last of each number of edits, without the unedited one."""
    points = {row.edits for row in journal.evaluations(TIMELINE)}
    by_edits = {v.edits: v for v in journal.versions() if v.edits in points and v.sequence}
    return sorted(by_edits.values(), key=lambda version: version.sequence)


def named_versions(journal: JournalReader, names: Sequence[str]) -> list[Version]:
    """The versions of ``names`` in their order, each once; `TIMELINE` stands for several.

    Raises:
        UserError: there is no such version.
    """
    chosen: list[Version] = []
    for name in names:
        chosen += timeline_versions(journal) if name == TIMELINE else [journal.find_version(name)]
    return list({version.sequence: version for version in chosen}.values())
