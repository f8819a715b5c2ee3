"""What every benchmark here shares: CPU seconds on one thread, peak memory, the machine's own rate, and the context.

The machines are shared, so each thing is run several times and the least CPU time counts; the load stands beside it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def one_thread() -> None:
    """Everything here is measured on one thread."""
    torch.set_num_threads(1)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of one call, all threads of the process together, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def best(call: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of ``repeats`` calls after one that does not count."""
    call()
    return min(timed(call)[0] for _ in range(repeats))


def gemm_rate(rows: int, inner: int, outer: int, dtype: torch.dtype = torch.float32, *, seconds: float = 0.5) -> float:
    """Floating-point operations per CPU second of one dense product (rows, inner) x (inner, outer); the best of many.

    The weights change from call to call, as those of a model's layers do, so they do not stay in the cache.
    """
    x = torch.randn(rows, inner, dtype=dtype)
    count = max(2, min(24, int(2e8 / (inner * outer * x.element_size()))))
    weights = [torch.randn(outer, inner, dtype=dtype) for _ in range(count)]

    def call() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)

    operations = 2.0 * rows * inner * outer * count
    call()
    rates, start = [], time.process_time()
    while time.process_time() - start < seconds or len(rates) < 3:
        rates.append(operations / timed(call)[0])
    return max(rates)


def reset_peak() -> int:
    """Bytes this process holds now; the peak counts from here (Linux; else 0)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def peak() -> int:
    """Most bytes the process has held since ``reset_peak`` (Linux; else 0)."""
    try:
        return _status("VmHWM")
    except OSError:
        return 0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def context(**extra: Any) -> dict[str, Any]:
    """Where and when a measurement was taken."""
    import numpy
    import transformers

    cpu = platform.processor() or "unknown"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        **extra,
    }


def store(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Write a result with its context; floats keep four digits. By default to ``benchmarks/results/NAME.json``."""
    path = RESULTS / f"{name}.json" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **_rounded(result)}, indent=1) + "\n")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def median(values: list[float]) -> float:
    """The middle one."""
    return float(statistics.median(values))
