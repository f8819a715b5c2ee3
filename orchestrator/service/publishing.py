"""Publications that a client asks for: one at a time, in the background, and never beside one of the policy's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from errata.editing.errors import ErrataError
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.publisher import publish_to_servers
from errata.orchestrator.publish.registry import Registered, register_version
from errata.orchestrator.publish.rollout import EVENT, ServerResult, last_served
from errata.orchestrator.service.bodies import PublicationIn, time_text
from errata.orchestrator.service.errors import ServiceError, busy, conflict, unavailable

logger = logging.getLogger(__name__)

_KEPT: Final = 100
# not the places of adapters, which are paths on this machine and on the servers
_SHOWN: Final = ("what", "server", "name", "sequence", "version", "reason", "rank", "edited", "untouched", "questions")
_SHOWN_REGISTRY: Final = ("registry", "number", "alias", "form")

Roll = Callable[[Version, PublishConfig], Sequence[ServerResult]]
Register = Callable[[Version, PublicationIn], Registered]


@dataclass
class Publication:
    """One that was asked for, while this process lives; the journal keeps its steps."""

    name: str
    version: str
    sequence: int
    to: tuple[str, ...]
    alias: str | None
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    problem: str | None = None
    servers: list[dict[str, Any]] = field(default_factory=list)
    """What became of each server."""
    registered: dict[str, Any] | None = None

    def view(self) -> dict[str, Any]:
        """As clients see it."""
        return dict(vars(self))


class Publishing:
    """See the module.

    Args:
        config: the servers that may be published to, and how.
        roll: sends a version to the servers of a configuration.
        register: registers a version under an alias.
        alone: returns when nobody else is publishing; called by the thread that publishes.
    """

    def __init__(
        self, config: PublishConfig, roll: Roll, register: Register, *, alone: Callable[[], None] = lambda: None
    ) -> None:
        self._config, self._roll, self._register, self._alone = config, roll, register, alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="errata-publish")
        self._lock = threading.Lock()
        self._asked: list[Publication] = []
        self._numbers = count(1)
        self._under_way: Publication | None = None

    @property
    def busy(self) -> bool:
        """Whether a publication is under way or about to begin: the policy leaves its own to the next commit."""
        return self._under_way is not None

    @property
    def served_name(self) -> str:
        """Name that clients of the servers use."""
        return self._config.served_name

    def asked(self) -> list[Publication]:
        """Publications that were asked for since the start, oldest first."""
        return list(self._asked)

    def ask(self, wanted: PublicationIn, version: Version) -> Publication:
        """Note an intent; `begin` is to follow, from the thread that commits, or `give_up`.

        Raises:
            ServiceError: 409 where there is nothing to publish to, 422 for a server that the configuration does not
                name, 429 while another publication is under way.
        """
        strange = [server for server in wanted.to or () if server not in self._config.to]
        if strange:
            raise ServiceError(422, "invalid", f"to: {strange[0]!r} is not among the servers of publish.to")
        to = tuple(wanted.to) if wanted.to is not None else (() if wanted.alias is not None else self._config.to)
        if not to and wanted.alias is None:
            raise conflict("there is nothing to publish to: publish.to of the configuration is empty, give an alias")
        with self._lock:
            if self._under_way is not None:
                raise busy(f"publication {self._under_way.name} is under way", retry_after=10)
            made = Publication(f"p{next(self._numbers)}", version.digest, version.sequence, to, wanted.alias)
            self._under_way = made
            self._asked = [*self._asked[-_KEPT + 1 :], made]
        return made

    def begin(self, made: Publication, wanted: PublicationIn, version: Version) -> None:
        """Publish in the background. For the thread that commits, so that the policy begins none at that moment.

        Raises:
            ServiceError: 503: the service is ending.
        """
        try:
            self._thread.submit(self._work, made, wanted, version)
        except RuntimeError:  # the thread was shut down
            raise unavailable("the service is ending; nothing was published") from None

    def give_up(self, made: Publication, why: BaseException) -> None:
        """It will not begin."""
        made.state, made.problem = "failed", str(why)
        self._under_way = None

    def close(self) -> None:
        """Finish the publication under way: half of one would be left to the next."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _work(self, made: Publication, wanted: PublicationIn, version: Version) -> None:
        try:
            self._alone()
            made.state = "running"
            if wanted.alias is not None:
                made.registered = _registered(self._register(version, wanted))
            if made.to:
                results = self._roll(version, self._config.model_copy(update={"to": made.to}))
                made.servers = [_result(result) for result in results]
            ok = all(server["ok"] for server in made.servers)
            made.problem = None if ok else "not every server has it"
            made.state = "done" if ok else "failed"
        except Exception as error:
            # whatever keeps a version from being published must not keep edits from being written
            logger.error("v%d was not published: %s", version.sequence, error)
            known = isinstance(error, ErrataError)
            made.problem = str(error) if known else f"it failed: {type(error).__name__}"
            made.state = "failed"
        finally:
            self._under_way = None


def _registered(registered: Registered) -> dict[str, Any]:
    return {"name": registered.name, "number": registered.number, "alias": registered.alias, "new": registered.new}


def _result(result: ServerResult) -> dict[str, Any]:
    marks = result.marks
    return {
        "server": result.url,
        "state": result.state,
        "ok": result.ok,
        "reason": result.reason or None,
        "edited": None if marks is None else marks.edited,
        "untouched": None if marks is None else marks.untouched,
    }


def publishing_of(
    config: RunConfig, journal: Journal, store: ArtifactStore, run: Path, *, alone: Callable[[], None]
) -> Publishing:
    """Publication of a run's versions as `errata publish` does it."""

    def roll(version: Version, settings: PublishConfig) -> Sequence[ServerResult]:
        return publish_to_servers(journal, store, version, settings, run)

    def register(version: Version, wanted: PublicationIn) -> Registered:
        return register_version(
            journal,
            store,
            version,
            run,
            name=wanted.name or f"errata-{config.name}",
            alias=wanted.alias or "",
            form=wanted.format,
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
        )

    return Publishing(config.publish, roll, register, alone=alone)


def publications_view(journal: JournalReader, publishing: Publishing, limit: int, before: int | None) -> dict[str, Any]:
    """``GET /v1/publications``: what the servers have, what was asked for, and the journal's steps, newest first."""
    events = journal.event_page(limit + 1, before=before, kind=EVENT)
    page = events[:limit]
    served = last_served(journal, publishing.served_name)
    return {
        "servers": [{"server": url, "serves": _adapter(path)} for url, path in sorted(served.items())],
        "asked": [made.view() for made in publishing.asked()],
        "steps": [
            {
                "number": event.number,
                "at": time_text(event.at),
                **{key: event.data[key] for key in (*_SHOWN, *_SHOWN_REGISTRY) if key in event.data},
            }
            for event in page
        ],
        "next": page[-1].number if len(events) > limit else None,
    }


def _adapter(path: str | None) -> str | None:
    return None if path is None else PurePosixPath(path).name
