"""MLflow is imported by several threads of a run at once, and by each of them whole."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

PROGRAM = dedent(
    """
    import threading

    from errata.orchestrator.tracking.library import load_mlflow

    errors, begin = [], threading.Barrier(4)

    def work() -> None:
        begin.wait()
        try:
            load_mlflow()
            from mlflow import MlflowClient
            from mlflow.entities import Metric
            from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

            CPUMonitor()
        except BaseException as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(errors)
    """
)


def test_four_threads_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr[-2000:] + done.stdout
