"""The page in a headless browser: one can run a service from it, and nothing that came as data runs on it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import ErrataError
from errata.evaluation.outcomes import ARMS
from tests.helpers.browser import listening, serious
from tests.helpers.service import ADMIN, READ, TOKENS, Running, bearer, edit, running

pytest.importorskip("playwright")

PAGE = Path(__file__).parents[3] / "orchestrator" / "service" / "page"
EVIL = "<img src=x onerror=document.title='broken'>"


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which an error of a script is an error of the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    made = context.new_page()
    made.set_default_timeout(60_000)
    problems: list[str] = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
    yield made
    context.close()
    assert problems == []


def settled(run: Running) -> None:
    while run.journal.counts().accepted:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A service with some history behind it."""
    with running(tmp_path_factory.mktemp("page"), size=2) as run:
        run.client.post("/v1/edits", json=[edit(n, relation="lies in") for n in range(5)])
        run.client.post("/v1/edits", json=edit(5, subject=EVIL, prompt="{} lies in"))
        run.client.post("/v1/edits", json=edit(6, target_new="weakly Oslo"))
        run.client.post("/v1/edits", json=edit(7, target_new="refused Oslo"))
        settled(run)
        for edits in (0, 2, 4, 6):
            arms = {arm: {"efficacy": 0.1 * edits, "generalization": 0.5, "specificity": 0.9} for arm in ARMS}
            run.journal.record_evaluation("v" * 64, edits, "timeline", {"arms": arms, "facts": 3})
        with listening(run) as address:
            yield run, address


def shows(page: Any, count: int) -> None:
    """Wait until the list has so many edits; not by a script of the test's own, which the page's policy refuses."""
    found = page.locator("#edits tr")
    found.nth(count - 1).wait_for()
    found.nth(count).wait_for(state="detached")


def rows(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#edits tr td.fact > div").all_inner_texts()]


def test_an_edit_is_handed_in_lands_is_found_looked_at_and_taken_back(page: Any, served: tuple[Running, str]) -> None:
    run, address = served
    page.goto(address)
    page.locator("#state.running").wait_for()
    page.get_by_text("Hand in an edit").click()
    page.get_by_label("Subject", exact=True).fill("Mount Fuji")
    page.get_by_label("Prompt, with {}").fill("{} is located in")
    page.get_by_label("New answer").fill("Peru")
    page.get_by_label("Why", exact=True).fill("a test")
    page.get_by_role("button", name="Hand in").click()
    fact = page.locator("#edits tr", has_text="Mount Fuji is located in → Peru")
    fact.locator(".pill.applied").wait_for()
    # search
    page.get_by_label("Words").fill("fuji peru")
    page.get_by_role("button", name="Search").click()
    shows(page, 1)
    assert rows(page) == ["Mount Fuji is located in → Peru"]
    # its history, and back with a reason
    page.get_by_role("button", name="History of Mount Fuji is located in").click()
    drawer = page.get_by_role("dialog")
    drawer.get_by_text("a test").wait_for()
    assert "waiting" in drawer.locator(".history li").first.inner_text()
    drawer.get_by_label("Why it is taken back").fill("it was a test")
    drawer.get_by_role("button", name="Revert").click()
    fact.locator(".pill.reverted").wait_for()
    (row,) = run.journal.request_page(1, words="fuji")
    assert row.state == "reverted" and run.journal.fates(row.id)[-1].state == "reverted"
    story = run.client.get(f"/v1/edits/{row.id}").json()
    assert "it was a test" in str([story["reason"], *(fate["reason"] for fate in story["fates"])])


def test_filters_show_weak_and_rejected_edits_with_figures_and_reasons(page: Any, served: tuple[Running, str]) -> None:
    page.goto(served[1])
    page.locator("#state.running").wait_for()
    page.get_by_label("Outcome").select_option("weak")
    page.get_by_role("button", name="Search").click()
    shows(page, 1)
    assert rows(page) == ["Place 6 lies in → weakly Oslo"]
    page.locator("#edits .pill.weak").wait_for()
    page.get_by_role("button", name="History of Place 6").click()
    drawer = page.get_by_role("dialog")
    drawer.get_by_text("How it is weak").wait_for()
    assert "0.12" in drawer.inner_text() and "p_target" in drawer.inner_text()
    drawer.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("State").select_option("rejected")
    page.get_by_role("button", name="Search").click()
    shows(page, 1)
    page.get_by_text("the subject is not in the prompt").wait_for()
    assert rows(page) == ["Place 7 lies in → refused Oslo"]


def test_edits_of_a_relation_are_found_and_a_link_with_an_unknown_parameter_is_refused_in_words(
    page: Any, served: tuple[Running, str]
) -> None:
    page.goto(served[1])
    page.locator("#state.running").wait_for()
    search = page.get_by_role("search")
    search.get_by_label("Relation").fill("lies in")
    with page.expect_request(lambda one: "/v1/edits?" in one.url and "relation=" in one.url) as asked:
        search.get_by_role("button", name="Search").click()
    assert "relation=lies+in" in asked.value.url
    shows(page, 5)
    assert sorted(rows(page))[0] == "Place 0 lies in → Rome"
    # together with words, and cleared again
    search.get_by_label("Words").fill("Place 3")
    search.get_by_role("button", name="Search").click()
    shows(page, 1)
    assert rows(page) == ["Place 3 lies in → Rome"]
    search.get_by_role("button", name="Clear").click()
    page.locator("#edits tr").nth(5).wait_for()
    # a call that the page would make wrongly is refused, and the page says it
    page.evaluate("document.querySelector('#filter [name=relation]').name = 'relations'")
    search.get_by_label("Relation").fill("lies in")
    with page.expect_response(lambda one: "relations=" in one.url) as answered:
        search.get_by_role("button", name="Search").click()
    assert answered.value.status == 400
    page.get_by_text("there is no parameter 'relations' here").wait_for()


def test_all_ways_answer_routed_first_with_what_it_rests_on(page: Any, served: tuple[Running, str]) -> None:
    page.goto(f"{served[1]}/#ask=Place%201%20lies%20in")
    page.locator(".arm.routed").wait_for()
    boxes = page.locator("#answers article")
    names = [box.get_attribute("class") for box in boxes.all()]
    assert names[0] == "arm routed" and set(names) == {f"arm {arm}" for arm in ARMS}
    for arm in ARMS:
        assert f"{arm} says Place 1 lies in" in page.locator(f".arm.{arm}").inner_text()
    page.locator(".arm.routed .cited").get_by_role("button", name="edit-0").click()
    page.get_by_role("dialog").get_by_text("Place 0 lies in → Rome").wait_for()


def test_curves_evaluations_and_the_rest_are_there_and_data_never_runs(page: Any, served: tuple[Running, str]) -> None:
    page.goto(served[1])
    page.locator("#curves [role=img]").first.wait_for()
    page.locator("#router [role=img]").wait_for()
    sizes = {round(box.bounding_box()["width"]) for box in page.locator(".chart").all()}
    assert len(sizes) <= 2 and max(sizes) < 600, "charts have one size; a lone one does not fill the page"
    fields = page.locator("#filter input, #filter select, #filter button").all()
    assert len({(round(one.bounding_box()["y"]), round(one.bounding_box()["height"])) for one in fields}) == 1
    spoken = [one.get_attribute("aria-label") for one in page.locator("#curves [role=img]").all()]
    assert any("Efficacy over edits applied. At the end: both 60.0%" in text for text in spoken)
    colors = page.evaluate(
        "['routed','base','edited','memory','edited_memory'].map(a => getComputedStyle(document.documentElement)"
        ".getPropertyValue('--' + a).trim())"
    )
    assert colors == ["#8a2f8f", "#6c727d", "#1f63b5", "#b85a00", "#00735c"], "those of the report"
    assert "timeline" in page.locator("#evaluations").inner_text()
    for part, text in (
        ("#guard-note", "No guard"),
        ("#repairs", "Nothing was written again"),
        ("#refreshes", "not refr"),
    ):
        assert text in page.locator(part).inner_text()
    assert page.title() == "Errata" and EVIL in page.locator("#edits").inner_text()
    page.get_by_role("button", name="Evaluate a sample now").click()
    page.locator("#evaluations").get_by_text("asked for").wait_for()


def test_pause_and_resume_with_a_reason(page: Any, served: tuple[Running, str]) -> None:
    page.goto(served[1])
    page.locator("#state.running").wait_for()
    page.once("dialog", lambda dialog: dialog.accept("the annotators are at lunch"))
    page.get_by_role("button", name="Pause").click()
    page.locator("#state.paused").wait_for()
    assert "the annotators are at lunch" in page.locator("#about").inner_text()
    page.get_by_role("button", name="Resume").click()
    page.locator("#state.running").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(
    browser: Any, served: tuple[Running, str], width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    for path, there in (("/#ask=Place", ".arm.routed"), ("/docs", ".op")):
        page.goto(served[1] + path)
        page.locator(there).first.wait_for()
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.goto(served[1])
    page.get_by_role("button", name="History of Place 1").click()
    page.get_by_role("dialog").get_by_text("History", exact=True).wait_for()
    assert serious(page) == []
    context.close()


def test_calls_of_the_api_can_be_tried_without_a_network(page: Any, served: tuple[Running, str]) -> None:
    page.goto(f"{served[1]}/docs")
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(served[1]) else route.abort())
    card = page.locator(".op", has_text="/v1/edits/{id}").filter(has_text="GET").first
    card.get_by_text("Try it").click()
    card.locator("input[name=id]").fill("edit-1")
    card.get_by_role("button", name="Send GET").click()
    card.get_by_text('"subject": "Place 1"').wait_for()
    asked = page.locator(".op").filter(has=page.locator("code", has_text=re.compile("^/v1/query$")))
    asked.get_by_text("Try it").click()
    asked.locator("textarea").fill('{"question": "Place 1 lies in", "arms": ["base"]}')
    asked.get_by_role("button", name="Send POST").click()
    asked.get_by_text("base says Place 1 lies in").wait_for()


def test_buttons_are_those_of_the_role_and_without_a_token_nothing_is_shown(page: Any, tmp_path: Path) -> None:
    with running(tmp_path, tokens=TOKENS) as run:
        run.client.post("/v1/edits", json=edit(1), headers=bearer(ADMIN))
        with listening(run) as address:
            page.goto(address)
            page.get_by_label("This service answers to bearer tokens").wait_for()
            assert "Place 1" not in page.locator("body").inner_text()
            page.locator("#token").fill(READ)
            page.get_by_role("button", name="Use").click()
            page.locator("#edits tr").wait_for()
            for name in ("Pause", "Evaluate a sample now", "Refresh now", "Publish"):
                assert not page.get_by_role("button", name=name, exact=True).is_visible(), name
            page.get_by_role("button", name="History of Place 1").click()
            page.get_by_role("dialog").get_by_text("History", exact=True).wait_for()
            assert not page.get_by_role("button", name="Revert").is_visible()
            page.get_by_role("button", name="Close").click()
            page.get_by_role("button", name="Forget token").click()
            page.locator("#token").wait_for()
            page.locator("#token").fill(ADMIN)
            page.get_by_role("button", name="Use").click()
            page.get_by_role("button", name="Pause").wait_for()


def test_a_service_that_starts_says_what_it_is_at(page: Any, tmp_path: Path) -> None:
    def held(pipeline: Any) -> None:
        pipeline.start_gate.clear()

    with running(tmp_path, prepare=held) as run, listening(run) as address:
        stages = [{"name": "covariance", "done": 1500, "total": 7500, "note": "310 tokens/s"}]
        run.service.progress = lambda: list(stages)
        page.goto(address)
        page.locator("#state.starting").wait_for()
        page.get_by_text("1,500 of 7,500, 310 tokens/s").wait_for()
        stages[:] = [{"name": "loading the editor", "done": 0, "total": 0, "note": "20 s so far"}]
        page.get_by_text("loading the editor, 20 s so far").wait_for()
        page.get_by_label("A sentence to complete").fill("France")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("alert").get_by_text("the service is starting").wait_for()
        stages.clear()
        run.pipeline.start_gate.set()
        page.locator("#state.running").wait_for()
        page.locator("#starting").wait_for(state="hidden")


def test_dead_workers_are_told_of(page: Any, tmp_path: Path) -> None:
    with running(tmp_path) as run, listening(run) as address:

        def gone(*_: Any, **__: Any) -> Any:
            raise ErrataError("the evaluation workers have died")

        run.evaluators.answer = gone  # type: ignore[method-assign]
        page.goto(f"{address}/#ask=France")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert alert.inner_text() != ""
        run.pipeline.broken = ErrataError("the editor died 5 times")
        run.client.post("/v1/edits", json=edit(1))
        page.locator("#state.failed").wait_for()
        page.get_by_text("The service has failed and writes nothing: ErrataError: the editor died 5 times").wait_for()


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        assert re.findall(r"https?://[^\s\"')]+", text) == [], path.name
        assert "innerHTML" not in text and "eval(" not in text
        if path.suffix == ".html":
            assert not re.search(r"<script>|\son\w+=|style=", text), "the content policy allows no inline code"
