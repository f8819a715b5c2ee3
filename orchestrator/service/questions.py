"""The routes that put questions to the live version, in the project's own form and in OpenAI's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from errata.editing.wording import counted
from errata.evaluation.answering import Question
from errata.evaluation.outcomes import Arm
from errata.evaluation.patience import Patience
from errata.evaluation.streaming import TextPiece
from errata.orchestrator.history.past import Moment
from errata.orchestrator.service import openai
from errata.orchestrator.service.access import Caller, Role, needs
from errata.orchestrator.service.asking import Answers, Speaking
from errata.orchestrator.service.bodies import QueryIn, answers_view, body_as
from errata.orchestrator.service.calls import Service
from errata.orchestrator.service.completions import ChatIn, TextIn
from errata.orchestrator.service.core import ServiceCore
from errata.orchestrator.service.errors import ServiceError, unavailable
from errata.orchestrator.service.past import moment_of
from errata.orchestrator.service.schema import takes

T = TypeVar("T")
_TOKENS_AT_ONCE = 8
"""Of an answer that is not streamed: whether the client is still there is looked at between them."""
_LOOK_SECONDS = 0.2
"""How often it is looked whether a client is still there, and whether the service ends."""


def question_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to the application."""
    core, asking = service.core, service.asking
    read = needs(service.tokens, Role.read)

    async def ask(
        request: Request,
        questions: Sequence[Question],
        arms: Sequence[Arm],
        limit: int | None,
        moment: Moment | None = None,
    ) -> Answers:
        started = time.perf_counter()
        await run_in_threadpool(asking.check, questions)
        waiter = Waiter(core, request)
        answers = await waiter.wait(asking.submit(questions, arms, limit, waiter.patience, moment))
        service.metrics.query.observe(time.perf_counter() - started)
        return answers

    @app.post("/v1/query", tags=["questions"], openapi_extra=takes(QueryIn))
    async def query(request: Request, _: Caller = read) -> Any:
        """Put questions to one or several arms at the live version, side by side."""
        wanted = await body_as(QueryIn, request)
        if len(wanted.asked) > core.config.max_questions_per_query:
            raise ServiceError(
                422, "invalid", f"at most {counted(core.config.max_questions_per_query, 'question')} at once"
            )
        strange = [arm for arm in wanted.arms or () if arm not in asking.arms]
        if strange:
            raise ServiceError(422, "invalid", f"this run has no arm {strange[0]!r}; it has: {', '.join(asking.arms)}")
        moment = await run_in_threadpool(moment_of, asking.past, wanted.as_of, wanted.as_known_at)
        arms: list[Arm] = list(wanted.arms or asking.arms_at(moment))
        limit = _bounded(core, wanted.max_new_tokens)
        started = time.perf_counter()
        questions = [Question(text) for text in wanted.asked]
        view = answers_view(await ask(request, questions, arms, limit, moment), wanted.asked)
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
        wanted = await body_as(ChatIn, request)
        return await complete(request, wanted, wanted.limit or 64)

    @app.post("/v1/completions", tags=["questions"], openapi_extra=takes(TextIn), response_model=None)
    async def text(request: Request, _: Caller = read) -> Response:
        """OpenAI-compatible: continues a text."""
        wanted = await body_as(TextIn, request)
        return await complete(request, wanted, wanted.limit or 16)

    async def complete(request: Request, wanted: openai.Completion, limit: int) -> Response:
        arm = openai.arm_of(wanted.model, asking.arms)
        started = time.perf_counter()
        sampling = wanted.sampling(min(limit, core.config.max_answer_tokens))
        plain = isinstance(wanted, TextIn)
        question = openai.question_of(wanted)
        moment = await run_in_threadpool(moment_of, asking.past, wanted.as_of, wanted.as_known_at)
        await run_in_threadpool(asking.check, [question])
        waiter = Waiter(core, request)
        future = asking.speak(question, arm, sampling, plain=plain, patience=waiter.patience, moment=moment)
        try:
            said = await waiter.wait(future)
        except BaseException:
            future.add_done_callback(_close_unheard)
            raise
        if said.opened.reason is not None:
            service.metrics.decided(arm, said.opened.chosen is not None)
        headers = openai.headers_of(said)
        pieces = spoken(waiter, said, 1 if wanted.stream else _TOKENS_AT_ONCE)
        if wanted.stream:
            events = openai.events(wanted, said, pieces)
            return _Speech(said, events, media_type="text/event-stream", headers=headers)
        answer, tokens, finish = "", 0, "stop"
        async for piece in pieces:
            answer, tokens, finish = answer + piece.text, tokens + piece.tokens, piece.finish or finish
        service.metrics.query.observe(time.perf_counter() - started)
        shown = answer if plain else answer.rstrip()
        return JSONResponse(openai.completion(wanted, said, shown, tokens, finish), headers=headers)

    async def spoken(waiter: Waiter, said: Speaking, at_once: int) -> AsyncIterator[TextPiece]:
        """Pieces of an answer to its end; stops when the client has gone, and when the answer takes too long."""
        try:
            while True:
                await waiter.check()
                piece = await waiter.wait(asyncio.ensure_future(run_in_threadpool(said.next, at_once)))
                yield piece
                if piece.finish is not None:
                    return
        finally:
            said.close()


class Waiter:
    """A client that waits for an answer: gone as soon as its connection is, or the service has no time left."""

    def __init__(self, core: ServiceCore, request: Request) -> None:
        self._core, self._request = core, request
        self._gone = threading.Event()
        self.patience = Patience.within(core.config.answer_seconds, self._gone.is_set)

    async def wait(self, future: Future[T] | asyncio.Future[T]) -> T:
        """The answer, while the client is there.

        Raises:
            ServiceError: 504: it takes too long, 503: the service ends.
        """
        waited = asyncio.wrap_future(future) if isinstance(future, Future) else future
        waited.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # whether it is heard or not
        try:
            while not (await asyncio.wait({waited}, timeout=_LOOK_SECONDS))[0]:
                await self.check()
            return waited.result()
        except BaseException:
            self._gone.set()
            raise

    async def check(self) -> None:
        """Raise as `wait` where nobody is there any more, or nobody will be."""
        if await self._request.is_disconnected():
            raise ServiceError(400, "bad_request", "the client went away")
        if self._core.cut_off:
            raise unavailable("the service is ending")
        if time.monotonic() > self.patience.until:
            seconds = self._core.config.answer_seconds
            raise ServiceError(504, "deadline", f"the answer was not finished within {seconds:g} seconds")


def _close_unheard(future: Future[Speaking]) -> None:
    """An answer that nobody waited for is not left open."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()


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
