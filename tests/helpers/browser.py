"""A headless Chromium for tests and for the pictures of the documentation."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from errata.orchestrator.service.app import make_app
from tests.helpers.service import Running

AXE = Path(__file__).parents[1] / "assets" / "axe" / "axe.min.js"


def find_chromium() -> str | None:
    """The browser of this machine, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    return None


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright, which brings no browser of its own here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def listening(run: Running) -> Iterator[str]:
    """The address at which a service is listened for; the server binds a free port by itself."""
    server = uvicorn.Server(uvicorn.Config(make_app(run.service), port=0, log_config=None, lifespan="off"))
    ready = threading.Event()
    startup = server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets=sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def serious(page: Any) -> list[str]:
    """What axe-core finds on a page that is serious or worse, in words."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
