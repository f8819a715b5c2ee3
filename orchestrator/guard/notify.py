"""Alerts to where people read: Slack, Teams, PagerDuty, mail and others, by Apprise, beside the plain webhook."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from errata.editing.errors import UserError
from errata.editing.extras import require
from errata.editing.wording import counted
from errata.orchestrator.guard.webhook import Outcome, Webhook

NOTIFY: Final = "ERRATA_GUARD_NOTIFY"
"""Environment variable with Apprise's addresses, separated by spaces: they carry tokens and passwords."""


class Notifier(Webhook):
    """One Apprise address, told in words; in a thread of its own, as the webhook is.

    Args:
        address: ``slack://...``, ``msteams://...``, ``pagerduty://...``, ``mailto://...``; never logged, only its kind.
        retries, pause, done: as `Webhook`.

    Raises:
        UserError: Apprise is not installed, or knows no such address.
    """

    def __init__(
        self, address: str, *, retries: int = 3, pause: float = 1.0, done: Callable[[Outcome], None] | None = None
    ) -> None:
        apprise = require("apprise")
        # it prints addresses at lower levels
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        self._kind = address.partition(":")[0]
        self._target = apprise.Apprise()
        if not self._target.add(address):
            raise UserError(f"{NOTIFY}: Apprise knows no address of this form: {self._kind}://...")
        super().__init__(address, retries=retries, pause=pause, done=done)

    @property
    def host(self) -> str:
        """The kind of address, which is all that may be shown of it."""
        return self._kind

    def _post(self, payload: Mapping[str, Any]) -> str:
        title, body = in_words(payload)
        try:
            return "" if self._target.notify(title=title, body=body, notify_type="failure") else "not taken"
        except Exception as error:  # whatever a service's plugin raises, an alert never ends a run
            return type(error).__name__


def in_words(payload: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text of an alert."""
    title = f"Errata: guard breach in run {payload.get('run')}"
    version = str(payload.get("version") or "")[:12]
    edits = counted(payload.get("edits") or 0, "edit")
    lines = [f"Version v{payload.get('sequence')} ({version}) after {edits} does not hold."]
    lines += [f"- {reason}" for reason in payload.get("reasons") or ()]
    if payload.get("reverting"):
        one = len(payload["reverting"]) == 1
        lines.append(f"{counted(len(payload['reverting']), 'edit')} {'is' if one else 'are'} being taken back.")
    if payload.get("paused"):
        lines.append("The stream is paused until somebody resumes it.")
    return title, "\n".join(lines)


def notifiers(retries: int, done: Callable[[Outcome], None]) -> list[Webhook]:
    """One for each address of the environment."""
    return [Notifier(address, retries=retries, done=done) for address in os.environ.get(NOTIFY, "").split()]
