"""From a configuration to a listening service, and from a signal to its orderly end."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from errata.editing.errors import ErrataError, UserError
from errata.editing.wording import counted, model_title
from errata.evaluation.outcomes import ARMS
from errata.orchestrator.config.loading import build_config, composed
from errata.orchestrator.config.presets import find_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.past import Past
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.attached import attach
from errata.orchestrator.run.opening import check_run, open_run
from errata.orchestrator.run.outputs import errata_version
from errata.orchestrator.service.access import Tokens, watched_tokens
from errata.orchestrator.service.app import make_app
from errata.orchestrator.service.asking import Asking, Bounds
from errata.orchestrator.service.calls import Service
from errata.orchestrator.service.connections import ConnectionGuard, protocol
from errata.orchestrator.service.core import ServiceCore
from errata.orchestrator.service.metrics import Metrics
from errata.orchestrator.service.publishing import publishing_of
from errata.orchestrator.service.traces import Traces
from errata.orchestrator.sources import Pump

logger = logging.getLogger(__name__)

_MAX_AGE_SECONDS = 2.0


def service_config(name_or_path: str, overrides: Sequence[str] = (), preset: str | None = None) -> RunConfig:
    """A configuration for serving: by the clock unless it says otherwise, and with no stream needed.

    Raises:
        UserError: as `errata.orchestrator.config.loading.load_config`.
    """
    path = find_config(name_or_path)
    data = composed(path, overrides, preset)
    data.setdefault("stream", {})
    if data.setdefault("schedule", "asap") == "asap":
        batching = data.setdefault("batching", {})
        if isinstance(batching, dict):
            # an edit by itself must not wait for nine others
            batching.setdefault("max_age_seconds", _MAX_AGE_SECONDS)
    return build_config(data, source=path)


def serve(config: RunConfig, output: Path, *, host: str, port: int, display: Display) -> None:
    """`serve_until_stopped`, where a signal during the start is an orderly end as well."""
    try:
        serve_until_stopped(config, output, host=host, port=port, display=display)
    except KeyboardInterrupt:
        display.say("stopped before it was serving; what was journaled is kept")


def serve_until_stopped(config: RunConfig, output: Path, *, host: str, port: int, display: Display) -> None:
    """Serve until SIGTERM or SIGINT; the batch under way is finished then, and what waits stays in the journal.

    Goes on with the run in ``output`` if there is one of the same configuration.

    Raises:
        UserError: something the user can put right; nothing was written then.
        ErrataError: the service could not go on; what was journaled is kept.
    """
    tokens = watched_tokens(config.service.tokens_file)
    check_host(host, tokens)
    checked = check_run(config, output, resume=None, needs_stream=False)
    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        # from here on a signal ends the service, at whatever point its start has come to
        stopper = stack.enter_context(_Stopper())
        run = stack.enter_context(open_run(checked, display, completed="KILLED", patience=30.0))
        config, journal, store, tracker, admission = run.config, run.journal, run.store, run.tracker, run.admission
        snapshots = config.snapshots
        every = snapshots.every if snapshots.every is not None else snapshots.serving
        served = config.model_copy(update={"snapshots": snapshots.model_copy(update={"every": every})})
        journal.patience(config.service.lock_seconds)
        pipeline = make_pipeline(served, journal, store, run.cluster, tracker=tracker, display=display)
        publishing = publishing_of(config, journal, store, output, alone=lambda: attached.wait_published())
        stack.callback(publishing.close)
        attached = attach(
            pipeline,
            config.guard,
            config.publish,
            output,
            held_out=config.evaluation.held_out,
            metrics=tracker.log_metrics,
            say=display.say,
            may_publish=lambda: not publishing.busy,
        )
        reader = stack.enter_context(Journal.open(output / JOURNAL_FILE, read_only=True))
        core = ServiceCore(
            pipeline, config.service, guard=attached.guard, closing=attached.close, admit=admission, reader=reader
        )
        stack.callback(core.stop)
        asking = Asking(
            lambda: core.live,
            pipeline.memory,
            pipeline.evaluators,
            k=config.memory.scr.k,
            arms=[arm for arm in ARMS if arm in config.evaluation.arms],
            limit=config.service.max_queries,
            bounds=Bounds(admission.text, admission.capacity, config.service.max_question_tokens),
            past=Past(reader, pipeline.memory, config.memory.scr.k, config.memory.statement),
        )
        stack.callback(asking.close)
        pump = None
        if run.source is not None:
            pump = Pump(
                run.source,
                run.intake,
                wake=lambda _: core.wake(),
                room=lambda: reader.waiting() < config.service.max_waiting,
                say=display.warn,
            )
            stack.callback(pump.close)
        guard = attached.guard
        service = Service(
            core,
            asking,
            tokens,
            reader,
            Metrics(core, reader, spooled=tracker.waiting, guard=None if guard is None else guard.status),
            model=model_title(config.model.name),
            version=errata_version(),
            guard=None if guard is None else guard.status,
            publishing=publishing,
            progress=display.under_way,
            traces=Traces(tracker.log_trace, config.tracking.trace_share),
            stream=lambda: None if pump is None or pump.error is None else str(pump.error),
        )
        core.start()
        _announce(listener, tokens, display)
        _run(service, listener, stopper)
        if core.failure is None:
            display.say("ending: the batch under way is finished, what waits stays in the journal")
    if core.failure is not None:
        if isinstance(core.failure, ErrataError):
            raise core.failure
        raise ErrataError(f"the service could not go on: {type(core.failure).__name__}: {core.failure}")


def check_host(host: str, tokens: Tokens) -> None:
    """Without tokens everybody who reaches the port may do everything, so only this machine may.

    Raises:
        UserError: another interface without tokens.
    """
    if tokens:
        return
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UserError(
            f"--host {host!r} without tokens: set ERRATA_TOKENS='role:token,...' or ERRATA_TOKENS_FILE "
            "(roles: read, write, admin), or serve on 127.0.0.1"
        )


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket, closed at the end.

    Raises:
        UserError: the address does not exist here, or is taken.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = addresses[0]
        # with its protocol named, asyncio sends answers without delay; else each would wait 40 ms for a packet
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host!r} --port {port}: {error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(256)
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield listener


class _Stopper:
    """Turns the signals that end a service into an orderly end, from the first moment to the last."""

    def __init__(self) -> None:
        self.server: Any = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stopper:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.server is None:
            # nothing is under way yet: go back through the start
            raise KeyboardInterrupt
        self.server.should_exit = True


def _run(service: Service, listener: socket.socket, stopper: _Stopper) -> None:
    import uvicorn

    from errata.orchestrator.service.server import BACKLOG, GRACE_SECONDS, Server

    settings = service.core.config
    server = Server(
        uvicorn.Config(
            make_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
            backlog=BACKLOG,
            http=protocol(ConnectionGuard(settings.max_connections, settings.head_seconds)),
        ),
        service.core.drain,
    )

    def give_up() -> None:
        server.should_exit = True

    service.core.on_failure = give_up
    stopper.server = server
    if service.core.failure is None:
        # uvicorn has handlers of its own while it runs, and hands the signal on to ours when it has ended
        server.run(sockets=[listener])


def _announce(listener: socket.socket, tokens: Tokens, display: Display) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    guarded = counted(len(tokens), "token") if tokens else "no tokens: everybody on this machine may do everything"
    display.say(f"serving on http://{shown}:{port} ({guarded})")
