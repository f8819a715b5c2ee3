"""Every kind of module by the name that its files have for it."""

from __future__ import annotations

from typing import Final

import torch

from errata.editing.errors import DamagedFileError
from errata.editing.modules.base import LayerModule
from errata.editing.modules.codebook import Codebook
from errata.editing.modules.gated import Gated
from errata.editing.modules.packed import Content
from errata.editing.modules.pieces import KIND, Pieces
from errata.editing.modules.side import SideMemory

KINDS: Final[dict[str, type[LayerModule]]] = {"codebook": Codebook, "gated": Gated, KIND: Pieces, "side": SideMemory}


def make_module(content: Content, device: torch.device, dtype: torch.dtype) -> LayerModule:
    """The module that a content describes.

    Raises:
        DamagedFileError: this release has no such kind.
    """
    if content.kind not in KINDS:
        raise DamagedFileError(f"a module of kind {content.kind!r} is not known; known: {', '.join(sorted(KINDS))}")
    return KINDS[content.kind](content, device, dtype)
