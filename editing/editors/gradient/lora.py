"""LoRA as an editor: one low-rank adapter beside maps of attention that goes on learning through a sequence of edits.

``h = W x + (alpha / r) B A x`` (Hu et al. 2021, arXiv:2106.09685, eq. 3), with Adam on the targets' tokens alone, in
the settings that the papers of this field compare with. A commit is the adapter's product less that of the commit
before, so the served weight is the base and one product.

Letters: m edits, r rank, O = d_out, I = d_in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, EditorConfig, Progress, scalar_outcome
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import NumericalError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of, map_number
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

AttentionMap = Literal["q_proj", "k_proj", "v_proj", "o_proj"]
Adapter = dict[int, dict[str, Tensor]]
"""Trainable tensors of every map by its number: ``A`` (r, I), ``B`` (O, r), and ``E`` (r, 1) where there is one."""


class AdapterConfig(EditorConfig):
    """What LoRA and AdaLoRA share; the papers adapt all layers."""

    maps: tuple[AttentionMap, ...] = Field(("q_proj", "v_proj"), min_length=1)
    """Maps of attention that have the adapter; a family with one fused matrix has none of them."""
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    """Scale of the adapter's output, over its rank."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the adapter's inputs that is left out while it learns; drawn by a generator of each batch's own."""
    lr: float = Field(5e-3, gt=0)
    """Adam's learning rate."""
    steps: int = Field(50, ge=1)
    """Updates of a batch."""
    stop_loss: float | None = Field(None, ge=0)
    """A batch ends once its mean loss is below this; null for all steps, as published."""
    seed: int = 0
    """Of the adapter's beginning and of dropout."""


class LoraConfig(AdapterConfig):
    """Settings of LoRA."""

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    """r, of every adapted map."""


class AdapterEditor(Editor):
    """Trains an adapter and writes the change of its product."""

    needs_covariance = False
    commutes = False
    parts: tuple[str, ...] = ("A", "B")

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the adapted maps (see ``map_number``), ascending."""
        return tuple(sorted(map_number(layer, name) for layer in self.config.layers for name in set(self.config.maps)))

    def new_state(self, model: EditableModel, covariance: KeyCovariance | None) -> LifelongState:
        model.check_layers(self.layers)
        generator = torch.Generator().manual_seed(self.config.seed)
        memory = {}
        for number in self.layers:
            size, width = model.weight(number).shape
            memory[f"adapter.{number}"] = packed(self.begun(int(size), int(width), generator))
        return LifelongState.start({}, covariance, None, memory=memory)

    @abstractmethod
    def begun(self, size: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The adapter of one map (O, I) before the first edit; its product is zero."""

    def factors(self, adapter: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Left (O, r) and right (r, I) factors of the adapter's product, scale included."""
        return adapter["B"] * (self.config.alpha / self.config.rank), adapter["A"]

    def penalty(self, adapters: Adapter) -> Tensor | float:
        """What the loss has beside the targets' likelihood."""
        return 0.0

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        before = self.adapters(model, state)
        adapters = {n: {name: t.clone().requires_grad_() for name, t in a.items()} for n, a in before.items()}
        rows = TargetRows(model, requests, min(map(layer_of, self.layers)))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + len(state.request_ids) + 1)
        adam = torch.optim.Adam([t for a in adapters.values() for t in a.values()], lr=self.config.lr)
        # the weights hold the adapter's product up to now: what is added is the difference
        old = {n: self.factors(a) for n, a in before.items()}
        steps = 0
        with torch.enable_grad():
            for _ in range(self.config.steps):
                dropped = {n: self._dropout(model, n, rows, generator) for n in adapters}
                with self._added(model, adapters, old, dropped):
                    losses = rows.losses()
                if self.config.stop_loss is not None and float(losses.detach().mean()) < self.config.stop_loss:
                    break
                adam.zero_grad(set_to_none=True)
                (losses.mean() + self.penalty(adapters)).backward()
                adam.step()
                steps += 1
        done = {n: {name: t.detach() for name, t in a.items()} for n, a in adapters.items()}
        with torch.no_grad(), self._added(model, done, old, {}):
            losses = rows.losses()
        if not bool(torch.isfinite(losses).all()):
            # the adapter is one for all: whose fault it is shows when the batch is cut
            raise NumericalError(f"a loss of the batch did not stay finite; check editor.lr ({self.config.lr:g})")
        if progress is not None:
            progress(len(requests))
        changes = {}
        for number, adapter in done.items():
            left, right = self.factors(adapter)
            changes[number] = LayerDelta(
                "low_rank",
                torch.cat([left, -old[number][0]], dim=1).float().cpu().contiguous(),
                torch.cat([right, old[number][1]]).float().cpu().contiguous(),
            )
        stop = self.config.stop_loss or 1e-2
        values = [scalar_outcome(loss, steps=steps, converged=loss < stop) for loss in losses.tolist()]
        keys = {number: packed(adapter).cpu() for number, adapter in done.items()}
        return Computation(WeightDelta(changes, self.config.type), keys, values)

    def adapters(self, model: EditableModel, state: LifelongState) -> Adapter:
        """The adapter as the last commit left it, on the model's device."""
        found = {}
        for number in self.layers:
            size, width = model.weight(number).shape
            found[number] = unpacked(state.memory[f"adapter.{number}"].to(model.device), int(size), int(width))
        return found

    def advance(
        self,
        state: LifelongState,
        delta: WeightDelta,
        keys: Mapping[int, Tensor],
        request_ids: Sequence[str],
        fact_keys: Sequence[str],
    ) -> LifelongState:
        memory = {f"adapter.{number}": adapter for number, adapter in keys.items()}
        return super().advance(state, delta, {}, request_ids, fact_keys).remembering(memory)

    def _dropout(
        self, model: EditableModel, number: int, rows: TargetRows, generator: torch.Generator
    ) -> Tensor | None:
        if not self.config.dropout:
            return None
        keep = 1 - self.config.dropout
        shape = (*rows.rows.ids.shape, int(model.weight(number).shape[1]))
        return ((torch.rand(shape, generator=generator) < keep) / keep).to(model.device)

    @contextmanager
    def _added(
        self,
        model: EditableModel,
        adapters: Adapter,
        old: Mapping[int, tuple[Tensor, Tensor]],
        dropped: Mapping[int, Tensor | None],
    ) -> Iterator[None]:
        """Within the context the maps put out what the adapter adds, in place of what the old one did."""
        handles = []
        for number, adapter in adapters.items():
            now, dropout = self.factors(adapter), dropped.get(number)

            def hook(
                _: nn.Module,
                args: tuple[Any, ...],
                output: Tensor,
                new: tuple[Tensor, Tensor] = now,
                before: tuple[Tensor, Tensor] = old[number],
                mask: Tensor | None = dropout,
            ) -> Tensor:
                x = args[0].float()
                seen = x if mask is None else x * mask
                change = (seen @ new[1].T) @ new[0].T - (x @ before[1].T) @ before[0].T
                return output + change.to(output.dtype)

            handles.append(model.decoder.edited_map(number).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Lora(AdapterEditor):
    """The adapter of LoRA."""

    config: LoraConfig

    def begun(self, size: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = width**-0.5  # what a linear layer of torch begins with
        start = (torch.rand(self.config.rank, width, generator=generator) * 2 - 1) * bound
        return {"A": start, "B": torch.zeros(size, self.config.rank)}


def packed(adapter: Mapping[str, Tensor]) -> Tensor:
    """An adapter of one map as one matrix (r, I + O + 1): A, the transpose of B, and E, zeros where there is none."""
    rank = adapter["A"].shape[0]
    scale = adapter["E"] if "E" in adapter else torch.zeros(rank, 1, device=adapter["A"].device)
    return torch.cat([adapter["A"], adapter["B"].T, scale], dim=1).contiguous()


def unpacked(matrix: Tensor, size: int, width: int) -> dict[str, Tensor]:
    """The inverse of `packed`, ``E`` always included, for a map (O, I)."""
    a, b, e = matrix.split([width, size, 1], dim=1)
    return {"A": a.clone(), "B": b.T.clone(), "E": e.clone()}
