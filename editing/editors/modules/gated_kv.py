"""A gated key/value layer: an edit's key and residual stand beside one map, and answer only where the gate opens.

NeuralDB, arXiv:2507.18028, sec. 3. Keys and values are those of the locate-then-edit methods at one layer: the key k of
the subject's last token and the residual ``v - W k``. Instead of solving for a matrix that maps all keys at once, the
nearest key by cosine adds its own residual, above a threshold. Nothing interferes inside, nothing happens outside.

Every edit is computed from the base: what earlier edits do is taken out of the layer meanwhile, as at most one row
speaks for a token. So edits do not depend on their order, and a row can leave without a trace.

Letters: m edits, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from errata.editing.editors.base import Computation, LocateConfig, Progress
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.editors.modules.store import StoreEditor, Tables, owners_of
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.modules.packed import EMPTY, Content
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import TargetValue


class GatedKvConfig(LocateConfig):
    """Settings of the gated key/value layer."""

    type: Literal["gated_kv"] = "gated_kv"
    layers: tuple[int, ...] = Field(min_length=1, max_length=1)
    """The one decoder layer whose ``down_proj`` has the rows; values are optimized there."""
    threshold: float = Field(0.65, gt=0, lt=1)
    """Cosine between a token's input and a key above which the key's residual is added; it has no unit."""


class GatedKv(StoreEditor):
    """The gated layer's editor."""

    config: GatedKvConfig
    tables = ("keys", "values", "owners")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        finder = MemitConfig(layers=config.layers, values=config.values, norm_anchors=config.norm_anchors)
        # only how values are found and residuals are read is MEMIT's
        self._finder = Memit(finder)

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        tables = self.rows(model)
        with model.patched(self.layers):
            model.set_weight(self.layers[0], EMPTY)
            if self.config.norm_anchors:
                self._finder._original = {self.layer: model.weight(self.layer).cpu()}
            values = self._finder.find_values(model, requests, contexts, progress)
            if not all(value.finite for value in values):
                return Computation(self.change(Content("gated", self.layer, {})), {}, values)
            if self.config.norm_anchors:
                values = self._finder.anchored(model, requests, contexts, values)
            keys, residuals = self._pairs(model, requests, contexts, values)
        change = {
            "drop": self.gone(tables, state),
            "append.keys": keys,
            "append.values": residuals,
            "append.owners": owners_of([request.id for request in requests]),
        }
        content = Content("gated", self.layer, {"threshold": self.config.threshold}, change, "rows")
        return Computation(self.change(content), {}, values)

    def _pairs(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        values: Sequence[TargetValue],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (m, I) and residuals (m, O), float32 on the CPU."""
        walk = SubjectPass(model, requests, contexts)
        keys = walk.keys(self.layer, "half")
        wanted = torch.stack([value.state for value in values]).transpose(0, -1).to(model.device)
        if wanted.ndim == 3:  # outputs of the map itself, before a norm
            residual = wanted[:, 0] - walk.states(self.layer)[1]
        else:
            residual = self._finder.residual(model, walk, wanted, self.layer, self.layer, 1.0)
        return keys.T.float().cpu().contiguous(), residual.T.float().cpu().contiguous()

    def settled(self, tables: Tables, rule: Mapping[str, Any]) -> Tables:
        return tables
