"""FT-L: gradient descent on one layer's map until the prompt's last token predicts the target.

``min_W mean_t -log P(target_t | prompt)``, all target tokens read at the prompt's last token, as in the code that the
field compares with (``prompt_last``); optionally ``|W - W_t|_inf <= bound`` around the weight before the batch. Zhu
et al. 2020, arXiv:2012.00363.

Letters: B prompts, T tokens, O = d_out, I = d_in, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, EditorConfig, Progress, scalar_outcome
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState


class FtLConfig(EditorConfig):
    """Settings of FT-L; the papers edit one layer, 21 of Llama-2-7B and Llama-3-8B."""

    type: Literal["ft_l"] = "ft_l"
    lr: float = Field(5e-4, gt=0)
    """Adam's learning rate."""
    steps: int = Field(25, ge=1)
    """Updates at most."""
    stop_loss: float = Field(1e-2, ge=0)
    """A batch stops when its mean loss is below this."""
    bound: float | None = Field(None, gt=0)
    """Largest change of any entry within a batch; null for none. 5e-5 belongs to GPT-J and GPT-2 XL."""


class FtL(Editor):
    """Fine-tuning of the edited layers' maps alone."""

    config: FtLConfig
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
        before = {layer: model.weight(layer).clone() for layer in self.layers}
        weights = {layer: weight.clone().requires_grad_() for layer, weight in before.items()}
        loss_of = _Losses(model, requests, self.layers[0])
        adam = torch.optim.Adam(list(weights.values()), lr=self.config.lr)
        steps = 0
        losses = loss_of(weights)
        while steps < self.config.steps and float(losses.detach().mean()) >= self.config.stop_loss:
            adam.zero_grad(set_to_none=True)
            losses.mean().backward()
            adam.step()
            with torch.no_grad():
                for layer, weight in weights.items():
                    if self.config.bound is not None:
                        lowest, highest = before[layer] - self.config.bound, before[layer] + self.config.bound
                        weight.copy_(weight.maximum(lowest).minimum(highest))
            steps += 1
            losses = loss_of(weights)
        if progress is not None:
            progress(len(requests))
        changes = {
            layer: LayerDelta("dense", (weight.detach().double() - before[layer].double()).float().cpu())
            for layer, weight in weights.items()
        }
        values = [
            scalar_outcome(loss, steps=steps, converged=loss < self.config.stop_loss)
            for loss in losses.detach().tolist()
        ]
        return Computation(WeightDelta(changes, self.config.type), {}, values)


class _Losses:
    """Loss of each request as a function of the weights; what lies below the first edited layer runs once."""

    @torch.no_grad()
    def __init__(self, model: EditableModel, requests: Sequence[EditRequest], first: int) -> None:
        self.model, self.first = model, first
        rows = model.rows([model.text.encode_prompt(request.text) for request in requests])
        self.positional = model.positional(rows.layout)
        self.hidden = model.run(model.embed(rows), 0, first, self.positional)
        self.at = (torch.arange(len(requests), device=model.device), rows.lengths - 1)
        targets = [model.text.encode_target(request.target_new) for request in requests]
        self.row = torch.tensor([i for i, ids in enumerate(targets) for _ in ids], device=model.device)
        self.token = torch.tensor([token for ids in targets for token in ids], device=model.device)
        self.share = torch.tensor([1 / len(ids) for ids in targets for _ in ids], device=model.device)

    def __call__(self, weights: Mapping[int, Tensor]) -> Tensor:
        model = self.model
        with replaced_maps(model, weights):
            hidden = model.run(self.hidden, self.first, model.num_layers, self.positional)
        scores = model.logits(hidden[self.at]).float().log_softmax(dim=1)
        losses = torch.zeros(scores.shape[0], device=scores.device)
        return losses.index_add(0, self.row, -scores[self.row, self.token] * self.share)


@contextmanager
def replaced_maps(model: EditableModel, weights: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context the maps use these weights (O, I), float32, instead of their own; gradients reach them."""
    handles = []
    for layer, weight in weights.items():
        module = model.decoder.edited_map(layer)

        def hook(module: nn.Module, args: tuple[Any, ...], _: Tensor, weight: Tensor = weight) -> Tensor:
            bias: Any = getattr(module, "bias", None)
            return nn.functional.linear(args[0], weight.to(args[0].dtype), bias)

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
