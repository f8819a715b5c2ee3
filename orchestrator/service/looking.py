"""Routes that only look: edits by words and marks, refreshes, the guard's checks, the router's curve."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query

from errata.orchestrator.guard.guard import EVENT as GUARD_EVENT
from errata.orchestrator.journal.rows import Outcome, ShownState, stored_state
from errata.orchestrator.service.bodies import edit_view, refresh_view, time_text
from errata.orchestrator.service.calls import Note, Service
from errata.orchestrator.service.errors import ServiceError, unavailable

Limit = Annotated[int, Query(ge=1, le=500, description="Most rows.")]
Before = Annotated[
    int | None,
    Query(ge=1, le=1 << 62, description="Only what is older than this number; `next` of the page before."),
]

_GUARD_SHOWN: Final = (
    "what",
    "sequence",
    "version",
    "edits",
    "good",
    "kept",
    "ratio",
    "perplexity",
    "paused",
    "good_sequence",
    "reverting",
    "seconds",
)
_MOST_WORDS: Final = 12


def looking_routes(app: FastAPI, service: Service, read: Any) -> None:
    """Add them; ``read`` is the dependency that lets readers through."""

    @app.get("/v1/edits", tags=["edits"])
    def edits(
        state: ShownState | None = None,
        outcome: Outcome | None = None,
        relation: Note = None,
        q: Note = None,
        limit: Limit = 50,
        before: Before = None,
        _: Any = read,
    ) -> Any:
        """Edits, newest first, a page at a time: in one state, landed or weak, of one relation, with some words.

        `q`: every one of its words occurs in the id, subject, prompt, target or statement.
        """
        if q is not None and len(q.split()) > _MOST_WORDS:
            raise ServiceError(422, "invalid", f"q: at most {_MOST_WORDS} words")
        rows = service.reader.request_page(
            limit,
            before=before,
            state=None if state is None else stored_state(state),
            outcome=outcome,
            relation=relation,
            words=q,
        )
        return {"edits": [edit_view(row) for row in rows], "next": rows[-1].seq if len(rows) == limit else None}

    @app.get("/v1/refreshes", tags=["versions"])
    def refreshes(limit: Limit = 50, _: Any = read) -> Any:
        """Refreshes of the covariance, newest first, and the covariance in force."""
        reader = service.reader
        rows = sorted(reader.refreshes(), key=lambda row: row.at, reverse=True)[:limit]
        digest = reader.covariance_for(reader.head().sequence)
        known = {row.digest: row for row in reader.covariances()}
        force = known.get(digest or "")
        return {
            "refreshes": [refresh_view(row) for row in rows],
            "in_force": None
            if force is None
            else {"digest": force.digest, "tokens": force.tokens, "layers": list(force.layers)},
        }

    @app.get("/v1/guard", tags=["operating"])
    def guard(limit: Limit = 50, before: Before = None, _: Any = read) -> Any:
        """Where the guard stands, and what it has found and done, newest first; `guard` is null where there is none."""
        found = None if service.guard is None else asdict(service.guard())
        events = service.reader.event_page(limit, before=before, kind=GUARD_EVENT)
        return {
            "guard": found,
            "events": [
                {
                    "number": event.number,
                    "at": time_text(event.at),
                    **{key: event.data[key] for key in _GUARD_SHOWN if key in event.data},
                }
                for event in events
            ],
            "next": events[-1].number if len(events) == limit else None,
        }

    @app.get("/v1/router", tags=["questions"])
    def router(_: Any = read) -> Any:
        """The router in force: its operating point, and what other points would do; null where none is asked."""
        if "routed" not in service.asking.arms:
            return {"router": None}
        if not service.core.ready:
            raise unavailable(f"the service is {service.core.state}", retry_after=10)
        fitted = service.asking.router()
        shown = fitted.model_dump(
            mode="json", include={"max_false_alarms", "threshold", "statements", "rates", "curve"}
        )
        return {"router": {"digest": fitted.digest, **shown}}
