"""MLflow is imported by one thread at a time.

It is imported late, by whichever of the tracker, the machine's monitors or a publication needs it first. Two threads
in it at once wait for each other's modules, and its protocol files cannot be loaded again after such a failure.
"""

from __future__ import annotations

import threading

_one_at_a_time = threading.Lock()


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
