"""The machine's load as curves, measured by MLflow's own monitors and sent through the spool like any other point."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from errata.orchestrator.tracking.library import load_mlflow

logger = logging.getLogger(__name__)


class SystemMetrics:
    """A thread that measures processor, memory, disk, network and, where there are any, NVIDIA cards.

    The names are those under which MLflow's page has a tab of its own: ``system/cpu_utilization_percentage``, ...

    Args:
        log: takes points at a step.
        seconds: between two points; the step counts them.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="errata-system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Measure nothing more."""
        self._ended.set()

    def _work(self) -> None:
        try:
            monitors = _monitors()
        except Exception as error:  # a curve of the machine's load is worth no run
            logger.warning("the machine's load is not tracked: %s", error)
            return
        step = 0
        while not self._ended.is_set():
            points: dict[str, float] = {}
            for monitor in monitors:
                try:
                    monitor.collect_metrics()
                    points |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                except Exception as error:
                    logger.debug("a monitor of the machine failed: %s", error)
            self._log(points, step)
            step += 1
            self._ended.wait(self._seconds)


def _monitors() -> list[Any]:
    load_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except Exception:  # no NVIDIA library, or no card
        logger.debug("no card to be watched")
    return found
