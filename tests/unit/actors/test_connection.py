"""A Ray that does not come up is one line, and the process is as it was."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import ray

from errata.actors.connection import connect
from errata.actors.settings import RayConfig
from errata.editing.errors import ErrataError, UserError


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because\nthe GCS is overloaded."),
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        RuntimeError("Failed to start the GCS"),
    ],
)
def test_a_local_ray_that_cannot_start(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts its own answer in the place
        raise error

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ErrataError) as told:
        connect(RayConfig())
    said = str(told.value)
    assert said.startswith("Ray could not be started on this machine: ") and "\n" not in said
    assert str(error).splitlines()[0] in said
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no node there\nand a trace")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"ray.address '10.0.0.1:6379' cannot be reached: no node there$"):
        connect(RayConfig(address="10.0.0.1:6379"))


@pytest.mark.parametrize("late", [1, 2])
def test_a_ray_that_comes_up_late_on_a_busy_machine_is_waited_for(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def init(**_: Any) -> None:
        tries.append(1)
        if len(tries) <= late:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert connect(RayConfig()) and len(tries) == late + 1


def test_what_waiting_does_not_help_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def init(**_: Any) -> None:
        tries.append(1)
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ErrataError, match="AF_UNIX"):
        connect(RayConfig())
    assert len(tries) == 1
