"""A causal tracing as one self-contained HTML page: the effect by layer, and by class of token."""

from __future__ import annotations

from collections.abc import Sequence

from errata.editing.tracing import CLASSES, Trace
from errata.editing.wording import counted, model_title
from errata.orchestrator.report.charts import Form, Series, chart_page, key, line_chart, spans_of

LABELS = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "first_after": "first token after it",
    "further": "further tokens",
    "last": "last token",
}
_EFFECT = Form(2)


def _profiles(traces: Sequence[Trace]) -> list[tuple[str, str, tuple[float, ...]]]:
    """Style, name and mean effect by layer of each tracing; names that two share are told apart by their digests."""
    names = [model_title(trace.model) for trace in traces]
    found = []
    for place, (trace, name) in enumerate(zip(traces, names, strict=True)):
        shown = name if names.count(name) == 1 else f"{name} ({trace.digest[:8]})"
        found.append((f"c{3 + place % 6} dashed", shown, tuple(trace.effects["subject_last"].mean)))
    return found


def render_trace(trace: Trace, beside: Sequence[Trace] = ()) -> str:
    """The whole page, to be written as UTF-8; the same for the same tracing.

    Args:
        beside: other models' tracings, whose profiles are laid over this one's (MOIR, figure 9).

    Raises:
        ValueError: no prompt counted, so that there is nothing to draw.
    """
    if "subject_last" not in trace.effects or trace.window is None:
        raise ValueError("no prompt counts; there is nothing to draw")
    effect = trace.effects["subject_last"]
    own, others = model_title(trace.model), _profiles(beside)
    spread = None
    if effect.error is not None:
        spread = tuple((m - e, m + e) for m, e in zip(effect.mean, effect.error, strict=True))
    by_layer = line_chart(
        "Indirect effect at the last subject token",
        [Series("c2", own if beside else "mean", tuple(enumerate(effect.mean)), spread)]
        + [Series(style, label, tuple(enumerate(mean))) for style, label, mean in others],
        form=_EFFECT,
        spans=spans_of(trace.window, "chosen layer"),
        x_label="layer",
        y_label="indirect effect",
        tight=True,
        labels=False,
    )
    names = [name for name in CLASSES if name in trace.effects]
    styles = {name: f"c{2 + place}" for place, name in enumerate(names)}
    by_class = line_chart(
        "Indirect effect by class of token",
        [Series(styles[name], LABELS[name], tuple(enumerate(trace.effects[name].mean))) for name in names],
        form=_EFFECT,
        x_label="layer",
        y_label="indirect effect",
        tight=True,
        labels=False,
    )
    return chart_page(
        "report",
        "locate.html.j2",
        trace=trace,
        model=own,
        profiles=[("c2", own, trace.valid)]
        + [(s, name, t.valid) for (s, name, _), t in zip(others, beside, strict=True)],
        what="hidden states" if trace.config.kind == "hidden" else f"outputs of {trace.config.span} MLPs",
        asked=counted(len(trace.prompts), "prompt"),
        chosen=spans_of(trace.window, "layer")[0].label,
        sure=effect.error is not None,
        by_layer=by_layer,
        by_class=by_class if len(names) > 1 else "",
        classes=[(styles[name], LABELS[name], trace.effects[name].prompts) for name in names],
        rows=[
            (layer, [trace.effects[name].mean[layer] for name in names], (effect.error or effect.mean)[layer])
            for layer in range(trace.layers)
        ],
        key=key,
    )
