"""Pictures of the documentation, taken in headless Chromium: ``python -m docs.pictures [PART ...]`` in a checkout.

Everything pictured is real: runs of the demo model over the same facts, MLflow's own page with what one of them
registered, and a service that is started, given facts of the shipped stream, asked, published from and paused. What was
made is kept in ``--work``, and what is there is gone on with: a run is resumed, a service is started again on its
directory. ``--run`` and ``--locate`` picture pages of `errata run` (`make demo`) and `errata locate` that are there
already, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.browser import chromium
from tests.helpers.registered import tracking_server

IMAGES = Path(__file__).parent / "images"
STREAM = Path(__file__).parents[1] / "configs" / "streams" / "quickstart.jsonl"
SHIPPED = ("covariance.packed=true", "covariance.tokens=7680")
"""The covariance that comes with the installation: nothing is sampled for it."""
FACTS = (
    *("stream.limit=12", "batching.size=4", "evaluation.every=4", "evaluation.sample=2", "refresh.every=null"),
    *("tracking.system_seconds=5", "evaluation.held_out=null", *SHIPPED),
)
RUNS: Mapping[str, Sequence[str]] = {
    "alphaedit": FACTS,
    "retrieved": (*FACTS, "editor.regime=retrieved"),
}
"""Runs that are compared: the same facts in the same batches, asked about at the same times."""
SERVED = (
    *("batching.size=4", "evaluation.every=4", "evaluation.sample=2"),
    *("ray.evaluation_workers=0", "tracking.system_seconds=null", "service.end_seconds=30", "evaluation.held_out=null"),
    *SHIPPED,
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
WITHDRAWN = {**HARD, "id": "slip-0001", "subject": "Porto", "target_new": "Dänemark"}
QUESTION = "The passports of people born in Puebla are issued by"
ENDED = ("done", "failed", "canceled")
PATIENCE = 3600.0
ENVIRONMENT = {
    "COLUMNS": "200",
    "RAY_worker_niceness": "0",  # by Ray's 15 workers come to a stand beside whatever else a machine does
}
begun = time.monotonic()


def tell(what: str) -> None:
    """A line with the time since the beginning."""
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"{minutes:3d}:{seconds:02d}  {what}", flush=True)


def until(done: Callable[[], Any], what: str) -> Any:
    """What ``done`` gives once it gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: nothing came in {PATIENCE:.0f} s")
        time.sleep(0.5)
    return found


def sets(settings: Sequence[str]) -> list[str]:
    """Settings as a command takes them."""
    return [part for item in settings for part in ("--set", item)]


def errata(log: Path, *arguments: object) -> None:
    """A command, whose words go to a file."""
    command = [sys.executable, "-m", "errata.orchestrator.cli", *map(str, arguments)]
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})
    if done.returncode:
        said = log.read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {done.returncode}:\n{said}")


# --- runs, their comparison, and MLflow ---


def run_of(work: Path, name: str) -> Path:
    """One of the runs, made or gone on with."""
    directory = work / name
    if not (directory / "report.html").exists():
        tell(f"run {name}, which says in {work / name}.log how far it is")
        resume = ["--resume"] if (directory / "journal.sqlite").exists() else []
        errata(work / f"{name}.log", "run", "quickstart", "--output", directory, *resume, *sets(RUNS[name]))
    return directory


def run_pages(browser: Any, work: Path) -> None:
    """The comparison of the runs; and one's report, for whoever changes it."""
    runs = [run_of(work, name) for name in RUNS]
    page = work / "compare.html"
    errata(work / "compare.log", "compare", *runs, "--output", page)
    file_page(browser, page, "compare", 1400, whole=True)
    look(browser, work, runs[0] / "report.html", page)


def mlflow_pages(browser: Any, work: Path) -> None:
    """A run in MLflow's own page, with its head registered in two forms."""
    run = run_of(work, "alphaedit")
    for alias, form in (("candidate", "delta"), ("champion", "routed")):
        where = ("--run", run, "--alias", alias, "--format", form, "--name", "errata")
        errata(work / "publish.log", "publish", "head", *where)
    tell("MLflow's page")
    with tracking_server(f"sqlite:///{run / 'mlflow.db'}", work) as address:
        mlflow_at(browser, address)


def mlflow_at(browser: Any, address: str) -> None:
    """A run's metrics in groups, the registered model with its aliases, and what makes it load."""
    from mlflow import MlflowClient

    version = MlflowClient(address).get_model_version_by_alias("errata", "champion")
    run = MlflowClient(address).get_run(str(version.run_id)).info
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(120_000)
    page.goto(f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics")
    page.get_by_text("generalization_gen").first.wait_for()
    _without_assistant(page)
    groups = page.locator("[role=button][aria-expanded=true]")
    for name in ("edited_memory", "covariance", "base"):  # closed, so that the groups after them are seen
        group = groups.filter(has_text=re.compile(f"^{name}"))
        if group.count():  # a run that was given a covariance has no figures of an estimate
            group.first.click()
    groups.filter(has_text=re.compile("^edited")).first.scroll_into_view_if_needed()
    page.mouse.wheel(0, -4000)
    page.wait_for_timeout(5000)
    page.screenshot(path=str(IMAGES / "mlflow-metrics.png"))
    page.close()
    logged = str(version.source).removeprefix("models:/")
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


# --- a service ---


@contextmanager
def service(directory: Path) -> Iterator[str]:
    """The address of a service of the demo model, from its first moment on; ended in order afterwards."""
    command = [sys.executable, "-m", "errata.orchestrator.cli", "serve", "service", "--port", "0"]
    log = directory.with_name(f"{directory.name}.log")
    command += ["--output", str(directory), *sets(SERVED)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})

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


def hand_in(client: httpx.Client, edits: Sequence[Mapping[str, Any]]) -> None:
    """Edits, unless they were handed in before, and the wait until none waits."""
    client.post("/v1/edits", json=list(edits)).raise_for_status()
    until(lambda: not client.get("/v1/status").json()["edits"]["waiting"], f"{len(edits)} edits")
    tell(f"{client.get('/v1/status').json()['edits']['applied']} edits applied")


def history(client: httpx.Client) -> None:
    """What happens to a service in a day, in minutes: each kind of thing that its page shows."""
    facts = [json.loads(line) for line in STREAM.read_text(encoding="utf-8").splitlines()[:8]]
    for begin in range(0, len(facts), 4):
        hand_in(client, facts[begin : begin + 4])
    late = {**facts[0], "id": "later-0001", "target_new": "Spain", "statement": None, "portability": []}
    why = {"who": "desk 4", "why": "the first answer was a slip"}
    hand_in(client, [{**late, "provenance": why}, HARD])
    client.request("DELETE", f"/v1/edits/{facts[3]['id']}", params={"reason": "the source was withdrawn", "wait": "20"})
    if not any(one["kind"] == "asked" for one in client.get("/v1/evaluations").json()["evaluations"]):
        client.post("/v1/evaluations", json={}).raise_for_status()
    if not client.get("/v1/publications").json()["steps"]:
        client.post("/v1/publications", json={"version": "head", "alias": "champion"}).raise_for_status()

    def settled() -> bool:
        status = client.get("/v1/status").json()
        asked = client.get("/v1/evaluations").json()["asked"] + client.get("/v1/publications").json()["asked"]
        return not status["progress"] and all(one["state"] in ENDED for one in asked)

    until(settled, "evaluations and publication")
    tell("evaluated and published")


def service_pages(browser: Any, work: Path) -> None:
    """The page while the service starts, running, dark, on a phone, with an edit open, and paused."""
    with service(work / "service") as address, httpx.Client(base_url=address, timeout=300) as client:
        tell(f"service at {address}, which says in {work / 'service.log'} how far it is")
        page = opened(browser, address, 1200, 620)
        page.locator("#state.starting").wait_for()
        page.locator("#stages li").first.wait_for()
        page.screenshot(path=str(IMAGES / "service-starting.png"))
        page.locator("#state.running").wait_for()
        page.close()
        tell("it runs")
        client.post("/v1/resume").raise_for_status()
        history(client)
        asked = f"{address}/#ask={QUESTION.replace(' ', '%20')}"
        for name, width, scheme in (("running", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")):
            page = opened(browser, asked, width, 1500, scheme)
            page.locator(".arm.routed").wait_for()
            page.locator("#curves [role=img] canvas").first.wait_for()
            page.locator("#router [role=img] canvas").wait_for()
            page.wait_for_timeout(2000)
            page.screenshot(path=str(IMAGES / f"service-{name}.png"), full_page=name != "running")
            page.close()
        client.post("/v1/pause", json={"reason": "the annotators are at lunch"}).raise_for_status()
        client.post("/v1/edits", json=[WITHDRAWN]).raise_for_status()
        page = opened(browser, address, 1200, 620)
        page.locator("#state.paused").wait_for()
        page.get_by_role("button", name="History of").first.wait_for()
        page.screenshot(path=str(IMAGES / "service-paused.png"))
        client.request("DELETE", f"/v1/edits/{WITHDRAWN['id']}", params={"reason": "handed in by mistake"})
        page.set_viewport_size({"width": 1200, "height": 900})
        page.get_by_role("button", name=f"History of {HARD['subject']}").click()
        page.get_by_role("dialog").get_by_text("History", exact=True).wait_for()
        page.screenshot(path=str(IMAGES / "service-edit.png"))
        page.close()
        tell("the service's pictures are taken; it ends")


def opened(browser: Any, address: str, width: int, height: int, scheme: str = "light") -> Any:
    """A page of the service."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    return page


# --- pages that are files ---


def file_page(
    browser: Any,
    source: Path,
    name: str,
    height: int,
    *,
    whole: bool = False,
    scheme: str = "light",
    width: int = 1240,
    folder: Path = IMAGES,
) -> None:
    """The top of a page that is a file, or all of it."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(source.absolute().as_uri())
    page.wait_for_timeout(1500)
    page.screenshot(path=str(folder / f"{name}.png"), full_page=whole)
    page.close()
    tell(f"{name}.png")


def look(browser: Any, work: Path, *sources: Path) -> None:
    """Pages whole, light, dark and on a phone: not for the documentation, for whoever changes a page."""
    for source in sources:
        for scheme, width in (("light", 1240), ("dark", 1240), ("light", 390)):
            name = f"{source.parent.name if source.stem == 'report' else source.stem}-{scheme}-{width}"
            file_page(browser, source, name, 900, whole=True, scheme=scheme, width=width, folder=work / "looks")


PARTS = {"runs": run_pages, "mlflow": mlflow_pages, "service": service_pages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without one")
    parser.add_argument("--work", type=Path, default=Path("runs/pictures"), help="what is made, and gone on with")
    parser.add_argument("--run", type=Path, help="a run whose report is pictured, in the place of all else")
    parser.add_argument("--locate", type=Path, help="a page of `errata locate` that is pictured, likewise")
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; allowed: {', '.join(PARTS)}")
    work = chosen.work.absolute()
    (work / "looks").mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        if chosen.run is not None:
            file_page(browser, chosen.run / "report.html", "report", 1700)
            file_page(browser, chosen.run / "report.html", "report-dark", 1150, scheme="dark")
            look(browser, work, chosen.run / "report.html")
        if chosen.locate is not None:
            file_page(browser, chosen.locate, "locate-smollm2", 600, whole=True)
            look(browser, work, chosen.locate)
        if chosen.run is None and chosen.locate is None:
            for part in chosen.parts or PARTS:
                PARTS[part](browser, work)


if __name__ == "__main__":
    main()
