"""What every self-contained HTML page is made with: files of a room as text, its template, the digest of its script."""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def asset(room: str, name: str) -> str:
    """The text of a file of ``orchestrator/ROOM``, also when the package is installed as a wheel."""
    return resources.files(f"errata.orchestrator.{room}").joinpath(name).read_text(encoding="utf-8")


def template(room: str, name: str) -> Template:
    """A template of that room: what is filled in is escaped, and a name that is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(partial(asset, room)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def script_hash(script: str) -> str:
    """SHA-256 of a script as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
