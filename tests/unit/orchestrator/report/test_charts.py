"""What pages are drawn by: spans of layers, and the pages of a tracing and of a calibration."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from errata.editing.tracing import ClassEffect, Trace, TracingConfig
from errata.orchestrator.calibrate.halving import Ranked
from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.page import render_calibration
from errata.orchestrator.calibrate.trial import TrialResult
from errata.orchestrator.report.charts import Span, spans_of
from errata.orchestrator.report.locate_page import render_trace
from errata.orchestrator.report.pages import asset
from tests.helpers.charts import charts_of, contrast

MODEL = "/srv/models/gemma-3-270m"


class Charts(HTMLParser):
    """What a page fetches from elsewhere, and the descriptions of its charts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found = charts_of(html)
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([], []),
        ([0], [Span(-0.5, 0.5, "layer 0")]),
        ([3, 4, 5], [Span(2.5, 5.5, "layers 3-5")]),
        ([7, 2, 3, 3], [Span(1.5, 3.5, "layers 2-3"), Span(6.5, 7.5, "layer 7")]),
    ],
)
def test_layers_are_shaded_by_unbroken_runs(layers: list[int], wanted: list[Span]) -> None:
    assert spans_of(layers, "layer") == wanted


def trace(**effects: ClassEffect) -> Trace:
    return Trace(
        model=MODEL,
        digest="d",
        layers=3,
        config=TracingConfig(window=2),
        noise_std=0.1,
        valid=2,
        effects=effects,
        window=(1, 2),
        window_sum=0.9,
        prompts=(),
    )


def test_a_tracing_is_a_page_with_its_layers_shaded() -> None:
    last = ClassEffect(prompts=2, mean=(0.1, 0.4, 0.5), error=(0.01, 0.02, 0.03))
    html = render_trace(trace(subject_last=last, last=ClassEffect(prompts=2, mean=(0.0, 0.2, 0.9), error=None)))
    page = Charts(html)
    by_layer, by_class = page.found
    assert by_layer["series"][0]["points"] == [[0, 0.1], [1, 0.4], [2, 0.5]]
    assert by_layer["series"][0]["spread"][2] == pytest.approx([0.47, 0.53])
    assert by_layer["spans"] == [{"low": 0.5, "high": 2.5, "label": "chosen layers 1-2"}]
    assert [one["label"] for one in by_class["series"]] == ["last subject token", "last token"]
    assert "gemma-3-270m" in html and MODEL not in html and page.outside == []
    assert html == render_trace(trace(subject_last=last, last=ClassEffect(prompts=2, mean=(0.0, 0.2, 0.9), error=None)))


def test_a_tracing_of_one_class_has_one_chart_and_one_without_a_prompt_none() -> None:
    alone = trace(subject_last=ClassEffect(prompts=1, mean=(0.1, 0.4, 0.5), error=None))
    assert len(Charts(render_trace(alone)).found) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        render_trace(trace())


def test_profiles_of_several_models_lie_over_each_other() -> None:
    """MOIR, figure 9: base beside instruct; of two that are called alike the digest tells which."""
    first = trace(subject_last=ClassEffect(prompts=2, mean=(0.1, 0.4, 0.5), error=(0.01, 0.02, 0.03)))
    shorter = first.model_copy(
        update={
            "model": "/one/other-base",
            "layers": 2,
            "valid": 7,
            "effects": {"subject_last": ClassEffect(prompts=7, mean=(0.3, 0.2), error=None)},
        }
    )
    again = first.model_copy(update={"model": "/two/other-base", "digest": "0123456789ab"})
    html = render_trace(first, [shorter, again])
    (chart, *_) = Charts(html).found
    own, second, third = chart["series"]
    assert own["points"] == [[0, 0.1], [1, 0.4], [2, 0.5]] and second["points"] == [[0, 0.3], [1, 0.2]]
    assert [own["label"], second["label"], third["label"]] == [
        "gemma-3-270m",
        "other-base (d)",
        "other-base (01234567)",
    ]
    assert own["spread"] and not second.get("spread") and len({own["style"], second["style"], third["style"]}) == 3
    assert "other-base (d) (7)" in html and len(chart["spans"]) == 1


def test_a_calibration_draws_the_effects_as_bars(tmp_path: Path) -> None:
    result = TrialResult(edits=4, efficacy=1.0, paraphrase=0.5, locality=0.25, perplexity=1.01, edit_seconds=0.5)
    ranked = [Ranked({"layers": [1, 2], "lr": 0.5}, 4, result), Ranked({"layers": [0], "lr": 0.5}, 4, result)]
    html = render_calibration(Calibration(model=MODEL), (0.1, 0.4, 0.5), ranked, result, "model:\n")
    (chart,) = Charts(html).found
    assert chart["bars"] and chart["series"][0]["points"] == [[0, 0.1], [1, 0.4], [2, 0.5]]
    assert chart["spans"] == [{"low": 0.5, "high": 2.5, "label": "chosen layers 1-2"}]
    assert MODEL not in html and "gemma-3-270m" in html


def test_every_line_stands_out_from_its_paper_in_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    schemes = asset("report", "colors.css").split("@media")
    assert len(schemes) == 2
    for scheme in schemes:
        named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        assert len(named) > 20
        lines = {name: color for name, color in named.items() if name not in ("chart-rule", "chart-paper")}
        faint = {name: color for name, color in lines.items() if contrast(color, named["chart-paper"]) < 3}
        assert faint == {}
