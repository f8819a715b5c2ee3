"""Editors whose module is a table with one row an edit: what they share.

Rows are known by their owner, a number made of the request's id. A row whose owner the lifelong state no longer has was
superseded, and leaves with the batch that overwrites it.

Letters: m edits, n rows.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Editor
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import module_number
from errata.editing.modules.packed import Content, unpack
from errata.editing.state import LifelongState
from errata.editing.verify import PROBES

Tables = Mapping[str, Tensor]


class ModuleEditor(Editor):
    """An editor that changes slots for modules."""

    needs_covariance = False
    commutes = False

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the slots (``module_number``)."""
        return tuple(module_number(layer) for layer in self.config.layers)

    @property
    def mapped_layers(self) -> tuple[int, ...]:
        return tuple(self.config.layers)

    @property
    def layer(self) -> int:
        """The one layer that has the module."""
        return int(self.config.layers[0])

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        state = super().new_state(model, covariance)
        if len(self.layers) != 1:
            raise UserError(
                f"editor.layers: {self.config.type!r} stands in one layer, got {list(self.config.layers)}; name one"
            )
        return state

    def change(self, content: Content) -> WeightDelta:
        """A change of the slot as a batch's delta."""
        return WeightDelta({self.layers[0]: LayerDelta("module", content.pack())}, self.config.type)


class StoreEditor(ModuleEditor):
    """One row an edit."""

    tables: tuple[str, ...]
    """Names of the tables, each with a row an edit; ``owners`` is among them."""

    def rows(self, model: EditableModel) -> Tables | None:
        """The tables as they are now; None where nothing was edited yet."""
        packed = model.weight(self.layers[0])
        return unpack(packed).tensors if packed.numel() else None

    @staticmethod
    def gone(tables: Tables | None, state: LifelongState) -> Tensor:
        """Numbers of the rows whose requests the state does not hold any more."""
        if not tables:
            return torch.zeros(0, dtype=torch.int64)
        return (~torch.isin(tables["owners"], owners_of(state.request_ids))).nonzero().squeeze(1)

    @abstractmethod
    def settled(self, tables: Tables, rule: Mapping[str, Any]) -> Tables:
        """The tables once rows have left: whatever of a row depends on the others, made anew."""

    def without(self, packed: Tensor, requests: Sequence[str]) -> Tensor:
        """A slot's content without the rows of some requests, as if they had never been written."""
        if not packed.numel():
            return packed
        content = unpack(packed)
        keep = ~torch.isin(content.tensors["owners"], owners_of(requests))
        left = {name: table[keep] for name, table in content.tensors.items()}
        return Content(content.kind, content.layer, content.rule, self.settled(left, content.rule)).pack()


def owners_of(requests: Sequence[str]) -> Tensor:
    """A number for each request's id, int64 (m,)."""
    numbers = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True) for name in requests]
    return torch.tensor(numbers, dtype=torch.int64)


def label_of(tokens: Sequence[int]) -> int:
    """A number for a target: equal for equal token lists, and only for them."""
    data = ",".join(map(str, tokens)).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


@torch.no_grad()
def probe_inputs(model: EditableModel, layer: int) -> tuple[Tensor, Tensor]:
    """Inputs (p, I) and outputs (p, O) of a layer's map at the last tokens of the shipped probes, float32.

    What an activation is like at that layer: the unit of thresholds and rates that are given relative to it.
    """
    rows = model.rows([model.text.encode_prompt(prompt) for prompt in PROBES])
    with model.map_inputs([layer]) as inputs, model.map_outputs([layer]) as outputs:
        model.run(model.embed(rows), 0, layer + 1, model.positional(rows.layout))
    at = torch.arange(len(PROBES), device=model.device), rows.lengths - 1
    return inputs[layer][at].float(), outputs[layer][at].float()


def median_distance(rows: Tensor) -> float:
    """Median Euclidean distance between two of the rows (p, d)."""
    return float(torch.pdist(rows.double().cpu()).median())
