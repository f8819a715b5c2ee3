"""Questions about another time over HTTP: what the past refuses, as an answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from errata.editing.errors import UserError
from errata.evaluation.outcomes import Arm, AskedArm
from errata.orchestrator.history import past
from errata.orchestrator.history.past import Moment, Past
from errata.orchestrator.service.errors import ServiceError


def moment_of(found: Past, as_of: datetime | None, as_known_at: str | None) -> Moment | None:
    """The moment that a question names; None where it is about now.

    Raises:
        ServiceError: 404 where there is no such version.
    """
    if as_of is None and as_known_at is None:
        return None
    try:
        return found.moment(as_of, as_known_at)
    except UserError as error:
        raise ServiceError(404, "not_found", str(error)) from None


def arms_then(wanted: Sequence[Arm] | None, there: Sequence[AskedArm]) -> list[Arm]:
    """The arms that answer a question about another time.

    Raises:
        ServiceError: 422 where one that was asked for needs the weights of then.
    """
    try:
        return past.arms_then(wanted, there)
    except UserError as error:
        raise ServiceError(422, "invalid", str(error)) from None
