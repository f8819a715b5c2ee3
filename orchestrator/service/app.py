"""The HTTP interface: routes over a `ServiceCore`, each with the role it asks for.

Bodies are read by `Limits` and parsed by `parsing`; a route takes the event loop for microseconds only, and whatever
waits (the journal, a commit, a worker) is awaited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.evaluation.answering import Question
from errata.evaluation.outcomes import Arm
from errata.evaluation.streaming import TextPiece
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import RequestRow
from errata.orchestrator.report import charts
from errata.orchestrator.service import cloudevents, openai
from errata.orchestrator.service.asking import Answers, Asking, Speaking
from errata.orchestrator.service.auth import Caller, Role, Tokens
from errata.orchestrator.service.completions import ChatIn, TextIn
from errata.orchestrator.service.connections import Buckets
from errata.orchestrator.service.core import ServiceCore
from errata.orchestrator.service.errors import ServiceError, conflict, not_found, printable, unavailable
from errata.orchestrator.service.limits import Limits
from errata.orchestrator.service.looking import Before, Limit, Note, check_parameters, looking_routes
from errata.orchestrator.service.metrics import Metrics
from errata.orchestrator.service.models import EditIn, EditsIn, EvaluationIn, PublicationIn, QueryIn, ReasonIn
from errata.orchestrator.service.parsing import Submission, invalid, parse, parse_edits
from errata.orchestrator.service.publishing import Publishing, publications_view
from errata.orchestrator.service.schema import describe, takes
from errata.orchestrator.service.traces import Traces
from errata.orchestrator.service.views import (
    accepted_view,
    answers_view,
    edit_story,
    edit_view,
    evaluation_view,
    time_text,
    version_view,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
_LOCAL = Caller(Role.admin, "local")
_MOST_ID = 300
_KINDS = {".js": "text/javascript", ".css": "text/css"}
_TOKENS_AT_ONCE = 8
"""Of an answer that is not streamed: whether the client is still there is looked at between them."""


@dataclass
class Service:
    """Everything the routes need."""

    core: ServiceCore
    asking: Asking
    tokens: Tokens
    reader: Journal
    """Opened for reading only, so that reads and the writer do not wait for each other."""
    metrics: Metrics
    model: str = ""
    version: str = ""
    guard: Callable[[], Any] | None = None
    publishing: Publishing | None = None
    """Publication on request; None where there is none."""
    stream: Callable[[], str | None] = lambda: None
    """Why the stream beside the API has stopped, or None."""
    progress: Callable[[], list[dict[str, Any]]] = list
    """What the process is at: stages with ``name``, ``done``, ``total`` and ``note``."""
    traces: Traces | None = None
    started: float = field(default_factory=time.time)


def make_app(service: Service) -> FastAPI:
    """The application; it starts and ends nothing by itself."""
    app = FastAPI(title="Errata", version=service.version, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.service = service
    _errors(app)
    _open_routes(app, service)
    looking_routes(app, service, _needs(service, Role.read))
    _edit_routes(app, service)
    _history_routes(app, service)
    _question_routes(app, service)
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


def _needs(service: Service, role: Role) -> Any:
    """A dependency that lets callers of a role, or a higher one, through."""

    def check(request: Request) -> Caller:
        if not service.tokens:
            check_parameters(request)
            return _LOCAL
        caller = service.tokens.caller(request.headers.get("authorization"))
        if caller is None:
            raise ServiceError(
                401, "unauthorized", "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
            )
        if caller.role < role:
            raise ServiceError(403, "forbidden", f"this needs the role {role.name}; the token has {caller.role.name}")
        check_parameters(request)
        return caller

    return Depends(check)


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

    def ours(_: Request, error: Exception) -> Response:
        # uvicorn logs the traceback; a client learns nothing of the inside
        return JSONResponse(ServiceError(500, "internal", "an error of the service").body(), 500)

    app.add_exception_handler(ServiceError, known)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, ours)


async def _wait(future: Future[T]) -> T:
    return await asyncio.shield(asyncio.wrap_future(future))


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
    reader = nobody if core.config.open_metrics else _needs(service, Role.read)

    @app.get("/metrics", tags=["operating"], dependencies=[reader], response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


# ---------------------------------------------------------------- edits


def _edit_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, write = _needs(service, Role.read), _needs(service, Role.write)

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
        # a megabyte of JSON takes a tenth of a second: the probes and everybody else must not wait for it
        parsed = await run_in_threadpool(
            parse_edits,
            body,
            most=core.config.max_edits_per_request,
            key=request.headers.get("idempotency-key"),
            by=None if caller is _LOCAL else caller.label,
            now=datetime.now(UTC),
        )
        results = dict(parsed.problems)
        if parsed.requests:
            answers = await _wait(core.accept(list(parsed.requests.values())))
            service.metrics.accept.observe(time.perf_counter() - started)
            results |= {n: accepted_view(a) for n, a in zip(parsed.requests, answers, strict=True)}
        return _submitted([results[n] for n in sorted(results)], parsed)

    @app.get("/v1/edits/{id:path}", tags=["edits"])
    def edit(id: str, _: Caller = read) -> Any:
        """One edit and everything that happened to it."""
        return edit_story(service.reader, _row(service, id))

    @app.delete("/v1/edits/{id:path}", tags=["edits"], response_model=None)
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
        by = None if caller is _LOCAL else caller.label
        future = await run_in_threadpool(lambda: core.revert([id], reason=reason or "", by=by))
        patience = core.config.revert_wait_seconds if wait is None else wait
        try:
            outcome = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), patience)
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
    read, write = _needs(service, Role.read), _needs(service, Role.write)

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
        wanted = parse(EvaluationIn, await request.body())
        asked = await run_in_threadpool(core.evaluate, wanted.ids, wanted.sample)
        return vars(asked)

    @app.get("/v1/evaluations", tags=["versions"])
    def evaluations(limit: Limit = 50, before: Before = None, kind: Note = None, _: Caller = read) -> Any:
        """Figures of the journal, newest first, and what was asked for since the start."""
        rows = service.reader.evaluation_page(limit, before=before, kind=kind)
        following = rows[-1].number if len(rows) == limit else None
        return {
            "evaluations": [evaluation_view(row) for row in rows],
            "next": following,
            "asked": [vars(asked) for asked in core.asked()],
        }


# ---------------------------------------------------------------- questions


def _question_routes(app: FastAPI, service: Service) -> None:
    core, asking = service.core, service.asking
    read = _needs(service, Role.read)

    async def ask(questions: Sequence[Question], arms: Sequence[Arm], limit: int | None) -> Answers:
        started = time.perf_counter()
        await run_in_threadpool(asking.check, questions)
        answers = await _wait(asking.submit(questions, arms, limit))
        service.metrics.query.observe(time.perf_counter() - started)
        return answers

    @app.post("/v1/query", tags=["questions"], openapi_extra=takes(QueryIn))
    async def query(request: Request, _: Caller = read) -> Any:
        """Put questions to one or several arms at the live version, side by side."""
        wanted = parse(QueryIn, await request.body())
        if len(wanted.asked) > core.config.max_questions_per_query:
            raise ServiceError(
                422, "invalid", f"at most {counted(core.config.max_questions_per_query, 'question')} at once"
            )
        arms = wanted.arms or list(asking.arms)
        strange = [arm for arm in arms if arm not in asking.arms]
        if strange:
            raise ServiceError(422, "invalid", f"this run has no arm {strange[0]!r}; it has: {', '.join(asking.arms)}")
        limit = _bounded(core, wanted.max_new_tokens)
        started = time.perf_counter()
        view = answers_view(await ask([Question(text) for text in wanted.asked], arms, limit), wanted.asked)
        if service.traces is not None and service.traces.chosen():
            await run_in_threadpool(service.traces.keep, view, time.perf_counter() - started)
        return view

    @app.get("/v1/models", tags=["questions"])
    async def models(_: Caller = read) -> Any:
        """The ways of answering, as OpenAI clients list models."""
        return openai.models_view(asking.arms, service.started)

    @app.get("/v1/models/{name}", tags=["questions"])
    async def model(name: str, _: Caller = read) -> Any:
        """One of them."""
        openai.arm_of(name, asking.arms)
        return openai.model_view(name, service.started)

    @app.post("/v1/chat/completions", tags=["questions"], openapi_extra=takes(ChatIn), response_model=None)
    async def chat(request: Request, _: Caller = read) -> Response:
        """OpenAI-compatible; `model` names the way of answering, `errata` the routed one."""
        wanted = parse(ChatIn, await request.body())
        return await complete(request, wanted, wanted.limit or 64)

    @app.post("/v1/completions", tags=["questions"], openapi_extra=takes(TextIn), response_model=None)
    async def text(request: Request, _: Caller = read) -> Response:
        """OpenAI-compatible: continues a text."""
        wanted = parse(TextIn, await request.body())
        return await complete(request, wanted, wanted.limit or 16)

    async def complete(request: Request, wanted: openai.Completion, limit: int) -> Response:
        arm = openai.arm_of(wanted.model, asking.arms)
        started = time.perf_counter()
        sampling = wanted.sampling(min(limit, core.config.max_answer_tokens))
        plain = isinstance(wanted, TextIn)
        question = openai.question_of(wanted)
        await run_in_threadpool(asking.check, [question])
        said = await _wait(asking.speak(question, arm, sampling, plain=plain))
        if said.opened.reason is not None:
            service.metrics.decided(arm, said.opened.chosen is not None)
        headers = openai.headers_of(said)
        pieces = spoken(request, said, 1 if wanted.stream else _TOKENS_AT_ONCE)
        if wanted.stream:
            events = openai.events(wanted, said, pieces)
            return _Speech(said, events, media_type="text/event-stream", headers=headers)
        answer, tokens, finish = "", 0, "stop"
        async for piece in pieces:
            answer, tokens, finish = answer + piece.text, tokens + piece.tokens, piece.finish or finish
        service.metrics.query.observe(time.perf_counter() - started)
        shown = answer if plain else answer.rstrip()
        return JSONResponse(openai.completion(wanted, said, shown, tokens, finish), headers=headers)

    async def spoken(request: Request, said: Speaking, at_once: int) -> AsyncIterator[TextPiece]:
        """Pieces of an answer to its end; stops when the client has gone, and when the answer takes too long."""
        deadline = time.monotonic() + core.config.answer_seconds
        try:
            while True:
                if await request.is_disconnected():
                    return
                if time.monotonic() > deadline:
                    raise ServiceError(
                        504, "deadline", f"the answer was not finished within {core.config.answer_seconds:g} seconds"
                    )
                piece = await run_in_threadpool(said.next, at_once)
                yield piece
                if piece.finish is not None:
                    return
        finally:
            said.close()


class _Speech(StreamingResponse):
    """A stream that ends its answer however it ends itself, also if the client left before its first event."""

    def __init__(self, said: Speaking, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._said = said

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._said.close()


def _bounded(core: ServiceCore, tokens: int | None) -> int | None:
    return None if tokens is None else min(tokens, core.config.max_answer_tokens)


# ---------------------------------------------------------------- publications


def _publication_routes(app: FastAPI, service: Service) -> None:
    core = service.core
    read, admin = _needs(service, Role.read), _needs(service, Role.admin)

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
        wanted = parse(PublicationIn, await request.body())
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
    read, admin = _needs(service, Role.read), _needs(service, Role.admin)

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
        parse(ReasonIn, await request.body())
        future = core.refresh()
        try:
            started = await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(future)), core.config.revert_wait_seconds
            )
        except TimeoutError:
            return {"started": None}  # it comes after the batch under way
        return {"started": started}

    @app.get("/v1/inspection", tags=["operating"])
    async def inspection(_: Caller = admin) -> Any:
        """Digests of what editor and memory hold between two batches, fetched from them.

        `errata verify` prints the digest of the weights of every version that it rebuilds from the journal.
        """
        state = await _wait(core.inspect())
        held = {"weights": state.weights, "memory": state.memory, "statements": state.statements}
        return {"sequence": state.version.sequence, "version": state.version.digest, **held}

    @app.post("/v1/pause", tags=["operating"], openapi_extra=takes(ReasonIn, required=False))
    async def pause(request: Request, caller: Caller = admin) -> Any:
        """Write nothing from the next batch on. Edits are still accepted; a restart does not lift it."""
        reason = parse(ReasonIn, await request.body()).reason
        await run_in_threadpool(lambda: core.pause(reason=reason, by=caller.label))
        return {"state": core.state, "paused": core.paused}

    @app.post("/v1/resume", tags=["operating"], openapi_extra=takes(ReasonIn, required=False))
    async def resume(request: Request, caller: Caller = admin) -> Any:
        """Go on writing, whoever had paused: somebody, or the guard."""
        reason: str | None = parse(ReasonIn, await request.body()).reason
        await run_in_threadpool(lambda: core.resume(by=caller.label, reason=reason))
        return {"state": core.state, "paused": core.paused}
