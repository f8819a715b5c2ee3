"""Errata: keep a language model's facts current, for as long as it runs.

``import errata`` is quick and imports nothing else; `Editor`, `EditResult` and the errors come when they are asked for.

The rooms are installed as sub-packages: ``errata.editing``, ``errata.retrieval``, ``errata.evaluation``,
``errata.actors`` and ``errata.orchestrator``. In a checkout each of them is a link to the folder of that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.api import Editor, EditResult
    from errata.editing.errors import ErrataError, UserError

__all__ = ["EditResult", "Editor", "ErrataError", "UserError", "__version__"]

_PLACES = {
    "Editor": "errata.api",
    "EditResult": "errata.api",
    "ErrataError": "errata.editing.errors",
    "UserError": "errata.editing.errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("errata-llm")
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'errata' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
