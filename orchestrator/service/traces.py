"""A share of the questions as traces of MLflow: what was asked, what each arm said, at which version, how fast."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

Log = Callable[[Mapping[str, Any]], None]


class Traces:
    """Samples calls of ``/v1/query``.

    Args:
        log: takes one trace, see `errata.orchestrator.tracking.tracker.Tracker.log_trace`.
        share: of the calls that become one.
        draw: numbers in [0, 1).
    """

    def __init__(self, log: Log, share: float, draw: Callable[[], float] = random.random) -> None:
        self._log, self._share, self._draw = log, share, draw

    def chosen(self) -> bool:
        """Whether the call at hand becomes a trace."""
        return self._share > 0 and self._draw() < self._share

    def keep(self, view: Mapping[str, Any], seconds: float) -> None:
        """Write down a call that ends now.

        Args:
            view: what the client is sent.
            seconds: from its question to its answer.
        """
        ended = time.time_ns()
        answers = view["answers"]
        arms = list(answers[0]["arms"]) if answers else []
        self._log(
            {
                "name": "query",
                "inputs": {"questions": [one["question"] for one in answers]},
                "outputs": {"answers": [{arm: said["answer"] for arm, said in one["arms"].items()} for one in answers]},
                "attributes": {"edits": view["edits"], "sequence": view["sequence"]},
                "tags": {"errata.version": view["version"], "errata.arms": ", ".join(arms)},
                "started_ns": ended - int(seconds * 1e9),
                "ended_ns": ended,
                "children": [{"name": arm, "outputs": [one["arms"][arm] for one in answers]} for arm in arms],
            }
        )
