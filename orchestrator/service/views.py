"""What clients get to see: rows of the journal as JSON, cut into pages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from errata.evaluation.answering import ArmAnswer
from errata.evaluation.outcomes import Retrieved
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Accepted, EvaluationRow, RefreshRow, RequestRow, Version, shown_state
from errata.orchestrator.service.asking import Answers

_SHOWN = ("subject", "prompt", "target_new", "target_true", "relation", "statement", "provenance")


def time_text(value: datetime | None) -> str | None:
    """ISO 8601, or None."""
    return None if value is None else value.isoformat()


def state_of(row: RequestRow) -> str:
    """The state clients see (`shown_state`)."""
    return shown_state(row.state)


def edit_view(row: RequestRow) -> dict[str, Any]:
    """An edit in a list."""
    return {
        "id": row.id,
        "number": row.seq,
        "state": state_of(row),
        "outcome": row.outcome,
        "reason": row.reason,
        "accepted_at": time_text(row.accepted_at),
        "applied_in": row.applied_in,
        "ended_in": row.ended_in,
        "superseded_by": row.superseded_by,
        **{key: row.payload.get(key) for key in _SHOWN},
    }


def edit_story(journal: Journal, row: RequestRow) -> dict[str, Any]:
    """An edit with its probes, the editor's figures and everything that happened to it."""
    fates = [
        {"state": shown_state(fate.state), "sequence": fate.sequence, "reason": fate.reason, "at": time_text(fate.at)}
        for fate in journal.fates(row.id)
    ]
    probes = {key: row.payload.get(key, []) for key in ("paraphrases", "neighborhood", "portability")}
    same = [] if row.fact_key is None else journal.requests_of_facts([row.fact_key])
    before = [one.id for one in same if one.superseded_by == row.id]
    return {
        **edit_view(row),
        "supersedes": before,
        **probes,
        "result": row.result,
        "figures": row.figures,
        "fates": fates,
    }


def accepted_view(answer: Accepted, row: RequestRow | None = None) -> dict[str, Any]:
    """What a client is told of one edit it submitted."""
    if answer.refused is not None:
        return {"id": answer.id, "status": "invalid" if answer.invalid else "conflict", "error": answer.refused}
    status = "duplicate" if answer.duplicate else "accepted"
    view: dict[str, Any] = {"id": answer.id, "status": status, "number": answer.seq}
    return {**view, "state": state_of(row)} if row is not None else view


def version_view(version: Version) -> dict[str, Any]:
    """A version in a list."""
    return {
        "sequence": version.sequence,
        "digest": version.digest,
        "parent": version.parent,
        "kind": version.kind,
        "edits": version.edits,
        "request_ids": list(version.request_ids),
        "seconds": version.seconds,
        "norms": {str(layer): norm for layer, norm in version.norms.items()},
        "delta_norms": {str(layer): norm for layer, norm in version.delta_norms.items()},
        "covariance": version.covariance,
        "figures": version.figures,
        "at": time_text(version.at),
    }


def refresh_view(row: RefreshRow) -> dict[str, Any]:
    """A refresh of the covariance in a list."""
    return {
        "triggered_at": row.triggered_at,
        "from_version": row.from_version,
        "state": row.state,
        "reason": row.reason,
        "covariance": row.covariance,
        "seconds": row.seconds,
        "at": time_text(row.at),
    }


def evaluation_view(row: EvaluationRow) -> dict[str, Any]:
    """The figures of one evaluation."""
    metrics = {key: value for key, value in row.metrics.items() if key not in ("norms", "delta_norms")}
    return {
        "number": row.number,
        "kind": row.kind,
        "version": row.version,
        "edits": row.edits,
        "at": time_text(row.at),
        **metrics,
    }


def answers_view(answers: Answers, questions: list[str]) -> dict[str, Any]:
    """Answers side by side."""
    return {
        "version": answers.version.digest,
        "sequence": answers.version.sequence,
        "edits": answers.version.edits,
        "seconds": round(answers.seconds, 4),
        "answers": [
            {"question": question, "arms": {arm: _answer(reply, answers.edits) for arm, reply in by_arm.items()}}
            for question, by_arm in zip(questions, answers.answers, strict=True)
        ],
    }


def _answer(reply: ArmAnswer, edits: Mapping[int, str]) -> dict[str, Any]:
    view: dict[str, Any] = {"answer": reply.text, "tokens": reply.tokens}
    if reply.reason is not None:
        view["chosen"] = statement_view(reply.chosen, edits)
        view["reason"] = reply.reason
        view["retrieved"] = [statement_view(statement, edits) for statement in reply.retrieved]
    return view


def statement_view(statement: Retrieved | None, edits: Mapping[int, str]) -> dict[str, Any] | None:
    """A statement with the edit it belongs to."""
    if statement is None:
        return None
    return {
        "edit": edits.get(statement.id),
        "number": statement.id,
        "statement": statement.statement,
        "similarity": round(statement.score, 4),
    }
