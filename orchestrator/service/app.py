"""The HTTP interface: routes over a `ServiceCore`, each with the role it asks for.

Bodies are read by `Limits` and parsed by `parsing`; a route takes the event loop for microseconds only, and whatever
waits (the journal, a commit, a worker) is awaited.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as Path_
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from errata.editing.errors import UserError
from errata.orchestrator.journal.connection import JournalBusyError
from errata.orchestrator.journal.rows import Accepted, RequestRow
from errata.orchestrator.report import charts
from errata.orchestrator.service import cloudevents
from errata.orchestrator.service.access import LOCAL, Caller, Limits, Role, Tokens, needs
from errata.orchestrator.service.bodies import (
    EditIn,
    EditsIn,
    EvaluationIn,
    PublicationIn,
    ReasonIn,
    Submission,
    accepted_view,
    body_as,
    edit_story,
    edit_view,
    evaluation_view,
    invalid,
    parse_edits,
    time_text,
    version_view,
)
from errata.orchestrator.service.calls import Note, Service, until, wait
from errata.orchestrator.service.connections import Buckets
from errata.orchestrator.service.errors import ServiceError, conflict, not_found, printable, unavailable
from errata.orchestrator.service.looking import Before, Limit, looking_routes
from errata.orchestrator.service.publishing import Publishing, publications_view
from errata.orchestrator.service.questions import question_routes
from errata.orchestrator.service.schema import describe, takes

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
_MOST_ID = 300
_KINDS = {".js": "text/javascript", ".css": "text/css"}


def make_app(service: Service) -> FastAPI:
    """The application; it starts and ends nothing by itself."""
    app = FastAPI(title="Errata", version=service.version, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.service = service
    _errors(app)
    _open_routes(app, service)
    looking_routes(app, service, needs(service.tokens, Role.read))
    _edit_routes(app, service)
    _history_routes(app, service)
    question_routes(app, service)
    _publication_routes(app, service)
    _operating_routes(app, service)
    describe(app)
    settings = service.core.config
    app.add_middleware(
        Limits,
        max_body=service.core.config.max_body_bytes,
        loopback_only=not service.tokens,
        answered=service.metrics.answered,
        caller=_labels(service.tokens) if service.tokens else None,
        hosts=None if settings.hosts is None else frozenset(name.lower() for name in settings.hosts),
        calls=None if settings.calls_per_second is None else Buckets(settings.calls_per_second, settings.calls_burst),
        audit=_audit if settings.audit_reads else None,
    )
    return app


def _labels(tokens: Tokens) -> Callable[[str | None], str | None]:
    def label(authorization: str | None) -> str | None:
        caller = tokens.caller(authorization)
        return None if caller is None else caller.label

    return label


def _audit(who: str, method: str, path: str) -> None:
    logger.info("read: %s %s %s", who, method, printable(path)[:200])


# ---------------------------------------------------------------- shared by the routes


def _errors(app: FastAPI) -> None:
    def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return JSONResponse(error.body(), error.status, headers=error.headers)

    def unfit(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problem = invalid(list(error.errors()))
        return JSONResponse(problem.body(), problem.status)

    def plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        problem = ServiceError(error.status_code, code, str(error.detail))
        return JSONResponse(problem.body(), problem.status, headers=error.headers)

    def locked(_: Request, error: Exception) -> Response:
        # another process holds the journal, or its disk answers no more: nothing was taken, and it may pass
        problem = unavailable(f"the journal cannot be used now: {printable(str(error))[:200]}")
        return JSONResponse(problem.body(), problem.status, headers=problem.headers)

    def ours(_: Request, error: Exception) -> Response:
        # uvicorn logs the traceback; a client learns nothing of the inside
        return JSONResponse(ServiceError(500, "internal", "an error of the service").body(), 500)

    app.add_exception_handler(ServiceError, known)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(JournalBusyError, locked)
    app.add_exception_handler(sqlite3.OperationalError, locked)
    app.add_exception_handler(Exception, ours)


def _row(service: Service, name: str) -> RequestRow:
    row = service.reader.request(name) if len(name) <= _MOST_ID else None
    if row is None:
        raise not_found(f"there is no edit {name[:80]!r}")
    return row


# ---------------------------------------------------------------- without a token


def _open_routes(app: FastAPI, service: Service) -> None:
    core = service.core

    @app.get("/healthz", tags=["operating"])
    async def alive() -> dict[str, str]:
        """Whether the process works; 503 asks for a restart."""
        if core.failure is not None:
            raise unavailable(f"the service has failed: {type(core.failure).__name__}", retry_after=30)
        return {"status": "ok"}

    @app.get("/readyz", tags=["operating"])
    async def ready() -> dict[str, str]:
        """Whether the pipeline has started: from then on edits are written and questions answered."""
        if not core.ready:
            raise unavailable(f"the service is {core.state}", retry_after=10)
        return {"status": core.state}

    def page(path: Path, kind: str) -> Callable[[], FileResponse]:
        def send() -> FileResponse:
            return FileResponse(path, media_type=f"{kind}; charset=utf-8")

        return send

    for address, name in (("/", "index.html"), ("/docs", "docs.html")):
        app.get(address, include_in_schema=False)(page(PAGE / name, "text/html"))
    for path in (*sorted(PAGE.iterdir()), *charts.files()):
        if path.suffix in _KINDS:
            app.get(f"/page/{path.name}", include_in_schema=False)(page(path, _KINDS[path.suffix]))

    nobody = Depends(lambda: None)
    reader = nobody if core.config.open_metrics else needs(service.tokens, Role.read)

    @app.get("/metrics", tags=["operating"], dependencies=[reader], response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


# ---------------------------------------------------------------- edits


def _edit_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, write = needs(service.tokens, Role.read), needs(service.tokens, Role.write)

    @app.post(
        "/v1/edits",
        status_code=202,
        tags=["edits"],
        openapi_extra=takes(EditIn, EditsIn, lists=True),
        response_model=None,
    )
    async def submit(request: Request, caller: Caller = write) -> Response:
        """Hand in one edit or several; answered when the journal has them.

        Each is taken or refused by itself: `results` says of each, in order, whether it was `accepted`, is a
        `duplicate` of one that is known, is in `conflict` with one of the same id, or `invalid`.
        """
        started = time.perf_counter()
        body = await request.body()
        if cloudevents.is_event(request.headers):
            body = cloudevents.edits_of(request.headers, body)

        def read() -> tuple[Submission, Future[list[Accepted]] | None]:
            parsed = parse_edits(
                body,
                most=core.config.max_edits_per_request,
                key=request.headers.get("idempotency-key"),
                by=None if caller is LOCAL else caller.label,
                now=datetime.now(UTC),
            )
            return parsed, core.accept(list(parsed.requests.values())) if parsed.requests else None

        # a megabyte of JSON takes a tenth of a second: the probes and everybody else must not wait for it
        parsed, answered = await run_in_threadpool(read)
        results = dict(parsed.problems)
        if answered is not None:
            answers = await wait(answered)
            service.metrics.accept.observe(time.perf_counter() - started)
            results |= {n: accepted_view(a) for n, a in zip(parsed.requests, answers, strict=True)}
        return _submitted([results[n] for n in sorted(results)], parsed)

    @app.get("/v1/edits/{id:path}", tags=["edits"])
    def edit(id: str, _: Caller = read) -> Any:
        """One edit and everything that happened to it."""
        return edit_story(service.reader, _row(service, id))

    @app.delete(
        "/v1/edits/{id:path}",
        tags=["edits"],
        response_model=None,
        responses={202: {"description": "It is promised, and goes on."}},
    )
    async def take_back(
        id: str,
        reason: Note = None,
        wait: Annotated[float | None, Query(ge=0, le=600)] = None,
        caller: Caller = write,
    ) -> Response:
        """Take an edit out of weights and memory, by a commit of its own; one that waits is never written.

        200 when that is done, 202 when it goes on: the intent is in the journal, and outlives the process.
        """
        row = await run_in_threadpool(_row, service, id)
        if row.state == "reverted":
            return JSONResponse({"id": id, "state": edit_view(row)["state"], "version": None})
        by = None if caller is LOCAL else caller.label
        future = await run_in_threadpool(lambda: core.revert([id], reason=reason or "", by=by))
        patience = core.config.revert_wait_seconds if wait is None else wait
        try:
            outcome = await until(core, future, patience)
        except TimeoutError:
            return JSONResponse({"id": id, "state": "reverting", "version": None}, 202)
        return JSONResponse({"id": id, "state": "reverted", "version": version_view(outcome.version)})


def _submitted(results: Sequence[dict[str, Any]], submission: Submission) -> Response:
    taken = sum(result["status"] in ("accepted", "duplicate") for result in results)
    body: dict[str, Any] = {"accepted": taken, "refused": len(results) - taken, "results": results}
    if taken:
        return JSONResponse(body, 202)
    invalid = bool(submission.problems) or any(result["status"] == "invalid" for result in results)
    status, code = (422, "invalid") if invalid else (409, "conflict")
    first = str(results[0]["error"])
    more = f" (and {len(results) - 1} more)" if len(results) > 1 else ""
    raise ServiceError(status, code, first + more, details=results)


# ---------------------------------------------------------------- versions and evaluations


def _history_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, write = needs(service.tokens, Role.read), needs(service.tokens, Role.write)

    @app.get("/v1/versions", tags=["versions"])
    def versions(limit: Limit = 50, before: Before = None, _: Caller = read) -> Any:
        """Versions, newest first, a page at a time; the last page ends with the base."""
        page = service.reader.version_page(limit, before=before)
        if len(page) < limit:
            page = [*page, service.reader.base()]
        following = page[-1].sequence if page[-1].sequence > 0 else None
        return {"versions": [version_view(version) for version in page], "next": following}

    @app.get("/v1/versions/{name}", tags=["versions"])
    def version(name: str, _: Caller = read) -> Any:
        """A version called `head`, `v<number>`, or by four or more digits of its digest."""
        try:
            return version_view(service.reader.find_version(name[:100]))
        except UserError as error:
            raise not_found(str(error)) from None

    @app.post("/v1/evaluations", status_code=202, tags=["versions"], openapi_extra=takes(EvaluationIn, required=False))
    async def evaluate(request: Request, _: Caller = write) -> Any:
        """Evaluate applied edits on the newest version, in the background; `GET /v1/evaluations` has the figures."""
        wanted = await body_as(EvaluationIn, request)
        asked = await run_in_threadpool(core.evaluate, wanted.ids, wanted.sample)
        return asked.view()

    @app.delete("/v1/evaluations/{name}", tags=["versions"])
    async def give_up(name: Annotated[str, Path_(max_length=40)], _: Caller = write) -> Any:
        """Take back an evaluation that was asked for: one that waits is not begun, one under way ends soon."""
        return (await run_in_threadpool(core.give_up_evaluation, name)).view()

    @app.get("/v1/evaluations", tags=["versions"])
    def evaluations(limit: Limit = 50, before: Before = None, kind: Note = None, _: Caller = read) -> Any:
        """Figures of the journal, newest first, and what was asked for since the start."""
        rows = service.reader.evaluation_page(limit, before=before, kind=kind)
        following = rows[-1].number if len(rows) == limit else None
        return {
            "evaluations": [evaluation_view(row) for row in rows],
            "next": following,
            "asked": [asked.view() for asked in core.asked()],
        }


# ---------------------------------------------------------------- publications


def _publication_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, admin = needs(service.tokens, Role.read), needs(service.tokens, Role.admin)

    def there() -> Publishing:
        if service.publishing is None:
            raise conflict("this service publishes nothing")
        return service.publishing

    @app.post(
        "/v1/publications", status_code=202, tags=["publications"], openapi_extra=takes(PublicationIn, required=False)
    )
    async def publish(request: Request, _: Caller = admin) -> Any:
        """Send a version to the servers of `publish.to`, or register it under an alias, in the background.

        One at a time. `GET /v1/publications` says what became of it; the guard is not asked.
        """
        wanted = await body_as(PublicationIn, request)
        publishing = there()
        try:
            version = await run_in_threadpool(service.reader.find_version, wanted.version[:100])
        except UserError as error:
            raise not_found(str(error)) from None
        made = publishing.ask(wanted, version)

        def begun(future: Future[None]) -> None:
            if (error := future.exception()) is not None:
                publishing.give_up(made, error)

        try:
            future = core.between_batches(lambda: publishing.begin(made, wanted, version))
        except ServiceError as error:
            publishing.give_up(made, error)
            raise
        future.add_done_callback(begun)
        return made.view()

    @app.get("/v1/publications", tags=["publications"])
    def publications(limit: Limit = 50, before: Before = None, _: Caller = read) -> Any:
        """What each server has, what was asked for since the start, and the journal's steps, newest first."""
        return publications_view(service.reader, there(), limit, before)


# ---------------------------------------------------------------- operating


def _operating_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, admin = needs(service.tokens, Role.read), needs(service.tokens, Role.admin)

    @app.get("/v1/status", tags=["operating"])
    def status(caller: Caller = read) -> Any:
        """Where everything stands."""
        counts, head = service.reader.counts(), service.reader.head()
        guard = service.guard() if service.guard is not None else None
        return {
            "state": core.state,
            "paused": core.paused,
            "problem": None if core.failure is None else f"{type(core.failure).__name__}: {core.failure}",
            "role": caller.role.name,
            "progress": service.progress(),
            "model": service.model,
            "release": service.version,
            "started_at": time_text(datetime.fromtimestamp(service.started, UTC)),
            "arms": list(service.asking.arms),
            "version": version_view(head),
            "edits": {
                "waiting": counts.accepted,
                "applied": counts.applied,
                "landed": counts.landed,
                "weak": counts.weak,
                "rejected": counts.rejected,
                "superseded": counts.superseded,
                "reverted": counts.reverted,
            },
            "stream_stopped": service.stream(),
            "max_waiting": core.config.max_waiting,
            "refreshes": counts.refreshes,
            "guard": None
            if guard is None
            else {"checks": guard.checks, "breaches": guard.breaches, "good_sequence": guard.good_sequence},
        }

    @app.post("/v1/refresh", status_code=202, tags=["operating"], openapi_extra=takes(ReasonIn, required=False))
    async def refresh(request: Request, _: Caller = admin) -> Any:
        """Estimate the covariance anew, outside the schedule; `started` is false if one is under way."""
        await body_as(ReasonIn, request)
        future = core.refresh()
        try:
            started = await until(core, future, core.config.revert_wait_seconds)
        except TimeoutError:
            return {"started": None}  # it comes after the batch under way
        return {"started": started}

    @app.get("/v1/inspection", tags=["operating"])
    async def inspection(_: Caller = admin) -> Any:
        """Digests of what editor and memory hold between two batches, fetched from them.

        `errata verify` prints the digest of the weights of every version that it rebuilds from the journal.
        """
        try:
            state = await until(core, core.inspect(), core.config.answer_seconds)
        except TimeoutError:
            raise unavailable("nothing was fetched: a batch is under way, or the service is ending") from None
        held = {"weights": state.weights, "memory": state.memory, "statements": state.statements}
        return {"sequence": state.version.sequence, "version": state.version.digest, **held}

    @app.post("/v1/pause", tags=["operating"], openapi_extra=takes(ReasonIn, required=False))
    async def pause(request: Request, caller: Caller = admin) -> Any:
        """Write nothing from the next batch on. Edits are still accepted; a restart does not lift it."""
        reason = (await body_as(ReasonIn, request)).reason
        await run_in_threadpool(lambda: core.pause(reason=reason, by=caller.label))
        return {"state": core.state, "paused": core.paused}

    @app.post("/v1/resume", tags=["operating"], openapi_extra=takes(ReasonIn, required=False))
    async def resume(request: Request, caller: Caller = admin) -> Any:
        """Go on writing, whoever had paused: somebody, or the guard."""
        reason: str | None = (await body_as(ReasonIn, request)).reason
        await run_in_threadpool(lambda: core.resume(by=caller.label, reason=reason))
        return {"state": core.state, "paused": core.paused}
