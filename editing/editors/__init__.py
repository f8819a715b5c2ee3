"""Every editor by name: one file and one line here each."""

from __future__ import annotations

from typing import Any

from errata.editing.editors.base import Computation, Editor, EditorConfig
from errata.editing.editors.closed_form.alphaedit import AlphaEdit, AlphaEditConfig
from errata.editing.editors.closed_form.emmet import Emmet, EmmetConfig
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.editors.closed_form.memit_merge import MemitMerge, MemitMergeConfig
from errata.editing.editors.closed_form.mose import Mose, MoseConfig
from errata.editing.editors.closed_form.pmet import Pmet, PmetConfig
from errata.editing.editors.closed_form.prune import Prune, PruneConfig
from errata.editing.editors.closed_form.rect import Rect, RectConfig
from errata.editing.editors.closed_form.rome import Rome, RomeConfig
from errata.editing.editors.closed_form.rose import Rose, RoseConfig
from errata.editing.editors.gradient.adalora import AdaLora, AdaLoraConfig
from errata.editing.editors.gradient.ft_l import FtL, FtLConfig
from errata.editing.editors.gradient.kn import Kn, KnConfig
from errata.editing.editors.gradient.lora import Lora, LoraConfig
from errata.editing.editors.gradient.mend import Mend, MendConfig
from errata.editing.editors.gradient.ultraedit import UltraEdit, UltraEditConfig
from errata.editing.editors.modules.gated_kv import GatedKv, GatedKvConfig
from errata.editing.editors.modules.grace import Grace, GraceConfig
from errata.editing.editors.modules.retrieved import Retrieved
from errata.editing.editors.modules.wise import Wise, WiseConfig

REGISTRY: dict[str, tuple[type[EditorConfig], type[Editor]]] = {
    "adalora": (AdaLoraConfig, AdaLora),
    "alphaedit": (AlphaEditConfig, AlphaEdit),
    "emmet": (EmmetConfig, Emmet),
    "ft_l": (FtLConfig, FtL),
    "gated_kv": (GatedKvConfig, GatedKv),
    "grace": (GraceConfig, Grace),
    "kn": (KnConfig, Kn),
    "lora": (LoraConfig, Lora),
    "memit": (MemitConfig, Memit),
    "memit_merge": (MemitMergeConfig, MemitMerge),
    "mend": (MendConfig, Mend),
    "mose": (MoseConfig, Mose),
    "pmet": (PmetConfig, Pmet),
    "prune": (PruneConfig, Prune),
    "rect": (RectConfig, Rect),
    "rome": (RomeConfig, Rome),
    "rose": (RoseConfig, Rose),
    "ultraedit": (UltraEditConfig, UltraEdit),
    "wise": (WiseConfig, Wise),
}


def make_editor(config: Any) -> Editor:
    """The editor that a configuration describes."""
    made = REGISTRY[config.type][1](config)
    if isinstance(made, LocateEditor) and made.config.regime == "retrieved":
        return Retrieved(made)
    return made


__all__ = ["REGISTRY", "Computation", "Editor", "EditorConfig", "make_editor"]
