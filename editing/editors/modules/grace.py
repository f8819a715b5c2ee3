"""GRACE: a codebook of key and value beside one layer's map; weights stay as they are.

Hartvigsen et al. 2023, arXiv:2211.11031, Alg. 1. The key is the map's input at the prompt's last token, the value what
the map puts out there instead, trained on the target's negative log-likelihood. A key answers within its radius. A new
key that comes within another's reach halves the way between them if the targets differ, and widens that one if they are
the same.

As published the older value wins where keys are equal, so a fact can be edited once. Here an edit that supersedes an
older one takes its row out, and of equally near keys the newest answers.

Letters: m edits, n entries, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.editors.base import Computation, EditorConfig, Progress, scalar_outcome
from errata.editing.editors.modules.store import (
    StoreEditor,
    Tables,
    label_of,
    median_distance,
    owners_of,
    probe_inputs,
)
from errata.editing.editors.modules.training import TargetRows
from errata.editing.model.adapter import EditableModel
from errata.editing.modules.codebook import nearest
from errata.editing.modules.packed import Content, unpack
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

ASLEEP = -1.0
"""Radius of a row that stands under another with the same target."""


class GraceConfig(EditorConfig):
    """Settings of GRACE; the papers put it at layer 27 of 32 (Llama-2-7B, Llama-3-8B)."""

    type: Literal["grace"] = "grace"
    layers: tuple[int, ...] = Field(min_length=1, max_length=1)
    """The one decoder layer whose ``down_proj`` has the codebook."""
    units: Literal["relative", "absolute"] = "relative"
    """``relative``: ``eps`` counts in the median distance between keys of unrelated prompts at that layer, ``lr`` and
    ``start`` in the root mean square of the map's outputs there. ``absolute``: the papers' form, with ``eps`` 1, ``lr``
    1 and ``start`` 1."""
    eps: float = Field(0.2, gt=0, allow_inf_nan=False)
    """Radius of a new key."""
    lr: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Adam's learning rate for a value."""
    start: float = Field(1.0, ge=0, allow_inf_nan=False)
    """A value begins at random between 0 and this, drawn by its request's id."""
    steps: int = Field(50, ge=1)
    """Updates of a value."""
    stop_loss: float | None = Field(None, ge=0)
    """A value is left alone once its loss is below this; null for all steps, as published."""


class Grace(StoreEditor):
    """The codebook's editor."""

    config: GraceConfig
    tables = ("keys", "values", "radii", "labels", "owners")

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        rule = self._rule(model)
        rows = TargetRows(model, requests, self.layer)
        labels = torch.tensor([label_of(model.text.encode_target(r.target_new)) for r in requests])
        owners = owners_of([request.id for request in requests])
        before, drop = self._left(model, state, rule)
        # who stands where depends on keys and targets alone, so it is known before values are trained
        first = before["keys"].shape[0]
        nothing = torch.zeros(len(requests), before["values"].shape[1])
        new = {"keys": rows.keys().cpu(), "values": nothing, "labels": labels, "owners": owners}
        book = {name: torch.cat([before[name], new[name]]) for name in new}
        radii, stands_under = placed(book["keys"], book["labels"], rule["eps"], before["radii"])
        leader = [int(stands_under[first + i]) for i in range(len(requests))]
        trained = sorted(set(leader))
        size = nothing.shape[1]
        drawn = {first + i: self._start(request, rule, size) for i, request in enumerate(requests)}
        start = torch.stack([before["values"][e] if e < first else drawn[e] for e in trained])
        values, losses = self._train(model, rows, start, [trained.index(entry) for entry in leader], rule)
        table = torch.cat([before["values"], nothing])
        table[trained] = values
        table[first:] = table[leader]
        # only what a key of before has learned more is written of the old values
        told = [entry for entry in trained if entry < first]
        change = {
            "drop": drop,
            "append.keys": new["keys"],
            "append.values": table[first:],
            "append.labels": labels,
            "append.owners": owners,
            "set.radii": radii,
        }
        if told:
            change["set.values"] = table
            del change["append.values"]
        if progress is not None:
            progress(len(requests))
        outcomes = [scalar_outcome(loss, steps=self.config.steps, converged=True) for loss in losses.tolist()]
        content = Content("codebook", self.layer, rule, change, "rows")
        return Computation(self.change(content), {}, outcomes)

    def settled(self, tables: Tables, rule: Mapping[str, Any]) -> Tables:
        radii, _ = placed(tables["keys"], tables["labels"], float(rule["eps"]), tables["radii"][:0])
        return {**tables, "radii": radii}

    # --- parts ---

    def _rule(self, model: EditableModel) -> dict[str, Any]:
        """Radius, rate and start in the numbers of this layer; found once, then those of the module itself."""
        config, packed = self.config, model.weight(self.layers[0])
        if packed.numel():
            return dict(unpack(packed).rule)
        if config.units == "absolute":
            return {"eps": config.eps, "lr": config.lr, "start": config.start}
        inputs, outputs = probe_inputs(model, self.layer)
        size = float(outputs.double().square().mean().sqrt())
        return {"eps": config.eps * median_distance(inputs), "lr": config.lr * size, "start": config.start * size}

    def _left(self, model: EditableModel, state: LifelongState, rule: Mapping[str, Any]) -> tuple[Tables, Tensor]:
        """The tables without rows of superseded requests, and the numbers of those rows."""
        tables = self.rows(model)
        if tables is None:
            width = model.width(self.layers[0])
            size = int(model.weight(self.layer).shape[0])
            floats = {"keys": torch.zeros(0, width), "values": torch.zeros(0, size), "radii": torch.zeros(0)}
            numbers = {name: torch.zeros(0, dtype=torch.int64) for name in ("labels", "owners")}
            return {**floats, **numbers}, torch.zeros(0, dtype=torch.int64)
        gone = self.gone(tables, state)
        if not gone.numel():
            return tables, gone
        keep = torch.ones(len(tables["owners"]), dtype=torch.bool)
        keep[gone] = False
        left = {name: table[keep] for name, table in tables.items()}
        # what leaves may have halved the radius of what stays, or stood over it
        return self.settled(left, rule), gone

    def _start(self, request: EditRequest, rule: Mapping[str, Any], size: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(owners_of([request.id])[0]) & (2**63 - 1))
        return torch.rand(size, generator=generator) * float(rule["start"])

    def _train(
        self, model: EditableModel, rows: TargetRows, start: Tensor, of_row: Sequence[int], rule: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Values (u, O) from their starts, on the CPU, and the last loss of each row; ``of_row`` says whose value a row
        takes."""
        values = start.to(model.device).requires_grad_()
        index = torch.tensor(of_row, device=model.device)
        adam = torch.optim.Adam([values], lr=float(rule["lr"]))
        where = rows.is_end[..., None]
        with torch.enable_grad():
            for _ in range(self.config.steps):
                with model.overwritten({self.layer: values[index][:, None]}, where):
                    losses = rows.losses()
                done = torch.zeros(values.shape[0], dtype=torch.bool, device=model.device)
                if self.config.stop_loss is not None:
                    below = losses.detach() < self.config.stop_loss
                    done = torch.stack([below[index == entry].all() for entry in range(values.shape[0])])
                    if bool(done.all()):
                        break
                kept = values.detach().clone()
                adam.zero_grad(set_to_none=True)
                losses.sum().backward()
                adam.step()
                with torch.no_grad():
                    values[done] = kept[done]
        with torch.no_grad(), model.overwritten({self.layer: values.detach()[index][:, None]}, where):
            losses = rows.losses()
        return values.detach().float().cpu(), losses.cpu()


def placed(keys: Tensor, labels: Tensor, eps: float, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Radii (n,) of entries that come one after the other, and which entry each stands under: itself, or another.

    Args:
        keys: (n, I), in the order in which they came.
        labels: (n,), equal for equal targets.
        eps: radius of a new key.
        radii: (k,) of the first k entries, which are placed already.
    """
    settled, count = radii.shape[0], keys.shape[0]
    result = torch.cat([radii, torch.full((count - settled,), ASLEEP)])
    leader = torch.arange(count)
    for entry in range(settled, count):
        if not bool((result[:entry] >= 0).any()):
            result[entry] = eps
            continue
        distance, other = nearest(keys[entry : entry + 1], keys[:entry], result[:entry])
        d, near = float(distance), int(other)
        if d > eps + float(result[near]):
            result[entry] = eps
        elif labels[entry] != labels[near]:
            result[entry] = result[near] = d / 2
        else:
            leader[entry] = near
            result[near] = max(float(result[near]), d)
    return result, leader
