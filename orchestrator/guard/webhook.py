"""Alerts to somebody else's server: sent in the background, tried again a few times, never waited for."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one alert."""

    payload: Mapping[str, Any]
    delivered: bool
    attempts: int
    why: str = ""
    """The last failure."""
    host: str = ""
    """Where it went, as it may be shown."""


class Webhook:
    """Posts JSON to one address from a thread of its own.

    Args:
        url: may carry a secret, as chat services have it: it is never logged, only its host.
        timeout: seconds for connecting and for the answer to begin.
        retries: attempts after the first, with pauses that double from ``pause`` seconds.
        done: told of every outcome, from the thread.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        retries: int = 3,
        pause: float = 1.0,
        done: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._url, self._timeout, self._retries, self._pause, self._done = url, timeout, retries, pause, done
        self._queue: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="errata-webhook", daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        """The address as it may be shown."""
        return urlsplit(self._url).hostname or "webhook"

    def send(self, payload: Mapping[str, Any]) -> None:
        """Have it posted; returns at once."""
        self._queue.put(dict(payload))

    def close(self, timeout: float = 10.0) -> None:
        """Wait up to ``timeout`` seconds for what was given to `send`, then give up on it."""
        self._queue.put(None)
        self._thread.join(timeout)
        self._giving_up.set()
        if self._thread.is_alive():
            logger.warning("an alert to %s may not have arrived", self.host)

    def _work(self) -> None:
        while (payload := self._queue.get()) is not None and not self._giving_up.is_set():
            outcome = self._deliver(payload)
            if not outcome.delivered:
                tries = outcome.attempts
                logger.warning("the alert to %s was not delivered in %d attempts: %s", self.host, tries, outcome.why)
            if self._done is not None:
                try:
                    self._done(outcome)
                except Exception as error:  # a journal that is closed already: the alert itself is out
                    logger.warning("the outcome of an alert could not be noted: %s", error)

    def _deliver(self, payload: Mapping[str, Any]) -> Outcome:
        why, attempts = "", 0
        for attempt in range(1 + self._retries):
            if attempt and self._giving_up.wait(self._pause * 2 ** (attempt - 1)):
                break
            attempts += 1
            why = self._post(payload)
            if not why:
                return Outcome(payload, True, attempts, host=self.host)
        return Outcome(payload, False, attempts, why, self.host)

    def _post(self, payload: Mapping[str, Any]) -> str:
        """Empty if it was taken, else why not, without the address."""
        import httpx

        body = json.dumps(payload, default=str).encode()
        try:
            # the answer's body is not read: a server that sends it byte by byte could hold the thread for ever
            headers = {"content-type": "application/json"}
            with httpx.stream("POST", self._url, content=body, headers=headers, timeout=self._timeout) as answer:
                return "" if answer.is_success else f"status {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            return type(error).__name__
