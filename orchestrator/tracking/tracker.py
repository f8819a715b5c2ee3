"""Tracking that cannot hurt: MLflow may be slow, down for an hour or gone, and the run neither waits nor
loses a point.

What is logged goes into a spool file and the call returns; one thread delivers the spool to MLflow, in order,
and tries again with growing pauses for as long as the run lasts. What is left at the end stays in the spool
and is delivered by the next :class:`Tracker` on the same directory.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from errata.editing.extras import installed
from errata.orchestrator.tracking.names import renamed
from errata.orchestrator.tracking.spool import TOGETHER, Entry, EntryKind, Spool
from errata.orchestrator.tracking.store import (
    THREAD_NAME,
    MlflowStore,
    RefusedError,
    RunLostError,
    quiet_environment,
)
from errata.orchestrator.tracking.system import SystemMetrics

logger = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MAX_BATCH: Final = 1_000
"""Points of one call: MLflow's limit."""
MAX_TEXTS: Final = 100
"""Parameters or tags of one call: MLflow's limit."""
_MAX_VALUE: Final = 6_000
_MAX_KEY: Final = 250
_FORBIDDEN: Final = re.compile(r"[^\w\-. /:]")
_NAMES_TAG: Final = "errata.names"
_NAMES: Final = "2"
"""Which names the curves of a spool have: ``2`` since groups are set off by slashes."""
_RUN_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")


class AnyTracker(Protocol):
    """What the run loop sees of tracking. No method raises because of the store, and none waits for it but
    ``close``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def log_artifact(self, path: Path, folder: str = "") -> None: ...

    def log_input(self, dataset: TrackedData) -> None: ...

    def log_table(self, path: Path, name: str) -> None: ...

    def close(self, timeout: float = 30.0, status: RunStatus = "FINISHED") -> bool: ...


@dataclass(frozen=True)
class TrackedData:
    """Data that a run uses, as MLflow lists it."""

    name: str
    digest: str
    source_type: str
    """``local``, ``hub``, ``redis``, ...: where it comes from."""
    source: Mapping[str, Any]
    profile: Mapping[str, Any]
    """How much it is: numbers by name."""
    context: str
    """What it is used for."""


class NullTracker:
    """Tracking switched off."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def log_input(self, dataset: TrackedData) -> None:
        """Nothing."""

    def log_table(self, path: Path, name: str) -> None:
        """Nothing."""

    def close(self, timeout: float = 30.0, status: RunStatus = "FINISHED") -> bool:
        """Nothing; True."""
        return True


class Tracker:
    """One MLflow run, resumed if ``directory`` belongs to one already.

    Args:
        directory: output directory of the run: holds the spool, the MLflow run's id and, without ``uri``, the
            database.
        run_key: name of the run that never changes, of letters, digits, ``.``, ``_`` and ``-``.
        uri: MLflow server or database; None for ``sqlite:///<directory>/mlflow.db``.
        experiment: MLflow experiment, made when absent.
        run_name: what MLflow's pages show.
        tags: set when the MLflow run is made.
        pause: first and longest pause in seconds between attempts while the store is down.
        system_seconds: how often the machine's load is written down; None for never.

    Raises:
        OSError: the spool cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_key: str,
        uri: str | None = None,
        experiment: str = "errata",
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        pause: tuple[float, float] = (1.0, 60.0),
        system_seconds: float | None = None,
    ) -> None:
        if not _RUN_KEY.fullmatch(run_key):
            raise ValueError(f"run_key must be letters, digits, '.', '_' or '-', got {run_key!r}")
        quiet_environment()
        self._directory = Path(directory)
        self._run_key = run_key
        self._spool = Spool(self._directory)
        self._store = MlflowStore(
            self._directory, run_key=run_key, uri=uri, experiment=experiment, run_name=run_name, tags=tags
        )
        if self._store.run_id is None:
            self._spool.rewind()  # a store that has nothing of this run yet: it gets all of it
        self._pause = pause
        self._spool_failed = False
        self._work = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._closed = False
        self._append([self._entry("status", "", "RUNNING"), *self._renamed()])
        self._system: SystemMetrics | None = None
        self._thread: threading.Thread | None = None
        if installed("mlflow"):
            self._thread = threading.Thread(target=self._deliver, name=THREAD_NAME, daemon=True)
            self._thread.start()
            if system_seconds is not None:
                self._system = SystemMetrics(self._log_system, system_seconds)
        else:
            logger.warning(
                "mlflow is not installed (pip install 'errata-llm[tracking]'): %s keeps what is to be tracked",
                self._spool.path,
            )

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store was reached for the first time."""
        return self._store.run_id

    def waiting(self) -> int:
        """How many entries the store does not have yet."""
        return self._spool.waiting()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Points of several curves at one step. A value that is not finite is drawn as a gap, and a tag says
        so."""
        entries = []
        for name, value in metrics.items():
            key, number = _key(name), float(value)
            if math.isfinite(number):
                entries.append(self._entry("metric", key, number, step))
            else:  # MLflow stores infinities as 1.8e308, which ruins the chart
                entries.append(self._entry("metric", key, None, step))
                entries.append(self._entry("tag", _key(f"not_finite.{name}"), f"{number} at step {step}"))
        self._append(entries)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, once each; a nested mapping becomes dotted names. MLflow keeps the first value of a
        name."""
        self._append([self._entry("param", key, value) for key, value in flatten(params).items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; a later value replaces the earlier one."""
        self._append([self._entry("tag", _key(key), str(value)[:_MAX_VALUE]) for key, value in tags.items()])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file, as it is when its turn comes; keep it until then."""
        relative = os.path.relpath(Path(path).absolute(), self._directory.absolute())
        self._append([self._entry("artifact", folder, relative)])

    def log_input(self, dataset: TrackedData) -> None:
        """Data that the run uses; the same again changes nothing."""
        self._append([self._entry("input", dataset.name, json.dumps(asdict(dataset), default=str))])

    def log_table(self, path: Path, name: str) -> None:
        """A table of columns, a JSON file ``{"column": [values]}``, as it is when its turn comes."""
        relative = os.path.relpath(Path(path).absolute(), self._directory.absolute())
        self._append([self._entry("table", name, relative)])

    def log_trace(self, trace: Mapping[str, Any]) -> None:
        """A call and what came of it: ``name``, ``inputs``, ``outputs``, ``attributes``, ``tags``, ``started_ns``,
        ``ended_ns`` and ``children``, each of which has a ``name`` and ``outputs``."""
        self._append([self._entry("trace", str(trace["name"]), json.dumps(trace, default=str))])

    def close(self, timeout: float = 30.0, status: RunStatus = "FINISHED") -> bool:
        """End the run; wait up to ``timeout`` seconds for the spool to be delivered. True if all of it
        was, or if MLflow is not
        installed, in which case the spool keeps it."""
        if self._closed:
            return self.waiting() == 0
        self._closed = True
        if self._system is not None:
            self._system.close()
        self._append([self._entry("status", "", status)])
        self._closing.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._abandoned.set()
        left = self.waiting()
        if left and self._thread is not None:
            logger.warning(
                "%d tracking entries were not delivered; %s keeps them until the run is resumed",
                left,
                self._spool.path,
            )
        self._spool.close()
        return left == 0 or self._thread is None

    def _entry(self, kind: EntryKind, key: str, value: float | str | None, step: int = 0) -> Entry:
        return Entry(self._run_key, kind, key, value, step, int(time.time() * 1000))

    def _log_system(self, metrics: Mapping[str, float], step: int) -> None:
        if not self._closed:  # its thread may be in the middle of a measurement
            self.log_metrics(metrics, step)

    def _renamed(self) -> list[Entry]:
        """What a release that named curves by dots has logged, once more by the names of now.

        A run that goes on so has its whole curves under one name.
        """
        old: list[Entry] = []
        for entry in self._spool.everything():
            if entry.kind == "tag" and entry.key == _NAMES_TAG:
                return []
            if entry.kind == "metric" and (name := renamed(entry.key)) is not None:
                old.append(replace(entry, key=name))
        return [self._entry("tag", _NAMES_TAG, _NAMES), *old]

    def _append(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        try:
            self._spool.append(entries)
        except (OSError, ValueError) as error:  # ValueError: already closed
            if not self._spool_failed:
                path = self._spool.path
                logger.warning("tracking entries are lost: %s cannot be written: %s", path, error)
            self._spool_failed = True
        self._work.set()

    # ---------------------------------------------------------------- the thread

    def _deliver(self) -> None:
        pause = self._pause[0]
        down = False
        while not self._abandoned.is_set():
            self._work.clear()
            entries, ends = self._spool.read(MAX_BATCH)
            if not entries:
                if self._closing.is_set():
                    return
                self._work.wait()
                continue
            count = leading_group(entries)
            try:
                self._send(entries[:count])
            except RunLostError as error:
                logger.warning("the tracking store has lost the run, sending all of it again: %s", error)
                self._spool.rewind()
            except Exception as error:
                # whatever it is, the run goes on; the spool keeps what was not taken
                if not down:
                    logger.warning("the tracking store does not answer, keeping entries: %s", _short(error))
                down = True
                self._abandoned.wait(pause)
                pause = min(2 * pause, self._pause[1])
            else:
                if down:
                    logger.info("the tracking store answers again")
                down, pause = False, self._pause[0]
                if not self._abandoned.is_set():
                    self._spool.acknowledge(ends[count - 1])

    def _send(self, entries: Sequence[Entry]) -> None:
        try:
            self._store.send(entries)
        except RefusedError as error:
            if len(entries) == 1:
                entry = entries[0]
                what = entry.key or entry.value
                logger.warning("the tracking store refused %s %s: %s", entry.kind, what, error)
                return
            # one bad entry must not hold up the others: find it by halving
            middle = len(entries) // 2
            self._send(entries[:middle])
            self._send(entries[middle:])


def leading_group(entries: Sequence[Entry]) -> int:
    """How many of the first entries go into one call: within MLflow's limits; what is no point, parameter or tag goes
    alone."""
    if entries[0].kind not in TOGETHER:
        return 1
    texts = 0
    for count, entry in enumerate(entries[:MAX_BATCH]):
        if entry.kind not in TOGETHER or (entry.kind != "metric" and texts == MAX_TEXTS):
            return count
        texts += entry.kind != "metric"
    return min(len(entries), MAX_BATCH)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and short texts, as MLflow takes them."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[_key(f"{prefix}{name}")] = text[:_MAX_VALUE]
    return flat


def _key(name: str) -> str:
    return _FORBIDDEN.sub("_", name)[:_MAX_KEY] or "_"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
