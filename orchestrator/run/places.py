"""Places that a run writes to, looked at before it begins: one line about what will not do, nothing half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from errata.actors.settings import RayConfig
from errata.editing.errors import UserError

_SOCKET_BYTES: Final = 107
"""Longest address of a socket in the file system, on Linux."""
_RAY_BYTES: Final = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
_NO_SIGNS: Final = "?#%"


def check_output_place(output: Path) -> None:
    """Raise UserError unless the directory is there and can be written, or can be made."""
    strange = next((sign for sign in _NO_SIGNS if sign in str(output)), None)
    if strange is not None:
        raise UserError(
            f"output {str(output)!r}: the addresses of SQLite and MLflow end at {strange!r}; give a path without it"
        )
    _require_writable(output.absolute(), f"output {str(output)!r}")


def check_ray_places(config: RayConfig) -> None:
    """Raise UserError where a Ray of this machine could not make its sockets, or has no home."""
    if config.address != "local":
        return
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    size = len(os.fsencode(place)) + _RAY_BYTES
    if size > _SOCKET_BYTES:
        raise UserError(
            f"{name}={place}: {len(os.fsencode(place))} bytes are too long for Ray's sockets (at most "
            f"{_SOCKET_BYTES - _RAY_BYTES}); set RAY_TMPDIR to a short directory of this machine"
        )
    _require_writable(Path(place), f"{name}={place}")
    home = os.path.expanduser("~")
    _require_writable(Path(home), f"HOME={home}")


def _require_writable(path: Path, what: str) -> None:
    """Raise unless the directory, or the first one above it that is there, can be written."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{what} is a file; give a directory" if place == path else f"{what}: {str(place)!r} is a file")
    beyond = "" if place == path else f"; {str(path)!r} cannot be made"
    if not os.access(place, os.W_OK | os.X_OK) or str(place).startswith("/proc"):
        raise UserError(f"{what}: {str(place)!r} cannot be written{beyond}; give a directory that can")
