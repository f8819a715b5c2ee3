"""The report: complete, escaped, self-contained, and calm about whatever is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from errata.orchestrator.report import render_report
from errata.orchestrator.report.charts import PERCENT, Event, Form, Series, line_chart, script
from errata.orchestrator.report.facts import fact_view
from errata.orchestrator.report.formats import DASH, MINUS, change, duration, moment, number, percent, short_digest
from errata.orchestrator.report.summary import FactRecord, Summary
from errata.orchestrator.report.wording import GENERATED, TEACHER_FORCED, shown
from tests.helpers.sample_report import SAMPLE_YAML, sample_facts, sample_summary

VOID = {"meta", "input", "br", "link", "img", "hr"}
SVG_LEAVES = {"line", "rect", "path", "circle"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES | VOID, f"<{tag}/> does not close itself in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def count(self, tag: str, css: str) -> int:
        return sum(name == tag and css in (attrs.get("class") or "").split() for name, attrs in self.tags)


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(sample_summary(), sample_facts(24), SAMPLE_YAML)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_sample_is_what_a_run_writes() -> None:
    Summary.model_validate(sample_summary())
    for fact in sample_facts(8):
        FactRecord.model_validate(fact)


def test_page_is_one_well_formed_document(html: str, page: Page) -> None:
    assert html.startswith("<!doctype html>")
    assert [name for name, _ in page.tags].count("main") == 1
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    targets = {attrs["href"] for name, attrs in page.tags if name == "a"}
    assert targets <= {f"#{identifier}" for identifier in identifiers}


def test_every_metric_of_every_arm_is_shown(page: Page) -> None:
    arms = sample_summary()["arms"]
    for arm in shown(arms):
        for metric in (*GENERATED, *TEACHER_FORCED):
            assert percent(arms[arm.key][metric.key]) in page.text, f"{arm.key} {metric.key}"
        assert duration(arms[arm.key]["query_seconds"]) in page.text


@pytest.mark.parametrize(
    "shown",
    [
        "130", "in 13 batches, 2 failed", "873 ms", "6 min 48 s", "+4.3%", "from 29.87 to 31.16",  # cards
        "SmolLM2-135M-Instruct", "AlphaEdit", "2026-03-14 09:26 UTC", "estimated anew twice",
        "6.4%", "89.7%", "7.0%", "88.2%",  # choices of nothing
        "12,000", "41.7 s", "39.2 s", "in use from edit 60, 90",  # refreshes
        "2 min 02 s", "2 min 19 s", "1 min 54 s",  # stages
        "quick-0131", "target_new is empty",  # failures
        "layers: [4, 5, 6, 7, 8]",  # configuration
        "asked about a sample of 24 updates", "24 questions", "72 questions",
    ],
)  # fmt: skip
def test_number_is_shown(page: Page, shown: str) -> None:
    assert shown in page.text


def test_a_run_with_the_routed_arm_shows_it_first_and_one_without_has_no_column_of_it() -> None:
    summary, facts = sample_summary(), sample_facts(3)
    assert Page(render_report(summary, facts, "")).count("span", "routed") == 0
    summary["arms"]["routed"] = dict(summary["arms"]["edited_memory"])
    for fact in facts:
        for probe in fact["probes"]:
            probe["arms"]["routed"] = dict(probe["arms"]["edited_memory"])
    page = Page(render_report(summary, facts, ""))
    chips = [attrs["class"] for name, attrs in page.tags if name == "span" and "chip" in (attrs.get("class") or "")]
    assert chips[0] == "chip routed" and len(set(chips)) == 5


def test_every_answer_is_shown_with_a_verdict_that_needs_no_color(page: Page) -> None:
    facts = sample_facts(24)
    answers = [arm for fact in facts for probe in fact["probes"] for arm in probe["arms"].values()]
    assert page.count("div", "reply") == len(answers)
    assert page.count("div", "good") == sum(answer["ok"] for answer in answers)
    marks = page.text.count("\u2713"), page.text.count("\u2717")
    assert marks == (page.count("div", "good"), page.count("div", "bad"))
    spoken = sum(page.text.count(f"({word})") for word in ("right", "wrong", "changed", "unchanged"))
    assert spoken == len(answers)


def test_charts_mark_refreshes_and_say_what_they_show(html: str, page: Page) -> None:
    charts = [attrs for _, attrs in page.tags if "data-chart" in attrs]
    assert len(charts) == 12
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    drawn = [json.loads(attrs["data-chart"] or "") for attrs in charts]
    assert all(len(chart["events"]) == 2 for chart in drawn)
    assert "triggered at edit 40, in use from edit 60" in drawn[0]["events"][0]["detail"]
    labels = [attrs["aria-label"] or "" for attrs in charts]
    assert any("Perplexity" in label and "Edited 31.2" in label for label in labels)


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    assert not {"link", "img", "iframe", "object", "embed"} & {name for name, _ in page.tags}
    assert not any("src" in attrs or "srcset" in attrs for _, attrs in page.tags)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {{ 7 * 7 }} \x00\x1b"


def _poisoned(value: Any, key: str = "") -> Any:
    """The same structure with every text made hostile; the words that the format itself fixes stay."""
    if isinstance(value, dict):
        return {name: _poisoned(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_poisoned(entry, key) for entry in value]
    return value + HOSTILE if isinstance(value, str) and key != "kind" else value


def test_hostile_text_stays_text(html: str, page: Page) -> None:
    summary = _poisoned(sample_summary())
    summary["timeline"][-1]["norms"] = {f"9{HOSTILE}": 1.0}
    poisoned = render_report(summary, _poisoned(sample_facts(24)), SAMPLE_YAML + HOSTILE)
    found = Page(poisoned)
    assert poisoned.count("<script>") == 1
    assert "img" not in {name for name, _ in found.tags}
    assert not any(attribute.startswith("on") for _, attrs in found.tags for attribute in attrs)
    assert "<script>alert(1)</script>" in found.text, "hostile text is to be shown as it is"
    assert "{{ 7 * 7 }}" in found.text


def test_run_without_evaluations_or_facts() -> None:
    summary = sample_summary() | {"timeline": [], "refresh_events": [], "failures": [], "refreshes": 0}
    page = Page(render_report(summary, [], SAMPLE_YAML))
    assert not any("data-chart" in attrs for _, attrs in page.tags)
    assert "Fact by fact" not in page.text
    assert "Every record of the stream was applied." in page.text
    assert "The covariance was not refreshed during this run." in page.text


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _emptied(entry) for name, entry in value.items()}
    return [_emptied(entry) for entry in value] if isinstance(value, list) else None


@pytest.mark.parametrize("nothing", [{}, _emptied(sample_summary()), dict.fromkeys(sample_summary())])
def test_missing_values_are_dashes(nothing: dict[str, Any]) -> None:
    page = Page(render_report(nothing, [_emptied(sample_facts(1)[0]), {}], ""))
    cells = len(shown(())) * (len(GENERATED) + len(TEACHER_FORCED) + 1)
    assert page.text.count(DASH) >= cells
    assert "None" not in page.text and "nan" not in page.text.split()


def test_single_null_leaves_a_dash_and_a_gap(html: str) -> None:
    summary = sample_summary()
    summary["arms"]["memory"]["portability"] = None
    summary["arms"]["edited"]["efficacy"] = float("nan")
    for point in summary["timeline"][1:3]:
        point["arms"]["edited"]["reliability"] = None
    changed = render_report(summary, sample_facts(24), SAMPLE_YAML)
    assert Page(changed).text.count(DASH) == Page(html).text.count(DASH) + 2 + 2
    assert "nan" not in changed.lower().split()


def test_long_runs_list_the_first_facts_and_say_so() -> None:
    page = Page(render_report(sample_summary(), sample_facts(12), SAMPLE_YAML, most_facts=5))
    assert page.count("tr", "fact") == 5
    assert "The first 5 of 12 facts" in page.text


def test_same_input_gives_the_same_page(html: str) -> None:
    assert render_report(sample_summary(), sample_facts(24), SAMPLE_YAML) == html


def test_fact_tags_name_what_went_wrong() -> None:
    def probe(kind: str, **oks: bool) -> dict[str, Any]:
        arms = {arm: {"answer": "x", "ok": ok} for arm, ok in oks.items()}
        return {"kind": kind, "prompt": "p", "expected": ["x"], "arms": arms}

    fact = fact_view({
        "subject": "Oslo", "prompt": "{} lies in", "target_new": "Chad", "target_true": "Norway",
        "probes": [
            probe("neighborhood", base=True, edited=False, memory=True, edited_memory=True),
            probe("edit", base=False, edited=True, memory=False, edited_memory=True),
        ],
    })  # fmt: skip
    assert fact.prompt == "Oslo lies in"
    assert fact.tags.split() == ["memory-wrong", "disagree", "side-effect"]
    assert fact.main is not None and fact.main.kind == "edit"
    assert [answer.verdict for answer in fact.others[0].answers] == ["unchanged", "changed", "unchanged", "unchanged"]


def test_memory_that_chose_nothing_differs_from_memory_that_found_nothing() -> None:
    arms = {
        "memory": {
            "answer": "x",
            "ok": True,
            "chosen": None,
            "reason": "none fits",
            "retrieved": ["a", {"statement": "b", "score": 0.5}],
        },
        "edited_memory": {"answer": "x", "ok": True, "chosen": None, "retrieved": []},
    }
    probes = [{"kind": "edit", "prompt": "s is", "arms": arms}]
    facts = [{"subject": "s", "prompt": "s is", "target_new": "x", "probes": probes}]
    text = Page(render_report({}, facts, "")).text
    assert "chose none of 2 a b 0.50 none fits" in text
    assert "retrieved nothing" in text


def spec_of(markup: str) -> dict[str, Any]:
    (found,) = [attrs["data-chart"] for _, attrs in Page(markup).tags if "data-chart" in attrs]
    return dict(json.loads(found or ""))


def test_what_was_not_measured_is_a_gap_in_a_line_and_no_line_at_all_is_no_chart() -> None:
    points = ((0, 1.0), (1, float("nan")), (2, None), (3, 1.5))
    chart = spec_of(line_chart("t", [Series("edited", "E", points), Series("base", "B", ((0, None),))]))
    assert [one["label"] for one in chart["series"]] == ["E"]
    assert chart["series"][0]["points"] == [[0, 1.0], [1, None], [2, None], [3, 1.5]]
    assert line_chart("t", [Series("edited", "E", ((0, None),))]) == ""


def test_a_chart_says_in_words_what_it_shows() -> None:
    (attrs,) = [a for _, a in Page(line_chart("T", [Series("edited", "E\x1b<b>", ((0, 0.5),))], form=PERCENT)).tags]
    assert attrs["aria-label"] == "T over edits applied. At the end: E\N{REPLACEMENT CHARACTER}<b> 50%."
    assert attrs["role"] == "img"


def test_values_are_written_as_the_script_writes_them() -> None:
    assert [PERCENT.text(v) for v in (0.256, 1.0)] == ["26%", "100%"]
    change = Form(1, 100.0, "%", sign=True)
    assert [change.text(v) for v in (0.0123, -0.2, 0.0)] == ["+1.2%", f"{MINUS}20.0%", "0.0%"]
    assert Form(None).text(0.012345) == "0.0123" and Form(0).text(12345) == "12,345"


def test_the_engine_comes_with_its_license_and_without_addresses() -> None:
    assert "Copyright (c) 2022 Leon Sorokin" in script() and "uPlot=function" in script()
    assert "</script" not in script() and "://" not in script()


def test_close_events_keep_a_short_label() -> None:
    events = [Event(x, f"refresh {index}", str(index), f"d{index}") for index, x in ((1, 50), (2, 70), (3, 71))]
    chart = spec_of(line_chart("t", [Series("edited", "E", ((0, 1.0), (100, 2.0)))], events=events))
    assert [(one["x"], one["short"], one["detail"]) for one in chart["events"]] == [
        (50, "1", "d1"), (70, "2", "d2"), (71, "3", "d3")
    ]  # fmt: skip


def test_the_first_card_shows_what_the_edits_gave_and_what_they_cost(page: Page) -> None:
    arms = sample_summary()["arms"]
    for arm in ("edited", "memory"):
        for key in ("reliability", "locality"):
            assert f"{100 * arms[arm][key]:.1f}%" in page.text
    assert page.count("span", "what") == 2 * 4 and page.text.count("neighbors kept") == 4


def test_formats() -> None:
    assert [duration(value) for value in (0.0042, 0.873, 1.5, 59.97, 408.31, 3599.7, 7380, None, -1)] == [
        "4.2 ms", "873 ms", "1.50 s", "1 min 00 s", "6 min 48 s", "1 h 00 min", "2 h 03 min", DASH, DASH,
    ]  # fmt: skip
    assert [percent(value) for value in (0.9462, 1)] == ["94.6%", "100.0%"]
    assert {percent(value) for value in (None, float("nan"), True, "x")} == {DASH}
    assert change(29.0, 30.0) == "\u22123.3%" and change(1.0, 0.0) == DASH and change(None, 1) == DASH
    assert moment("2026-03-14T10:26:53+01:00") == "2026-03-14 09:26 UTC"
    assert (moment("soon"), moment(None), moment(0)) == ("soon", DASH, "1970-01-01 00:00 UTC")
    assert short_digest("sha256:" + "a" * 64, 8) == "aaaaaaaa" and short_digest(None) == DASH
    assert number(float("inf")) is None and number(3) == 3.0
