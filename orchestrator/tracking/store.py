"""The MLflow side of tracking: one run, found or made, and batches of entries written to it. May block and
may raise."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from errata.orchestrator.tracking.library import addressed, load_mlflow
from errata.orchestrator.tracking.moving import ARTIFACTS, DATABASE, follow_move
from errata.orchestrator.tracking.spool import TOGETHER, Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TABLES_TAG: Final = "mlflow.loggedArtifacts"

RUN_TAG: Final = "errata.run"
"""Tag by which a run is found again, whatever happened between making it and noting its id."""

THREAD_NAME: Final = "errata-tracking"

_SQLITE: Final = "sqlite:///"
_RUN_FILE: Final = "tracking_run.json"

_ENVIRONMENT: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a call to a dead server blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",  # the spool is what outlives an outage, not a queue in memory
}

_MOST_NAME: Final = 500
_MOST_DIGEST: Final = 36
"""Of a data set: MLflow's limits."""

_REFUSALS: Final = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}


class RefusedError(Exception):
    """The store will never take this; trying again is useless."""


class RunDeletedError(Exception):
    """The run or its experiment is deleted in the store and may be restored; nothing is thrown away meanwhile."""


class RunLostError(Exception):
    """The store does not know the run (any more)."""


class MlflowStore:
    """One MLflow run. Nothing is imported or contacted before the first :meth:`send`.

    Args:
        directory: the run's output directory; holds the database when no ``uri`` is given, and the run's id.
        run_key: names this run in MLflow, for good.
        uri: tracking server or database; None for ``sqlite:///<directory>/mlflow.db``.
        experiment: MLflow experiment, made when absent.
        run_name: what MLflow's pages show.
        tags: set when the run is made.
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
    ) -> None:
        self._directory = directory.absolute()
        self._run_key = run_key
        self._uri = uri
        self._experiment = experiment
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._client: MlflowClient | None = None
        self.run_id = self._noted_run_id()

    @property
    def uri(self) -> str:
        return self._uri or f"{_SQLITE}{self._directory / DATABASE}"

    @property
    def _files(self) -> Path | None:
        """Directory beside the database for what it holds; None where a server knows."""
        if self._uri is None:
            return self._directory
        return Path(self._uri.removeprefix(_SQLITE)).absolute().parent if self._uri.startswith(_SQLITE) else None

    def send(self, entries: Sequence[Entry]) -> None:
        """Write entries to the run: either points, parameters and tags together, or one of another kind alone.

        Raises:
            RefusedError: the store will not take them.
            RunLostError: the run is not in this store; the next call makes a new one, which has nothing yet.
            Exception: anything that may pass by itself: the store is down, locked or full.
        """
        load_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            client = self._connect()
            run_id = self.run_id or self._find_or_make_run(client)
            first = entries[0]
            if first.kind in TOGETHER:
                self._log_batch(client, run_id, entries)
            elif first.kind == "artifact":
                path = self._directory / str(first.value)
                if not path.exists():
                    raise RefusedError(f"artifact {path} is gone")
                client.log_artifact(run_id, str(path), first.key or None)
            elif first.kind == "status":
                self._set_status(client, run_id, str(first.value), first.timestamp)
            elif first.kind == "input":
                _log_input(client, run_id, json.loads(str(first.value)))
            elif first.kind == "table":
                _log_table(client, run_id, first.key, self._directory / str(first.value))
            else:
                _log_trace(self.uri, client.get_run(run_id).info.experiment_id, json.loads(str(first.value)))
        except ModuleNotFoundError as error:
            if self.run_id is None:
                raise
            # a smaller client than MLflow's whole: what it cannot send does not hold up the rest
            raise RefusedError(f"it needs {error.name}, which is not installed") from error
        except MlflowException as error:
            if self._deleted():
                raise RunDeletedError(
                    f"run {self.run_id} of experiment {self._experiment!r} was deleted there; restore it (mlflow runs "
                    "restore, mlflow experiments restore), and what is kept is sent"
                ) from error
            if error.error_code in _REFUSALS:
                raise RefusedError(" ".join(str(error).split())[:300]) from error
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and self.run_id:
                self.run_id = None
                (self._directory / _RUN_FILE).unlink(missing_ok=True)
                raise RunLostError(str(error)) from error
            raise

    def client_and_run(self) -> tuple[MlflowClient, str]:
        """A client of the store, and the id of this run in it, which is made when absent.

        Raises:
            Exception: whatever keeps the store from answering.
        """
        client = self._connect()
        return client, self.run_id or self._find_or_make_run(client)

    def _connect(self) -> MlflowClient:
        if self._client is None:
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
            logging.getLogger("urllib3.connectionpool").addFilter(_not_from_tracking)
            load_mlflow()
            from mlflow import MlflowClient

            if self._files is not None:
                follow_move(self._files)
            self._client = MlflowClient(tracking_uri=self.uri)
        return self._client

    def _find_or_make_run(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is not None and experiment.lifecycle_stage != "active":
            raise RunDeletedError(
                f"experiment {self._experiment!r} was deleted there; restore it (mlflow experiments restore), or set "
                "tracking.experiment to another"
            )
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            # without a server MLflow would put artifacts into the working directory
            location = None if self._files is None else (self._files / ARTIFACTS).as_uri()
            experiment_id = client.create_experiment(self._experiment, artifact_location=location)
        matches = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{self._run_key}'", max_results=1)
        if matches:
            run_id = str(matches[0].info.run_id)
        else:
            tags = {**self._tags, RUN_TAG: self._run_key}
            run_id = str(client.create_run(experiment_id, tags=tags, run_name=self._run_name).info.run_id)
        note = {"run_key": self._run_key, "run_id": run_id, "store": self._store_digest()}
        (self._directory / _RUN_FILE).write_text(json.dumps(note))
        self.run_id = run_id
        return run_id

    def _deleted(self) -> bool:
        """Whether somebody has deleted the run or its experiment; MLflow says so with the code of a bad value."""
        if self.run_id is None or self._client is None:
            return False
        try:
            run = self._client.get_run(self.run_id)
            if run.info.lifecycle_stage != "active":
                return True
            return bool(self._client.get_experiment(run.info.experiment_id).lifecycle_stage != "active")
        except Exception:  # a store that does not answer this either is another matter
            return False

    def _log_batch(self, client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(
                entry.key,
                math.nan if entry.value is None else float(entry.value),
                entry.timestamp,
                entry.step,
            )
            for entry in entries
            if entry.kind == "metric"
        ]
        params = [Param(entry.key, str(entry.value)) for entry in entries if entry.kind == "param"]
        tags = [RunTag(entry.key, str(entry.value)) for entry in entries if entry.kind == "tag"]
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags, synchronous=True)

    @staticmethod
    def _set_status(client: MlflowClient, run_id: str, status: str, timestamp: int) -> None:
        if status == "RUNNING":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status=status, end_time=timestamp)

    def _noted_run_id(self) -> str | None:
        try:
            note = json.loads((self._directory / _RUN_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None
        same = note.get("store") == self._store_digest() and note.get("run_key") == self._run_key
        return str(note["run_id"]) if same else None

    def _store_digest(self) -> str:
        # not the address itself: it may carry a password
        return hashlib.sha256((self._uri or "default").encode()).hexdigest()[:16]


def _log_input(client: MlflowClient, run_id: str, told: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=told["name"][:_MOST_NAME],
        digest=told["digest"][:_MOST_DIGEST],
        source_type=told["source_type"],
        source=json.dumps(told["source"]),
        profile=json.dumps(told["profile"]),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", told["context"])])])


def _log_table(client: MlflowClient, run_id: str, name: str, path: Path) -> None:
    """A table that the page shows; again, it replaces the one that is there, to which MLflow would append. Without
    pandas, which MLflow's small client does not bring, the file and its tag are written as `log_table` writes them."""
    if not path.exists():
        raise RefusedError(f"table {path} is gone")
    table = json.loads(path.read_text(encoding="utf-8"))
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    split = {"columns": list(table), "data": rows}
    if any(item.path == name for item in client.list_artifacts(run_id)):
        client.log_dict(run_id, split, name)
        return
    try:
        client.log_table(run_id, table, name)
    except ModuleNotFoundError:
        client.log_dict(run_id, split, name)
        listed = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        client.set_tag(run_id, _TABLES_TAG, json.dumps([*listed, {"path": name, "type": "table"}]))


def _log_trace(uri: str, experiment_id: str, told: Mapping[str, Any]) -> None:
    """One root span and its children, with the times at which they were."""
    import mlflow

    started, ended = int(told["started_ns"]), int(told["ended_ns"])
    with addressed(uri):
        root = mlflow.start_span_no_context(
            told["name"],
            span_type="CHAIN",
            inputs=told["inputs"],
            attributes=told["attributes"],
            tags=told["tags"],
            experiment_id=experiment_id,
            start_time_ns=started,
        )
        for child in told["children"]:
            span = mlflow.start_span_no_context(
                child["name"], span_type="LLM", parent_span=root, inputs=told["inputs"], start_time_ns=started
            )
            span.set_outputs(child["outputs"])
            span.end(end_time_ns=ended)
        root.set_outputs(told["outputs"])
        root.end(end_time_ns=ended)


def _not_from_tracking(record: logging.LogRecord) -> bool:
    # while a server is down each attempt would print a line; the tracker says it once
    return record.threadName != THREAD_NAME or record.levelno >= logging.ERROR


def quiet_environment() -> None:
    """Settings that MLflow reads when it is imported or at each request; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
