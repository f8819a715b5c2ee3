"""Pictures of the documentation, taken in headless Chromium: ``python -m docs.pictures`` in a checkout.

The service's page is shown over a pipeline without models, as the tests have it: what stands on it are no measurements.
With ``--run DIR`` the report of a run is pictured too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from errata.evaluation.outcomes import ARMS
from tests.helpers.browser import chromium, listening
from tests.helpers.service import Running, edit, running

IMAGES = Path(__file__).parent / "images"


def history(run: Running) -> None:
    """Some edits, two of them not as one would wish, and three evaluations."""
    run.client.post("/v1/edits", json=[edit(n, relation="lies in") for n in range(6)])
    run.client.post("/v1/edits", json=[edit(6, target_new="weakly Oslo"), edit(7, target_new="refused Oslo")])
    while run.journal.counts().accepted:
        time.sleep(0.01)
    for edits in (0, 3, 6):
        arms = {
            arm: {
                "reliability": edits / 6 * (0.6 + 0.1 * n),
                "locality": 1 - 0.02 * edits * n,
                "generalization_gen": 0.5,
            }
            for n, arm in enumerate(ARMS)
        }
        run.journal.record_evaluation("v" * 64, edits, "timeline", {"arms": arms, "facts": 6})


def service_pages(browser: Any, directory: Path) -> None:
    """The page running, dark, on a phone, paused, and while the service starts."""
    with running(directory / "running", size=2) as run, listening(run) as address:
        history(run)
        shots = [("running", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")]
        for name, width, scheme in shots:
            page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
            page.goto(f"{address}/#ask=Place%201%20lies%20in")
            page.locator(".arm.routed").wait_for()
            page.locator("#curves [role=img] canvas").first.wait_for()
            page.screenshot(path=str(IMAGES / f"service-{name}.png"), full_page=name != "running")
            page.close()
        run.core.pause(reason="the annotators are at lunch", by="desk 4")
        page = browser.new_page(viewport={"width": 1200, "height": 500})
        page.goto(address)
        page.locator("#state.paused").wait_for()
        page.screenshot(path=str(IMAGES / "service-paused.png"))
        page.get_by_role("button", name="History of Place 6").click()
        page.get_by_role("dialog").get_by_text("How it is weak").wait_for()
        page.screenshot(path=str(IMAGES / "service-edit.png"))
        page.close()

    def held(pipeline: Any) -> None:
        pipeline.start_gate.clear()

    with running(directory / "starting", prepare=held) as run, listening(run) as address:
        run.service.progress = lambda: [{"name": "covariance", "done": 1500, "total": 7500, "note": "310 tokens/s"}]
        page = browser.new_page(viewport={"width": 1200, "height": 500})
        page.goto(address)
        page.locator("#state.starting").wait_for()
        page.get_by_text("1,500 of 7,500").wait_for()
        page.screenshot(path=str(IMAGES / "service-starting.png"))
        page.close()


def file_page(browser: Any, source: Path, name: str, height: int) -> None:
    """The top of a page that is a file."""
    page = browser.new_page(viewport={"width": 1240, "height": height})
    page.goto(source.absolute().as_uri())
    page.wait_for_timeout(500)
    page.screenshot(path=str(IMAGES / f"{name}.png"))
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run whose report is pictured")
    parser.add_argument("--compare", type=Path, help="a page of `errata compare` that is pictured")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        for name in ("running", "starting"):
            (Path(temporary) / name).mkdir()
        service_pages(browser, Path(temporary))
        if chosen.run is not None:
            file_page(browser, chosen.run / "report.html", "report", 1700)
        if chosen.compare is not None:
            file_page(browser, chosen.compare, "compare", 1400)


if __name__ == "__main__":
    main()
