"""Pictures of the documentation, taken in headless Chromium: ``python -m docs.pictures`` in a checkout.

The service's page is that of a real service of the demo model: it is started, given facts of the shipped stream, asked,
published from and paused, which takes some minutes on two cores. ``--run``, ``--compare`` and
``--locate`` picture pages that `errata run`, `compare` and `locate` have written; ``--mlflow`` an MLflow server with a
run and its registered model ``errata``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.browser import chromium

IMAGES = Path(__file__).parent / "images"
STREAM = Path(__file__).parents[1] / "configs" / "streams" / "quickstart.jsonl"
SETTINGS = (
    *("batching.size=4", "evaluation.every=4", "evaluation.sample=2", "covariance.packed=true"),
    *("ray.evaluation_workers=0", "tracking.system_seconds=null", "evaluation.held_out=null"),
)
HARD = {
    "id": "hard-0001",
    "subject": "Tianjin",
    "prompt": "{} gehört heute zu einem Land namens",
    "target_new": "Norwegen",
    "relation": "country of a city",
    "provenance": {"who": "desk 4", "why": "a fact in a language that this model hardly knows"},
}
"""The edit whose history is pictured: it may well be a weak one."""
PATIENCE = 1800.0


def until(done: Callable[[], Any], what: str) -> Any:
    """What ``done`` gives once it gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.5)
    return found


@contextmanager
def service(directory: Path, *settings: str) -> Iterator[str]:
    """The address of a service of the demo model, from its first moment on; ended in order afterwards."""
    command = [sys.executable, "-m", "errata.orchestrator.cli", "serve", "service", "--port", "0"]
    chosen = [*SETTINGS, *settings]
    command += ["--output", str(directory / "run"), *(part for item in chosen for part in ("--set", item))]
    log = directory / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"})

    def address() -> str | None:
        if process.poll() is not None:
            raise RuntimeError(log.read_text(encoding="utf-8")[-3000:])
        found = re.search(r"serving on (http://[\w.:]+)", log.read_text(encoding="utf-8"))
        return found[1] if found else None

    try:
        yield until(address, "the service's address")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(600)


def applied(client: httpx.Client, count: int) -> bool:
    """Whether nothing waits and so many edits were applied."""
    edits = client.get("/v1/status").json()["edits"]
    return not edits["waiting"] and edits["applied"] + edits["superseded"] + edits["reverted"] >= count


def hand_in(client: httpx.Client, edits: Sequence[Mapping[str, Any]], count: int) -> None:
    """Edits, and the wait until they are written."""
    client.post("/v1/edits", json=list(edits)).raise_for_status()
    until(lambda: applied(client, count), f"{count} edits")


def history(client: httpx.Client) -> None:
    """What happens to a service in a day, in minutes: each kind of thing that its page shows."""
    facts = [json.loads(line) for line in STREAM.read_text(encoding="utf-8").splitlines()[:8]]
    client.post("/v1/evaluations", json={}).raise_for_status()
    for begin in (0, 4):
        hand_in(client, facts[begin : begin + 4], begin + 4)
    late = {**facts[0], "id": "later-0001", "target_new": "Spain", "statement": None, "portability": []}
    why = {"who": "desk 4", "why": "the first answer was a slip"}
    hand_in(client, [{**late, "provenance": why}, HARD], 10)
    client.request("DELETE", f"/v1/edits/{facts[3]['id']}", params={"reason": "the source was withdrawn", "wait": "20"})
    client.post("/v1/evaluations", json={}).raise_for_status()
    client.post("/v1/publications", json={"version": "head", "alias": "champion"}).raise_for_status()

    def settled() -> bool:
        status = client.get("/v1/status").json()
        asked = client.get("/v1/evaluations").json()["asked"] + client.get("/v1/publications").json()["asked"]
        return not status["progress"] and all(one["state"] in ENDED for one in asked)

    until(settled, "evaluations and publication")


ENDED = ("done", "failed", "canceled")


def service_pages(browser: Any, directory: Path) -> None:
    """The page while the service starts, running, dark, on a phone, with an edit open, and paused."""
    with service(directory) as address, httpx.Client(base_url=address, timeout=300) as client:
        page = browser.new_page(viewport={"width": 1200, "height": 620})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.locator("#state.starting").wait_for()
        page.locator("#stages li").first.wait_for()
        page.screenshot(path=str(IMAGES / "service-starting.png"))
        page.locator("#state.running").wait_for()
        page.close()
        history(client)
        for name, width, scheme in (("running", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")):
            page = browser.new_page(viewport={"width": width, "height": 1500}, color_scheme=scheme)
            page.set_default_timeout(1000 * PATIENCE)
            page.goto(f"{address}/#ask=The%20passports%20of%20people%20born%20in%20Puebla%20are%20issued%20by")
            page.locator(".arm.routed").wait_for()
            page.locator("#curves [role=img] canvas").first.wait_for()
            page.locator("#router [role=img] canvas").wait_for()
            page.wait_for_timeout(4000)
            page.screenshot(path=str(IMAGES / f"service-{name}.png"), full_page=name != "running")
            page.close()
        client.post("/v1/pause", json={"reason": "the annotators are at lunch"}).raise_for_status()
        page = browser.new_page(viewport={"width": 1200, "height": 620})
        page.goto(address)
        page.locator("#state.paused").wait_for()
        page.get_by_role("button", name="History of").first.wait_for()
        page.screenshot(path=str(IMAGES / "service-paused.png"))
        page.set_viewport_size({"width": 1200, "height": 900})
        page.get_by_role("button", name=f"History of {HARD['subject']}").click()
        page.get_by_role("dialog").get_by_text("History", exact=True).wait_for()
        page.screenshot(path=str(IMAGES / "service-edit.png"))
        page.close()


def file_page(browser: Any, source: Path, name: str, height: int, *, whole: bool = False) -> None:
    """The top of a page that is a file, or all of it."""
    page = browser.new_page(viewport={"width": 1240, "height": height})
    page.goto(source.absolute().as_uri())
    page.wait_for_timeout(1500)
    page.screenshot(path=str(IMAGES / f"{name}.png"), full_page=whole)
    page.close()


def mlflow_pages(browser: Any, address: str) -> None:
    """MLflow's own page: a run's metrics in groups, the registered model with its aliases, and what makes it load."""
    from mlflow import MlflowClient

    version = MlflowClient(address).get_model_version_by_alias("errata", "champion")
    run = MlflowClient(address).get_run(str(version.run_id)).info
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(30_000)
    page.goto(f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics")
    page.get_by_text("generalization_gen").first.wait_for()
    _without_assistant(page)
    groups = page.locator("[role=button][aria-expanded=true]")
    for name in ("edited_memory", "covariance", "base"):  # closed, so that the groups after them are seen
        groups.filter(has_text=re.compile(f"^{name}")).first.click()
    groups.filter(has_text=re.compile("^edited")).first.scroll_into_view_if_needed()
    page.mouse.wheel(0, -4000)
    page.wait_for_timeout(5000)
    page.screenshot(path=str(IMAGES / "mlflow-metrics.png"))
    page.close()
    logged = re.findall(r"/(m-[0-9a-f]+)/", str(version.source))[0]
    places = (f"experiments/{run.experiment_id}/models/{logged}/artifacts", "models/errata")
    for name, place in zip(("mlflow-model", "mlflow-registry"), places, strict=True):
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/#/{place}")
        page.get_by_text("MLmodel" if name == "mlflow-model" else "champion").first.click()
        page.wait_for_timeout(4000)
        _without_assistant(page)
        page.wait_for_timeout(2000)
        page.screenshot(path=str(IMAGES / f"{name}.png"))
        page.close()


def _without_assistant(page: Any) -> None:
    """Close the chat beside the page, which is MLflow's own."""
    shut = [(box["x"], one) for one in page.locator("button").all() if (box := one.bounding_box()) and box["y"] < 80]
    max(shut, key=lambda pair: pair[0])[1].click()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", action="store_true", help="the page of a service; without other options too")
    parser.add_argument("--run", type=Path, help="a run whose report is pictured")
    parser.add_argument("--compare", type=Path, help="a page of `errata compare` that is pictured")
    parser.add_argument("--locate", type=Path, help="a page of `errata locate` that is pictured")
    parser.add_argument("--mlflow", metavar="URL", help="an MLflow server with a registered model `errata@champion`")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        if chosen.service or not (chosen.run or chosen.compare or chosen.locate or chosen.mlflow):
            service_pages(browser, Path(temporary))
        if chosen.run is not None:
            file_page(browser, chosen.run / "report.html", "report", 1700)
        if chosen.compare is not None:
            file_page(browser, chosen.compare, "compare", 1400)
        if chosen.locate is not None:
            file_page(browser, chosen.locate, "locate-smollm2", 900, whole=True)
        if chosen.mlflow is not None:
            mlflow_pages(browser, chosen.mlflow)


if __name__ == "__main__":
    main()
