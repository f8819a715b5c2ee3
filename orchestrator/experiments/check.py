"""Whether runs may stand side by side: the same model, the same questions, the same metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from errata.orchestrator.experiments.collect import Run

_FREE = ("evaluation.arms", "evaluation.every", "evaluation.sample", "evaluation.latency_questions")
"""Settings of the evaluation that change no figure of the end."""
_BESIDE = ("evaluation.held_out", "evaluation.texts", "evaluation.final", "evaluation.free_text", "evaluation.ike")
"""Settings that decide single columns, or which of the facts are asked: worth a note."""
_ENDPOINT = "evaluation.judge.endpoint."
_SINCE: Mapping[str, object] = {
    "evaluation.judge.type": "contains",
    "evaluation.reasoning": None,
    "evaluation.final": "all",
    "evaluation.free_text": None,
    "evaluation.ike": None,
}
"""What runs of older releases, which do not name these, were measured with."""


@dataclass(frozen=True)
class Mismatch:
    """Something about a set of runs that a reader of their table has to know."""

    text: str
    forbids: bool
    """The figures do not mean the same, so that a comparison would mislead."""


def check_block(runs: Sequence[Run], repeated: Sequence[str]) -> Iterator[Mismatch]:
    """Everything that speaks against comparing the runs.

    Args:
        repeated: axes along which runs are repetitions or groups: what was asked is compared at equal labels.
    """
    yield from _models(runs)
    yield from _metrics(runs)
    yield from _settings(runs)
    yield from _questions(runs, repeated)
    releases = sorted({run.summary.errata_version for run in runs})
    if len(releases) > 1:
        yield Mismatch(f"made by several releases: {', '.join(releases)}", False)


def _models(runs: Sequence[Run]) -> Iterator[Mismatch]:
    digests = {run.summary.model.digest: run for run in runs}
    if len(digests) > 1:
        first, second = list(digests.values())[:2]
        a, b = first.summary.model, second.summary.model
        yield Mismatch(
            f"different models: {a.name} ({a.digest[:10]}) in {first.directory.name}, "
            f"{b.name} ({b.digest[:10]}) in {second.directory.name}",
            True,
        )


def _metrics(runs: Sequence[Run]) -> Iterator[Mismatch]:
    for name in sorted({name for run in runs for name in run.summary.metric_versions}):
        versions = {run.summary.metric_versions[name]: run for run in runs if name in run.summary.metric_versions}
        if len(versions) > 1:
            said = ", ".join(f"version {v} in {run.directory.name}" for v, run in sorted(versions.items()))
            yield Mismatch(f"metric {name} has {said}", True)
    unsaid = [run for run in runs if not run.summary.metric_versions]
    if unsaid and len(unsaid) < len(runs):
        yield Mismatch(f"{unsaid[0].directory.name} does not say the versions of its metrics", False)


def _settings(runs: Sequence[Run]) -> Iterator[Mismatch]:
    keys = {
        key
        for run in runs
        for key in run.settings
        if key.startswith("evaluation.")
        and key not in _FREE
        # where a judge is and how it is asked is not who it is
        and (not key.startswith(_ENDPOINT) or key == f"{_ENDPOINT}model")
    }
    for key in sorted(keys):
        values = {str(run.settings.get(key, _SINCE.get(key))): run for run in runs}
        if len(values) > 1:
            said = ", ".join(f"{value} in {run.directory.name}" for value, run in sorted(values.items()))
            yield Mismatch(f"{key} differs: {said}", not key.startswith(_BESIDE))


def _questions(runs: Sequence[Run], repeated: Sequence[str]) -> Iterator[Mismatch]:
    families: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        families.setdefault(tuple(run.coordinates.get(axis, "") for axis in repeated), []).append(run)
    seen: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for name, digest in run.asked.items():
            kept, first = seen.setdefault(name, (digest, run))
            if kept != digest:
                yield Mismatch(
                    f"different data: edit {name!r} was asked about in other words in {run.directory.name} than in "
                    f"{first.directory.name}",
                    True,
                )
                return
    for family in families.values():
        everything = set().union(*(run.asked for run in family))
        common = set(everything).intersection(*(run.asked for run in family))
        if everything and not common:
            first = family[0]
            other = next((run for run in family if not set(run.asked) & set(first.asked)), family[-1])
            yield Mismatch(
                f"different data: {first.directory.name} and {other.directory.name} have no edit in common", True
            )
            return
        if len(common) < len(everything):
            counts = sorted({len(run.asked) for run in family})
            yield Mismatch(
                f"not every run applied every edit: {counts[0]} to {counts[-1]} of {len(everything)}; each figure is "
                "over the edits of its own run",
                False,
            )
            return
