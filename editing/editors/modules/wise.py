"""WISE: edits go into a side copy of one layer's map, and a prompt is sent through it where the two differ enough.

Wang et al. 2024, arXiv:2405.14768. The copy W' learns edit by edit, within a random mask of its entries (eq. 5), on

    L = NLL(target) + [d_out - alpha]+ + [beta - d_in]+ + [d_out - d_in + gamma]+            (eq. 4 and 3)

where d is the mean over a prompt's tokens of ``|act(W x) - act(W' x)|``, d_in of the edit's own prompt and d_out of an
unrelated one. After ``save_every`` edits the copy is kept and a fresh one begins, after ``merge_every`` the kept ones
become one by TIES. A prompt goes through the copy with the largest d, if that is above ``act_ratio`` of the least d
that the copy's own edits had (``retrieve``), else through W.

Letters: m edits, c copies, O = d_out, I = d_in, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from errata.editing.editors.base import Computation, EditorConfig, Progress, scalar_outcome
from errata.editing.editors.gradient.ft_l import replaced_maps
from errata.editing.editors.modules.store import ModuleEditor, median_distance, owners_of, probe_inputs
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.modules.packed import Content, unpack
from errata.editing.modules.side import activation
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.ties import ties

UNRELATED = (
    "The weather was mild for the season, and the market opened at eight as it did every week.",
    "To make the dough, mix flour, water and salt, and let it rest for half an hour.",
    "The committee will meet again on Thursday to discuss the budget for the coming year.",
    "A loop that never ends is usually the sign of a condition that is never checked.",
    "She closed the book, put out the lamp and listened to the rain on the roof.",
    "Most of the passengers slept while the train went on through the night.",
    "Before you paint the wall, remove the dust and fill the small holes.",
    "The results of the second experiment agree with those of the first within their errors.",
)
"""Prompts that no edit is about, one drawn for each edit: WISE needs one, and a request has none."""

_UNUSED = -1.0


class WiseConfig(EditorConfig):
    """Settings of WISE; the papers put it at layer 29 of 32 (Llama-2-7B, Llama-3-8B)."""

    type: Literal["wise"] = "wise"
    layers: tuple[int, ...] = Field(min_length=1, max_length=1)
    """The one decoder layer whose ``down_proj`` has side copies."""
    units: Literal["relative", "absolute"] = "relative"
    """``relative``: ``alpha``, ``beta`` and ``gamma`` count in the median distance between the activations of unrelated
    prompts behind that map, and ``lr`` is the share of ``|W|`` that the first step of an edit moves W'. ``absolute``:
    the papers' form, with ``lr`` .9, ``alpha`` 5, ``beta`` 10 and ``gamma`` 10."""
    lr: float = Field(0.02, gt=0, allow_inf_nan=False)
    """Step of gradient descent."""
    weight_decay: float = Field(1e-5, ge=0)
    """Of W' in every step, as in torch's SGD."""
    steps: int = Field(30, ge=1)
    """Steps of an edit at most."""
    mask: float = Field(0.2, gt=0, le=1)
    """Share of the entries that one copy may change."""
    alpha: float = Field(0.1, ge=0)
    """What an unrelated prompt may differ by."""
    beta: float = Field(0.4, ge=0)
    """What the edit's own prompt must differ by at least."""
    gamma: float = Field(0.3, ge=0)
    """By how much the latter must exceed the former."""
    bound: float = Field(1.0, gt=0)
    """Largest change of any entry of W' against W."""
    act_ratio: float = Field(0.88, gt=0, le=1)
    """Share of the least difference of a copy's own edits above which it speaks."""
    save_every: int = Field(500, ge=1)
    """Edits of one copy."""
    merge_every: int = Field(1000, ge=1)
    """Edits after which the kept copies are merged."""
    density: float = Field(0.53, gt=0, le=1)
    """Share of a copy's difference that TIES keeps."""
    prefixes: int = Field(10, ge=0)
    """Context prefixes that an edit is learned behind, besides none; at most those of the run."""
    stop_loss: float = Field(0.02, ge=0)
    """An edit ends once its loss is below this and no longer moves by more than 1e-4."""
    seed: int = 0
    """Of the masks."""

    @model_validator(mode="after")
    def _merges_whole_copies(self) -> WiseConfig:
        if self.merge_every % self.save_every:
            raise ValueError(f"merge_every {self.merge_every} must be a multiple of save_every {self.save_every}")
        return self


@dataclass
class _Copies:
    """All side copies; the last one is being written."""

    maps: list[Tensor]
    floors: list[float]
    """Least difference that the edits of each copy had; negative before there is one, and then it never speaks."""
    count: int
    """Edits so far."""


class Wise(ModuleEditor):
    """The side memory's editor. A batch is written edit by edit."""

    config: WiseConfig

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        packed = model.weight(self.layers[0])
        weight = model.weight(self.layer).float()
        rule = dict(unpack(packed).rule) if packed.numel() else self._rule(model)
        copies = self._copies(packed, weight)
        before = len(copies.maps) if packed.numel() else 0
        outcomes, first_changed = [], max(0, before - 1)
        with model.patched(self.layers):
            model.set_weight(self.layers[0], torch.zeros(0, dtype=torch.uint8))
            for number, request in enumerate(requests, start=1):
                mask = self._mask(weight.shape, copies.count // self.config.save_every).to(model.device)
                prefixes = tuple(contexts[: 1 + self.config.prefixes])
                loss, steps = self._learn(model, request, prefixes, weight, copies, mask, rule)
                outcomes.append(scalar_outcome(loss, steps=steps, converged=loss <= self.config.stop_loss))
                copies.count += 1
                if copies.count % self.config.merge_every == 0:
                    merged = ties(weight, copies.maps, self.config.density)
                    copies.maps, copies.floors = [merged], [min(copies.floors)]
                    first_changed = 0
                if copies.count % self.config.save_every == 0:
                    copies.maps.append(weight.clone())
                    copies.floors.append(_UNUSED)
                if progress is not None:
                    progress(number)
        thresholds = torch.tensor([floor * self.config.act_ratio for floor in copies.floors])
        change = {
            "drop": torch.arange(first_changed, before),
            "append.maps": torch.stack([m.cpu() for m in copies.maps[first_changed:]]),
            "set.thresholds": thresholds,
            "set.floors": torch.tensor(copies.floors),
            "set.count": torch.tensor([copies.count], dtype=torch.int64),
        }
        content = Content("side", self.layer, rule, change, "rows")
        return Computation(self.change(content), {}, outcomes)

    # --- parts ---

    def _rule(self, model: EditableModel) -> dict[str, Any]:
        """The margins in the numbers of this layer, and the model's activation."""
        config = self.config
        act = str(getattr(model.hf.config, "hidden_act", None) or getattr(model.hf.config, "activation_function", ""))
        act = str(getattr(model.hf.config, "hidden_activation", None) or act)
        unit = 1.0
        if config.units == "relative":
            unit = median_distance(activation(act, probe_inputs(model, self.layer)[1]))
        margins = {"alpha": config.alpha * unit, "beta": config.beta * unit, "gamma": config.gamma * unit}
        return {"act": act, **margins}

    def _copies(self, packed: Tensor, weight: Tensor) -> _Copies:
        if not packed.numel():
            return _Copies([weight.clone()], [_UNUSED], 0)
        tensors = unpack(packed).tensors
        maps = [copy.to(weight.device) for copy in tensors["maps"]]
        return _Copies(maps, tensors["floors"].tolist(), int(tensors["count"]))

    def _mask(self, shape: torch.Size, copy: int) -> Tensor:
        """Entries that a copy may change, by its number; drawn by a generator of its own."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + copy)
        return torch.rand(shape, generator=generator) < self.config.mask

    def _learn(
        self,
        model: EditableModel,
        request: EditRequest,
        prefixes: Sequence[str],
        weight: Tensor,
        copies: _Copies,
        mask: Tensor,
        rule: dict[str, Any],
    ) -> tuple[float, int]:
        """Write one edit into the last copy; its last loss and the steps taken."""
        config = self.config
        rows = TargetRows(model, [request], self.layer, prefixes)
        own, inside = _prompt_inputs(model, rows, self.layer), _behind_prefixes(model, request, prefixes, rows)
        unrelated = UNRELATED[int(owners_of([request.id])[0]) % len(UNRELATED)]
        other = _inputs_of(model, unrelated, self.layer)
        bias: Any = getattr(model.decoder.edited_map(self.layer), "bias", None)
        copy = copies.maps[-1].clone().requires_grad_()

        def differences(x: Tensor) -> Tensor:
            """Per token ``|act(W x) - act(W' x)|`` for inputs (B, T, I)."""
            act = rule["act"]
            now = activation(act, nn.functional.linear(x, copy, bias))
            return (now - activation(act, nn.functional.linear(x, weight, bias))).norm(dim=-1)

        def loss() -> Tensor:
            with replaced_maps(model, {self.layer: copy}):
                told = rows.losses().mean()
            d_in = (differences(own) * inside).sum(dim=1) / inside.sum(dim=1)
            d_out = differences(other).mean()
            margins = (d_out - rule["alpha"]).relu() + (rule["beta"] - d_in).relu().mean()
            return told + margins + (d_out - d_in + rule["gamma"]).relu().mean()

        step: float | None = config.lr if config.units == "absolute" else None
        last, taken = float("inf"), config.steps
        with torch.enable_grad():
            for number in range(config.steps):
                value = loss()
                now = float(value.detach())
                if abs(last - now) <= 1e-4 and now <= config.stop_loss:
                    taken = number
                    break
                last = now
                (gradient,) = torch.autograd.grad(value, copy)
                gradient = torch.where(mask, gradient + config.weight_decay * copy.detach(), 0.0)
                if step is None:
                    step = config.lr * float(weight.norm()) / max(float(gradient.norm()), 1e-30)
                with torch.no_grad():
                    copy -= step * gradient
                    copy.copy_(copy.maximum(weight - config.bound).minimum(weight + config.bound))
        with torch.no_grad():
            last = float(loss())
            bare = (differences(own[:1]) * rows.in_prompt[:1]).sum() / rows.in_prompt[:1].sum()
        if not torch.isfinite(copy).all():
            raise UserError(f"request {request.id!r}: its side copy did not stay finite; lower editor.lr")
        copies.maps[-1] = copy.detach()
        least = copies.floors[-1]
        copies.floors[-1] = float(bare) if least < 0 else min(least, float(bare))
        return last, taken


@torch.no_grad()
def _prompt_inputs(model: EditableModel, rows: TargetRows, layer: int) -> Tensor:
    """Inputs (B, T, I) of the map, float32."""
    with model.map_inputs([layer]) as inputs:
        model.run(rows.hidden, layer, layer + 1, rows.positional)
    return inputs[layer].float()


@torch.no_grad()
def _inputs_of(model: EditableModel, text: str, layer: int) -> Tensor:
    """Inputs (1, T, I) of the map over one text, float32."""
    rows = model.rows([model.text.encode_prompt(text)])
    with model.map_inputs([layer]) as inputs:
        model.run(model.embed(rows), 0, layer + 1, model.positional(rows.layout))
    return inputs[layer].float()


def _behind_prefixes(model: EditableModel, request: EditRequest, prefixes: Sequence[str], rows: TargetRows) -> Tensor:
    """Bool (B, T): the tokens of the prompt itself, without the prefix before it and the target behind it."""
    length = len(model.text.encode_prompt(request.text))
    places = torch.arange(rows.in_prompt.shape[1], device=rows.in_prompt.device)
    begins = (rows.ends + 1 - length).clamp_min(0)
    return rows.in_prompt & (places >= begins[:, None])
