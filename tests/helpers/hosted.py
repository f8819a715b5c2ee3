"""A service in a process of its own, on a pipeline without models: the real application, server, journal and signals.

    python -m tests.helpers.hosted DIRECTORY '{"batch_seconds": 0, "hold_questions": false, "service": {...}}'

Prints its address and serves until SIGTERM. ``clock`` in the directory holds seconds by which its wall clock is off;
``writing`` is there once a batch is under way.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from errata.editing.errors import ErrataError
from errata.orchestrator.journal.records import now
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.progress import configure_logging
from errata.orchestrator.run.batches import Batcher
from errata.orchestrator.service import launch
from tests.helpers.service import FakePipeline, running


def main(directory: Path, wanted: dict[str, object]) -> None:
    """Serve until a signal."""
    configure_logging(False)
    if isinstance(limit := wanted.get("descriptors"), int):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    def clock() -> datetime:
        file = directory / "clock"
        return now() + timedelta(seconds=float(file.read_text()) if file.exists() else 0.0)

    def prepare(pipeline: FakePipeline) -> None:
        write, seconds, batcher = pipeline.write_next, float(str(wanted.get("batch_seconds", 0))), Batcher(100, 0.2)
        pipeline.journal._clock = clock
        pipeline.journal.patience(float(str(wanted.get("lock_seconds", 2))))

        def slowly(*, ended: bool) -> Version | None:
            rows = pipeline.journal.pending(100)
            oldest = rows[0].accepted_at if rows else None
            if not batcher.due(len(rows), ended=ended, oldest=oldest, now=clock()):
                return None
            until = time.monotonic() + seconds
            (directory / "writing").touch()
            while time.monotonic() < until:  # as an editor that can be ended, and not otherwise hurried
                if pipeline.given_up:
                    raise ErrataError("the editor was ended")
                time.sleep(0.02)
            return write(ended=ended)

        pipeline.write_next = slowly  # type: ignore[method-assign]

    settings: Any = wanted.get("service", {})
    with (
        launch.listen("127.0.0.1", 0) as listener,
        launch._Stopper() as stopper,
        running(directory, prepare=prepare, **settings) as run,
    ):
        if wanted.get("hold_questions"):
            run.evaluators.gate.clear()
            run.evaluators.patient = True
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        launch._run(run.service, listener, stopper)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
