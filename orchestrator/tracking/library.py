"""MLflow is imported by one thread at a time.

It is imported late, by whichever of the tracker, the machine's monitors or a publication needs it first. Two threads
in it at once wait for each other's modules, and its protocol files cannot be loaded again after such a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.Lock()
_addressed = threading.Lock()


def load_mlflow() -> None:
    """Import what all threads use of MLflow; the second call costs nothing."""
    with _one_at_a_time:
        import mlflow
        import mlflow.entities
        import mlflow.exceptions
        import mlflow.system_metrics.metrics.cpu_monitor
        import mlflow.system_metrics.metrics.disk_monitor
        import mlflow.system_metrics.metrics.gpu_monitor
        import mlflow.system_metrics.metrics.network_monitor
        import mlflow.tracking  # noqa: F401


@contextmanager
def addressed(uri: str) -> Iterator[None]:
    """MLflow as if ``uri`` were the process's tracking address, for what takes no address: traces, and versions whose
    source is a logged model. One thread at a time; afterwards the address is what it was."""
    import mlflow

    with _addressed:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)
