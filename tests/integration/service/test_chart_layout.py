"""Charts in a headless browser: no label lies on another, none is cut off, and no mark stands outside the plot."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from errata.orchestrator.report import charts, render_report
from tests.helpers.charts import contrast
from tests.helpers.sample_report import SAMPLE_YAML, sample_facts, sample_summary

pytest.importorskip("playwright")

RECORD = """
() => {
  const proto = CanvasRenderingContext2D.prototype;
  const add = (context, kind, left, top, right, bottom, text) => {
    const m = context.getTransform();
    if (m.b && m.a) return;  // slanted names
    const corners = [[left, top], [right, top], [left, bottom], [right, bottom]];
    const at = corners.map(([x, y]) => m.transformPoint({ x, y }));
    const xs = at.map((p) => p.x), ys = at.map((p) => p.y), box = [xs, ys].map((all) => Math.min(...all));
    (context.canvas.drawn ??= []).push([kind, text, ...box, Math.max(...xs), Math.max(...ys)]);
  };
  const { clearRect, fillText, arc } = proto;
  proto.clearRect = function (...all) { this.canvas.drawn = []; return clearRect.apply(this, all); };
  proto.fillText = function (text, x, y) {
    const { actualBoundingBoxLeft: left, actualBoundingBoxRight: right, actualBoundingBoxAscent: up,
      actualBoundingBoxDescent: down } = this.measureText(text);
    add(this, "text", x - left, y - up, x + right, y + down, text);
    return fillText.call(this, text, x, y);
  };
  proto.arc = function (x, y, r, ...rest) {
    add(this, "mark", x - r, y - r, x + r, y + r, "");
    return arc.call(this, x, y, r, ...rest);
  };
}
"""
DRAW = """
async (specs) => {
  const nodes = specs.map((spec) => {
    const node = document.createElement("div");
    node.className = "chart";
    document.body.append(node);
    Charts.draw(node, spec);
    return node;
  });
  await new Promise((done) => setTimeout(done, 0));  // it draws when the script has ended
  return nodes.map((node) => {
    const { drawn, width, height } = node.querySelector("canvas");
    return { drawn, width, height, plot: node.chart.bbox };
  });
}
"""
ARMS = {"base": "unedited", "memory": "memory", "edited_memory": "both", "edited": "edited", "routed": "routed"}
PERCENT = {"digits": 0, "scale": 100, "suffix": "%"}
COUNT = {"digits": 0}
REFRESH = {"label": "refresh", "short": "r", "detail": ""}
BEGIN = 1_796_000_000


def arms(*steps: int, value: float = 1.0) -> dict[str, Any]:
    """All arms with one curve, from zero on: their marks are all at the same places."""
    series = [
        {"style": arm, "label": label, "points": [[x, value * bool(x)] for x in steps]} for arm, label in ARMS.items()
    ]
    # rings are drawn as arcs, which the test records
    return {
        "series": [{**one, "style": f"c{n} ring"} for n, one in enumerate(series)],
        "range": [0, 1],
        "form": PERCENT,
    }


def times(*seconds: float) -> dict[str, Any]:
    points = [[BEGIN + second, n] for n, second in enumerate(seconds)]
    return {"series": [{"style": "count", "label": "edits", "points": points}], "form": COUNT, "time": True}


SPECS: dict[str, dict[str, Any]] = {
    "a few edits": arms(0, 4, 8, 12, 16),
    "four": {**arms(0, 1, 2, 3, 4), "labels": False},
    "hundred": {**arms(0, 51, 102), "events": [{**REFRESH, "x": x} for x in (50, 60)]},
    "long names": {**arms(0, 4), "series": [{**arms(0, 4)["series"][0], "label": "a method with a very long name"}]},
    "thousands": {**arms(0, 2500, 5000, 7500, 10000), "xLabel": "edits applied", "yLabel": "share"},
    "a second": times(0, 0.4, 1),
    "a minute": times(0, 20, 61),
    "minutes": times(0, 100, 130, 220, 240),
    "half an hour": times(*range(0, 1800, 120)),
    "over midnight": times(*range(0, 40_000, 4000)),
    "days": times(*range(0, 300_000, 20_000)),
    "a year": times(*range(0, 30_000_000, 3_000_000)),
    "layers": {**arms(*range(30)), "tight": True, "spans": [{"low": 3.5, "high": 8.5, "label": "chosen layers 4-8"}]},
    "false alarms": {
        "series": [{"style": "c1 ring", "label": "missed", "points": [[0.01, 0.3], [0.05, 0.2], [0.2, 0.1]]}],
        "tight": True, "form": PERCENT, "x": PERCENT,
    },
    "nearly equal": {
        "series": [{"style": "c1 ring", "label": "p", "points": [[0, 29.27], [4, 29.26], [8, 29.35], [16, 29.41]]}],
        "form": {"digits": 1},
    },
    "powers of ten": {
        "series": [{"style": "c1 ring", "label": "l4", "points": [[10**n, 10 ** (4 - n)] for n in range(5)]}],
        "log": True, "labels": False, "form": {"digits": None}, "xLabel": "eigenvalue", "yLabel": "value",
    },
}  # fmt: skip


@pytest.mark.parametrize(("width", "ratio"), [(330, 1), (330, 2), (240, 1), (700, 1.5)])
def test_labels_are_whole_and_apart_and_marks_within_the_plot(browser: Any, width: int, ratio: float) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, device_scale_factor=ratio)
    page = context.new_page()
    page.set_content(f"<style>{charts.style()} body {{ margin: 0; }}</style><script>{charts.script()}</script>")
    page.evaluate(RECORD)
    found = page.evaluate(DRAW, list(SPECS.values()))
    context.close()
    for name, chart in zip(SPECS, found, strict=True):
        texts = [one for one in chart["drawn"] if one[0] == "text" and one[1]]
        assert len(texts) > 3, (name, texts)
        for _, text, left, top, right, bottom in texts:
            inside = left >= -1 and top >= -1 and right <= chart["width"] + 1 and bottom <= chart["height"] + 1
            assert inside, f"{name}: {text!r} is cut off at {width} px"
        for one, two in combinations(texts, 2):
            assert not overlap(one, two), f"{name}: {one[1]!r} lies on {two[1]!r} at {width} px"
        sides = [one[1] for one in texts if one[4] < chart["plot"]["left"] and one[1] != SPECS[name].get("yLabel")]
        assert len(sides) == len(set(sides)), f"{name}: marks of the y axis are called the same: {sides}"
        plot = chart["plot"]
        marks = [one for one in chart["drawn"] if one[0] == "mark"]
        assert marks, name
        for _, _, left, _, right, _ in marks:
            inside = left >= plot["left"] - 1 and right <= plot["left"] + plot["width"] + 1
            assert inside or SPECS[name].get("log"), f"{name}: a mark at {left:.0f} is outside the plot at {width} px"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_of_every_color_can_be_read(browser: Any, scheme: str) -> None:
    """The names at the ends of lines, by WCAG's 4.5 to 1 against the paper; lines themselves may be fainter."""
    context = browser.new_context(viewport={"width": 600, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_content(f"<style>{charts.style()}</style><script>{charts.script()}</script>")
    page.evaluate("() => { const paint = CanvasRenderingContext2D.prototype.fillText; window.inks = {};"
                  " CanvasRenderingContext2D.prototype.fillText = function (text, ...at)"
                  " { window.inks[text] = this.fillStyle; return paint.call(this, text, ...at); }; }")  # fmt: skip
    names = [*ARMS, *(f"c{n}" for n in range(10)), *(f"shade{n}" for n in range(5)), "ike", "ike_oracle", "count"]
    specs = [
        {"series": [{"style": name, "label": name, "points": [[0, 0], [4, 1]]}], "form": COUNT, "range": [0, 1]}
        for name in names
    ]
    page.evaluate(DRAW, specs)
    inks = page.evaluate("window.inks")
    paper = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--chart-paper').trim()")
    context.close()
    faint = {name: round(contrast(inks[f"{name} 1"], paper), 2) for name in names}
    assert {name: found for name, found in faint.items() if found < 4.5} == {}


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_report_is_no_wider_than_its_screen(browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(render_report(sample_summary(), sample_facts(3), SAMPLE_YAML))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rows = page.locator(".arms tbody tr:not(.group)").all()
    heads = page.locator(".arms thead .arm-name").count()
    tops = [{round(cell.bounding_box()["y"]) for cell in row.locator("td").all()} for row in rows]
    assert heads >= 4 and all(len(of) == 1 for of in tops), "the arms of a metric stand beside each other"
    page.close()


def overlap(one: list[Any], two: list[Any]) -> bool:
    return bool(one[2] < two[4] and two[2] < one[4] and one[3] < two[5] and two[3] < one[5])
