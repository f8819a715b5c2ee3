"""What a plain installation does not bring: which extra brings which library, and the one line that says so."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from errata.editing.errors import UserError

EXTRAS = {
    "cluster": ("ray",),
    "memory": ("faiss", "sklearn", "sentence_transformers"),
    "tracking": ("mlflow", "psutil"),
    "serve": ("cloudevents", "fastapi", "starlette", "uvicorn", "prometheus_client"),
    "report": ("jinja2",),
    "alerts": ("apprise",),
    "redis": ("redis",),
    "kafka": ("confluent_kafka",),
    "eval": ("lm_eval", "rouge_score"),
    "deepspeed": ("deepspeed",),
    "peft": ("peft",),
    "hub": ("datasets", "huggingface_hub"),
    "data": ("datasets", "pyarrow"),
    "s3": ("s3fs",),
}
"""Libraries by the extra of the distribution that brings them; `test_packaging` compares it with pyproject.toml."""

_EXTRA_OF = {library: extra for extra, libraries in EXTRAS.items() for library in libraries}


def lacking(error: ModuleNotFoundError) -> UserError | None:
    """The one line about a library that an extra brings; None for any other module."""
    library = (error.name or "").split(".")[0]
    extra = _EXTRA_OF.get(library)
    if extra is None:
        return None
    return UserError(f"this needs {library}, which is not installed; pip install 'errata-llm[{extra}]'")


def installed(library: str) -> bool:
    """Whether a library could be imported; it is not."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def check_installed(*libraries: str) -> None:
    """Find out, before anything is begun, whether libraries that extras bring are there.

    Raises:
        UserError: one of them is not; the message names the extra.
    """
    for library in libraries:
        if not installed(library):
            error = ModuleNotFoundError(f"No module named {library!r}", name=library)
            raise lacking(error) or error


def require(library: str) -> ModuleType:
    """Import a library that an extra brings.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise lacking(error) or error from error


class Later:
    """A module that is imported when something of it is asked for first, and a UserError where it is not installed."""

    def __init__(self, library: str) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(require(self._library), name)
