"""`errata calibrate MODEL --preset NAME`: no search, only what a preset's settings do to facts that the model knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from errata.editing.checkpoint.load import checkpoint_digest, load_model, resolve_model
from errata.editing.errors import UserError
from errata.orchestrator.calibrate.calibrate import Kept, bench_of, facts_of
from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.space import RIDGES, Candidate
from errata.orchestrator.calibrate.trial import TrialResult
from errata.orchestrator.config.loading import read_composed
from errata.orchestrator.config.model_presets import for_editor
from errata.orchestrator.progress import Display

MOST_FACTS = 32
"""Facts that are edited at most: the last that the model knows, which a search, taking the first, does not reach."""

_TOLD = "# by `errata calibrate --preset`, on facts that the model knows"


def measure(job: Calibration, preset: Path, state: Path, display: Display) -> str:
    """Edit facts that a model knows with a preset's settings; the preset's text with what was measured in it.

    Raises:
        UserError: the model is not there or knows too few of the questions, the editor has no such figures, the preset
            has no layers, or the directory holds the measurements of another model or job.
    """
    if job.editor not in RIDGES:
        raise UserError(f"--editor {job.editor!r} cannot be measured; allowed: {', '.join(RIDGES)}")
    candidate = candidate_of(read_composed(preset), job.editor, str(preset))
    kept = Kept(state, job, checkpoint_digest(resolve_model(job.model)))
    model = load_model(job.model, dtype=job.dtype, digest=kept.digest)
    facts = facts_of(model)[-MOST_FACTS:]
    bench = bench_of(model, job, kept, sorted(candidate["layers"]), display)
    result = kept.trial(candidate, [fact.request.id for fact in facts], lambda: bench.attempt(candidate, facts))
    if result.problem is not None:
        raise UserError(f"preset {str(preset)!r} on {job.model!r}: {result.problem}")
    return with_figures(preset.read_text(encoding="utf-8"), job, result)


def candidate_of(preset: Mapping[str, Any], editor: str, name: str) -> Candidate:
    """A preset's settings as a point that can be tried, with the editor's own of it."""
    section = for_editor(preset, editor).get("editor") or {}
    if not section.get("layers"):
        raise UserError(f"preset {name!r} has no editor.layers")
    plain = {key: value for key, value in section.items() if key not in ("type", "values")}
    return {**plain, **{f"values.{key}": value for key, value in (section.get("values") or {}).items()}}


def with_figures(text: str, job: Calibration, result: TrialResult) -> str:
    """A preset's text with a key ``measured``, in place of an older one."""
    figures = {
        "editor": job.editor,
        "edits": result.edits,
        "efficacy": round(result.efficacy, 3),
        "paraphrase": round(result.paraphrase, 3),
        "locality": round(result.locality, 3),
        "perplexity": None if result.perplexity is None else round(result.perplexity, 3),
        "seconds_per_edit": round(result.edit_seconds, 1),
    }
    told = f"{_TOLD}, and a covariance of {job.tokens} tokens\n"
    block = told + yaml.safe_dump({"measured": figures}, sort_keys=False)
    plain = re.sub(rf"(?m)(?:^{re.escape(_TOLD)}.*\n)?^measured:\n(?:^[ \t]+.*\n)*", "", text)
    place = re.search(r"(?m)^(# what the model is recogni[sz]ed by|matches:)", plain)
    at = place.start() if place else len(plain)
    return plain[:at] + block + plain[at:]
