"""What a calibration tried, as one self-contained HTML page: layers, settings, and why the winner won."""

from __future__ import annotations

from collections.abc import Sequence

from errata.editing.wording import counted, model_title
from errata.orchestrator.calibrate.halving import Ranked
from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.trial import TrialResult
from errata.orchestrator.report.charts import Form, Series, chart_page, line_chart, spans_of


def render_calibration(
    job: Calibration, effects: Sequence[float], ranked: Sequence[Ranked], final: TrialResult, preset: str
) -> str:
    """The whole page, to be written as UTF-8."""
    keys = list(ranked[0].candidate)
    return chart_page(
        "calibrate",
        "page.html.j2",
        job=job,
        model=model_title(job.model),
        keys=keys,
        effects=line_chart(
            "Indirect effect by layer",
            [Series("c2", "effect", tuple(enumerate(effects)))],
            form=Form(3),
            tick=Form(2),
            spans=spans_of(ranked[0].candidate["layers"], "chosen layer"),
            bars=True,
            x_label="layer",
            y_label="indirect effect",
            labels=False,
        ),
        ranked=ranked,
        why=why(ranked),
        final=final,
        preset=preset,
    )


def why(ranked: Sequence[Ranked]) -> list[str]:
    """What each setting of the winner was worth: the best of the others with another value there, on as many edits."""
    best, said = ranked[0], []
    for key, value in best.candidate.items():
        others = [one for one in ranked[1:] if one.candidate[key] != value]
        if not others:
            said.append(f"{key} = {value}: nothing else was tried.")
            continue
        rival = max(others, key=lambda one: (one.edits, one.result.score))
        own, other = best.result.score, rival.result.score
        figure = f"score {other:.3f} on {counted(rival.edits, 'fact')}, the winner's is {own:.3f} on {best.edits}"
        said.append(f"{key} = {value}: the best with another value ({rival.candidate[key]}) has {figure}.")
    return said
