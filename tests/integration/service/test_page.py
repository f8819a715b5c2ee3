"""The page in a headless browser: it shows what the service knows, and runs nothing that came as data."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from errata.evaluation.outcomes import ARMS
from errata.orchestrator.service.app import make_app
from tests.helpers.service import ADMIN, TOKENS, Running, bearer, edit, running
from tests.integration.service.conftest import free_port

PAGE = Path(__file__).parents[3] / "orchestrator" / "service" / "page"
EVIL = "<img src=x onerror=document.title='broken'>"


def listening(run: Running, port: int) -> tuple[uvicorn.Server, threading.Thread]:
    config = uvicorn.Config(make_app(run.service), port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return server, thread


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with some history behind it."""
    with running(tmp_path_factory.mktemp("page"), size=2) as run:
        run.client.post("/v1/edits", json=[edit(n) for n in range(5)])
        run.client.post("/v1/edits", json=edit(5, subject=EVIL, prompt="{} lies in"))
        while run.journal.counts().accepted:
            time.sleep(0.01)
        for edits in (0, 2, 4, 6):
            arms = {arm: {"efficacy": 0.1 * edits, "generalization": 0.5, "specificity": 0.9} for arm in ARMS}
            run.journal.record_evaluation("v" * 64, edits, "timeline", {"arms": arms, "facts": 3})
        run.client.delete("/v1/edits/edit-2")
        port = free_port()
        server, thread = listening(run, port)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def browse(chromium: str, address: str, directory: Path, *arguments: str) -> str:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={directory / 'profile'}", "--virtual-time-budget=3000", *arguments, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_shows_edits_versions_curves_and_answers(chromium: str, url: str, tmp_path: Path) -> None:
    seen = browse(chromium, f"{url}/#ask=Place%201%20lies%20in", tmp_path, "--dump-dom")
    assert re.search(r'id="state" class="pill running"', seen)
    assert seen.count("Place 1 lies in → Rome") == 1
    assert len(re.findall(r">Revert</button>", seen)) == 5, "applied edits can be reverted, the reverted one cannot"
    assert 'class="pill reverted"' in seen
    assert "v4 " in seen and ">revert</td>" in seen
    for arm in ARMS:
        assert re.search(rf'<article class="arm {arm}"', seen), arm
        assert f"{arm} says Place 1 lies in" in seen
    assert "given: Place 0 lies in Rome. – because" in seen
    assert seen.count('role="img"') == 4 and "curve c-edited_memory" in seen
    assert "&lt;img src=x" in seen and "<title>Errata</title>" in seen, "data is shown, and never runs"


def test_the_page_fits_a_phone(chromium: str, url: str, tmp_path: Path) -> None:
    shot = tmp_path / "phone.png"
    browse(chromium, f"{url}/#ask=Place", tmp_path, "--window-size=390,2400", f"--screenshot={shot}")
    assert shot.stat().st_size > 20_000
    wide = tmp_path / "wide.png"
    browse(chromium, f"{url}/#ask=Place", tmp_path, "--window-size=1200,1600", f"--screenshot={wide}")
    assert wide.stat().st_size > 20_000


def test_the_description_of_the_api_needs_no_network(chromium: str, url: str, tmp_path: Path) -> None:
    seen = browse(chromium, f"{url}/docs", tmp_path, "--dump-dom")
    for text in ("/v1/edits/{id}", "/v1/chat/completions", "EditIn", "Take an edit out of weights and memory"):
        assert text in seen


def test_without_a_token_the_page_asks_for_one_and_shows_nothing(chromium: str, tmp_path: Path) -> None:
    with running(tmp_path, tokens=TOKENS) as run:
        run.client.post("/v1/edits", json=edit(1), headers=bearer(ADMIN))
        port = free_port()
        server, thread = listening(run, port)
        try:
            seen = browse(chromium, f"http://127.0.0.1:{port}/", tmp_path, "--dump-dom")
        finally:
            server.should_exit = True
            thread.join()
    assert re.search(r'<section id="login" class="card">', seen), "not hidden"
    assert "Place 1" not in seen


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        links = re.findall(r"https?://[^\s\"')]+", text)
        assert [link for link in links if link != "http://www.w3.org/2000/svg"] == [], path.name
        assert "innerHTML" not in text and "eval(" not in text
        if path.suffix == ".html":
            assert not re.search(r"<script>|\son\w+=|style=", text), "the content policy allows no inline code"
