"""KN: the neurons that an answer's probability hangs on are found, and their output columns are rewritten.

Dai et al. 2022, arXiv:2104.08696. A neuron is an input of ``down_proj`` at the prompt's last token, a. Its attribution
is the integrated gradient (eq. 2) of the probability of the *old* answer along a = 0 .. a, the neurons of one layer at
a time. Neurons above ``threshold`` of the largest one in all layers are kept; with ``refine`` those that are so in at
least ``share`` of the prompt and its paraphrases. Each one's column of the map changes by ``-2 e(old) + 2 e(new)`` with
e the input embedding, summed over an answer's tokens (sec. 4.3).

Behind a map that a norm follows, the output's length does not matter: there the integral is zero but for a = 0.

Letters: S steps of the integral, I = d_in, O = d_out, n neurons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, EditorConfig, Progress, scalar_outcome
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

Neuron = tuple[int, int]
"""A layer and a number in 0..I-1."""


class KnConfig(EditorConfig):
    """Settings of KN; the papers look for neurons in all layers."""

    type: Literal["kn"] = "kn"
    steps: int = Field(20, ge=1)
    """S, of the integral; the code that the field compares with takes 1 for Llama, at a = 0, where nothing is seen."""
    threshold: float = Field(0.2, gt=0, le=1)
    """Share of the largest attribution that a neuron must reach."""
    refine: bool = True
    """Keep the neurons that several forms of the question have in common; false in the field's code for Llama."""
    share: float = Field(0.4, gt=0, le=1)
    """Of those forms."""
    old_weight: float = Field(2.0, ge=0)
    """By what the old answer's embedding is taken out."""
    new_weight: float = Field(2.0, ge=0)
    """By what the new answer's embedding is put in."""
    most: int = Field(64, ge=1)
    """Neurons at most, the strongest: a flat attribution would rewrite a layer."""


class Kn(Editor):
    """Knowledge neurons; a batch is written edit by edit, each on the weights as they were before it."""

    config: KnConfig
    needs_covariance = False
    commutes = False

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        columns: dict[int, dict[int, Tensor]] = {}
        for number, request in enumerate(requests, start=1):
            neurons = self.neurons(model, request)
            change = self._rewrite(model, request)
            for layer, neuron in neurons:
                layer_columns = columns.setdefault(layer, {})
                layer_columns[neuron] = layer_columns.get(neuron, torch.zeros_like(change)) + change
            if progress is not None:
                progress(number)
        changes = {}
        for layer, chosen in sorted(columns.items()):
            right = torch.zeros(len(chosen), model.width(layer))
            right[torch.arange(len(chosen)), torch.tensor(sorted(chosen))] = 1.0
            changes[layer] = LayerDelta("low_rank", torch.stack([chosen[i] for i in sorted(chosen)], dim=1), right)
        # nothing is trained: the loss is that of the targets on the weights before the batch
        losses = TargetRows(model, requests, 0).losses().detach().tolist()
        values = [scalar_outcome(loss, steps=self.config.steps, converged=True) for loss in losses]
        return Computation(WeightDelta(changes, self.config.type), {}, values)

    def neurons(self, model: EditableModel, request: EditRequest) -> list[Neuron]:
        """The neurons that the old answer hangs on, strongest first.

        Raises:
            UserError: the request names no old answer.
        """
        if request.target_true is None:
            raise UserError(f"request {request.id!r} has no target_true, which KN takes out; give the old answer")
        prompts = [request.text, *(request.paraphrases if self.config.refine else ())]
        found: Counter[Neuron] = Counter()
        strength: dict[Neuron, float] = {}
        for prompt in prompts:
            scores = attributions(model, prompt, request.target_true, self.config.layers, self.config.steps)
            stacked = torch.stack([scores[layer] for layer in self.config.layers])
            largest = float(stacked.max())
            if largest <= 0:
                continue
            for place, neuron in (stacked > self.config.threshold * largest).nonzero().tolist():
                name = (self.config.layers[place], neuron)
                found[name] += 1
                strength[name] = strength.get(name, 0.0) + float(stacked[place, neuron]) / largest
        kept = [name for name, count in found.items() if count >= self.config.share * len(prompts)]
        return sorted(kept, key=lambda name: (-strength[name], name))[: self.config.most]

    def _rewrite(self, model: EditableModel, request: EditRequest) -> Tensor:
        """What each chosen column changes by, (O,) on the CPU."""
        assert request.target_true is not None
        table = model.hf.get_input_embeddings().weight.detach()
        old, new = (
            table[torch.tensor(model.text.encode_target(text), device=table.device)].float().sum(dim=0).cpu()
            for text in (request.target_true, request.target_new)
        )
        return self.config.new_weight * new - self.config.old_weight * old


def attributions(
    model: EditableModel, prompt: str, answer: str, layers: Sequence[int], steps: int
) -> dict[int, Tensor]:
    """Integrated gradients (I,) by layer, ``a * mean_k dP(k/S a) / da``, summed over the answer's tokens; on the CPU.

    Of one token and many steps they add up, layer by layer, to P(a) - P(0).
    """
    tokens, target = model.text.encode_prompt(prompt), model.text.encode_target(answer)
    found: dict[int, Tensor] = {}
    for place, token in enumerate(target):
        rows = model.rows([[*tokens, *target[:place]]])
        positional = model.positional(rows.layout)
        with torch.no_grad():
            hidden = [model.embed(rows)]
            with model.map_inputs(list(layers)) as inputs:
                for layer in range(max(layers) + 1):
                    hidden.append(model.run(hidden[-1], layer, layer + 1, positional))
        for layer in layers:
            own = inputs[layer][0, -1].detach()
            parts = _integral(model, hidden[layer], layer, own, token, steps)
            found[layer] = found.get(layer, torch.zeros_like(parts)) + parts
    return found


def _integral(model: EditableModel, hidden: Tensor, layer: int, own: Tensor, token: int, steps: int) -> Tensor:
    """One layer's attributions (I,) at the last token of a row, for hidden states (1, T, d) at the layer's input."""
    share = torch.arange(1, steps + 1, device=own.device, dtype=own.dtype)[:, None] / steps
    scaled = (share * own).requires_grad_()
    linear: Any = model.decoder.edited_map(layer)
    weight = linear.weight.T if model.decoder.transposed else linear.weight
    length = hidden.shape[1]
    rows = model.rows([[0] * length] * steps)
    where = torch.zeros(steps, length, 1, dtype=torch.bool, device=own.device)
    where[:, -1] = True
    with torch.enable_grad():
        outputs = nn.functional.linear(scaled, weight, linear.bias)
        with model.overwritten({layer: outputs[:, None]}, where):
            last = model.run(hidden.expand(steps, -1, -1), layer, model.num_layers, model.positional(rows.layout))[
                :, -1
            ]
        chance = model.logits(last).float().softmax(dim=1)[:, token]
        (gradient,) = torch.autograd.grad(chance.sum(), scaled)
    return (own * gradient.mean(dim=0)).float().cpu()
