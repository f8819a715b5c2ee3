"""What MLflow makes of a registered version: loaded in this process, or served by one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def loaded(registry: str, uri: str, **options: Any) -> Any:
    """`mlflow.pyfunc.load_model` of ``models:/...`` in a registry that is not this process's own."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registry)
    try:
        return mlflow.pyfunc.load_model(uri, **options)
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def serving(registry: str, uri: str, directory: Path, seconds: float = 600) -> Iterator[str]:
    """The address of ``mlflow models serve``; the server binds a free port by itself."""
    arguments = ("models", "serve", "-m", uri, "--env-manager", "local", "-w", "1", "-p", "0")
    with _mlflow(arguments, registry, directory, seconds) as address:
        yield address


@contextmanager
def tracking_server(registry: str, directory: Path, seconds: float = 600) -> Iterator[str]:
    """The address of ``mlflow server`` over a database; likewise."""
    arguments = ("server", "--backend-store-uri", registry, "--workers", "1", "--port", "0")
    with _mlflow(arguments, registry, directory, seconds) as address:
        yield address


@contextmanager
def _mlflow(arguments: tuple[str, ...], registry: str, directory: Path, seconds: float) -> Iterator[str]:
    script = directory / "bin" / "uvicorn"  # which MLflow runs by its name, as in an environment that is activated
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uvicorn "$@"\n')
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": registry,
        "UVICORN_PORT": "0",  # MLflow passes no port 0 on
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    log = directory / f"mlflow-{arguments[0]}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + seconds
        while (found := re.search(r"running on (http://[\w.:]+)", log.read_text())) is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)
