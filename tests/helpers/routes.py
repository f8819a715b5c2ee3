"""One call of every route of the service, for what is tried on all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.helpers.service import edit

Route = tuple[str, str]
"""Method, and path as the application has it."""

CHAT = {"model": "errata-edited", "messages": [{"role": "user", "content": "Where does Rome lie?"}]}
CALLS: dict[Route, tuple[str, Any]] = {
    ("GET", "/healthz"): ("/healthz", None),
    ("GET", "/readyz"): ("/readyz", None),
    ("GET", "/metrics"): ("/metrics", None),
    ("GET", "/openapi.json"): ("/openapi.json", None),
    ("GET", "/"): ("/", None),
    ("GET", "/docs"): ("/docs", None),
    ("GET", "/page/{file}"): ("/page/app.js", None),
    ("GET", "/v1/edits"): ("/v1/edits", None),
    ("POST", "/v1/edits"): ("/v1/edits", [edit(number) for number in range(10, 400)]),
    ("GET", "/v1/edits/{id:path}"): ("/v1/edits/edit-1", None),
    ("DELETE", "/v1/edits/{id:path}"): ("/v1/edits/edit-1", None),
    ("GET", "/v1/versions"): ("/v1/versions", None),
    ("GET", "/v1/versions/{name}"): ("/v1/versions/v0", None),
    ("POST", "/v1/evaluations"): ("/v1/evaluations", {}),
    ("GET", "/v1/evaluations"): ("/v1/evaluations", None),
    ("DELETE", "/v1/evaluations/{name}"): ("/v1/evaluations/none", None),
    ("POST", "/v1/publications"): ("/v1/publications", {}),
    ("GET", "/v1/publications"): ("/v1/publications", None),
    ("GET", "/v1/status"): ("/v1/status", None),
    ("POST", "/v1/refresh"): ("/v1/refresh", {}),
    ("GET", "/v1/refreshes"): ("/v1/refreshes", None),
    ("GET", "/v1/inspection"): ("/v1/inspection", None),
    ("POST", "/v1/pause"): ("/v1/pause", {}),
    ("POST", "/v1/resume"): ("/v1/resume", {}),
    ("GET", "/v1/guard"): ("/v1/guard", None),
    ("GET", "/v1/router"): ("/v1/router", None),
    ("POST", "/v1/query"): ("/v1/query", {"question": "Where?"}),
    ("GET", "/v1/models"): ("/v1/models", None),
    ("GET", "/v1/models/{name}"): ("/v1/models/errata-edited", None),
    ("POST", "/v1/chat/completions"): ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("POST", "/v1/completions"): ("/v1/completions", {"model": "errata-edited", "prompt": "Rome is"}),
}


def routes_of(app: FastAPI) -> set[Route]:
    """What the application answers to; the page's files are one route here."""
    found = {("GET", "/openapi.json")}
    for route in app.routes:
        if isinstance(route, APIRoute):
            path = "/page/{file}" if route.path.startswith("/page/") else route.path
            found |= {(method, path) for method in route.methods}
    return found
