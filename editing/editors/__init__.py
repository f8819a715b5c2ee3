"""Every editor by name: one file and one line here each."""

from __future__ import annotations

from typing import Any

from editing.editors.alphaedit import AlphaEdit, AlphaEditConfig
from editing.editors.base import Computation, Editor, EditorConfig
from editing.editors.memit import Memit, MemitConfig

REGISTRY: dict[str, tuple[type[EditorConfig], type[Editor]]] = {
    "memit": (MemitConfig, Memit),
    "alphaedit": (AlphaEditConfig, AlphaEdit),
}


def make_editor(config: Any) -> Editor:
    """The editor that a configuration describes."""
    return REGISTRY[config.type][1](config)


__all__ = ["REGISTRY", "Computation", "Editor", "EditorConfig", "make_editor"]
