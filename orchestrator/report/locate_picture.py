"""The picture of a causal tracing: the effect by layer at the subject's last token, and by class of token."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from errata.editing.tracing import CLASSES, Trace
from errata.editing.wording import counted

LABELS = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "first_after": "first token after it",
    "further": "further tokens",
    "last": "last token",
}


def draw(trace: Trace, path: Path) -> list[Path]:
    """Write the picture beside ``path`` as PNG and SVG.

    Raises:
        ValueError: no prompt counted, so that there is nothing to draw.
    """
    if "subject_last" not in trace.effects:
        raise ValueError("no prompt counts; there is nothing to draw")
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    # a fixed salt and no date: the same tracing gives the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "errata", "font.size": 10}):
        figure = _figure(trace)
        figure.savefig(written[0], dpi=150)
        figure.savefig(written[1], metadata={"Date": None})
    return written


def _figure(trace: Trace) -> Figure:
    classes = [name for name in CLASSES if name in trace.effects]
    width = max(7.0, 2.5 + 0.2 * trace.layers)
    if len(classes) == 1:
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        _by_layer(figure.subplots(), trace)
    else:
        figure = Figure(figsize=(width, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _by_layer(upper, trace)
        upper.set_xlabel("")
        _by_class(figure, lower, trace)
    what = "hidden state" if trace.config.kind == "hidden" else f"outputs of {trace.config.span} MLPs"
    figure.suptitle(
        f"{Path(trace.model).name}: {what} restored, {trace.valid} of {counted(len(trace.prompts), 'prompt')}, "
        f"{trace.config.draws} draws of noise",
        fontsize=11,
    )
    return figure


def _by_layer(axes: Axes, trace: Trace) -> None:
    effect = trace.effects["subject_last"]
    layers = list(range(trace.layers))
    if trace.window is not None:
        first, last = trace.window[0], trace.window[-1]
        label = f"chosen layers {first}-{last}" if first != last else f"chosen layer {first}"
        axes.axvspan(first - 0.5, last + 0.5, color="#f2d9a6", label=label, zorder=0)
    axes.axhline(0, color="#999999", linewidth=0.8)
    if effect.error is not None:
        low = [m - e for m, e in zip(effect.mean, effect.error, strict=True)]
        high = [m + e for m, e in zip(effect.mean, effect.error, strict=True)]
        axes.fill_between(layers, low, high, color="#2b6cb0", alpha=0.25, linewidth=0, label="± standard error")
    axes.plot(layers, effect.mean, color="#2b6cb0", marker="o", markersize=3.5, label="mean")
    axes.set_title("last subject token", fontsize=10, loc="left")
    axes.set_ylabel("indirect effect")
    axes.set_xlabel("layer")
    axes.set_xlim(-0.5, trace.layers - 0.5)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _by_class(figure: Figure, axes: Axes, trace: Trace) -> None:
    classes = [name for name in CLASSES if name in trace.effects]
    values = [trace.effects[name].mean for name in classes]
    bound = max(abs(v) for row in values for v in row) or 1.0
    image = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    axes.set_yticks(range(len(classes)), [f"{LABELS[n]} ({trace.effects[n].prompts})" for n in classes])
    axes.set_xlabel("layer")
    figure.colorbar(image, ax=axes, label="mean indirect effect", pad=0.01)
