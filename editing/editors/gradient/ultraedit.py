"""UltraEdit: no value optimization; one backward pass and a linear system per map.

At the tokens that predict the answer each map gives its input h and the gradient g of its output. With both
normalized by lifelong running statistics (h^, g^) the wanted change of the output is ``v = -lr |h^|^2 g^``, and
``dW^T = (H^T H + I)^-1 H^T V`` with the raw inputs H; equally ``V^T (H H^T + I)^-1 H``, of the rank of the tokens.
Gu et al. 2025, arXiv:2505.14679.

Letters: n answer tokens of the batch, I = d_in, O = d_out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.base import Computation, Editor, EditorConfig, Progress, scalar_outcome
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of, map_number
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState

MapName = Literal["gate_proj", "up_proj", "down_proj"]


class UltraEditConfig(EditorConfig):
    """Settings of UltraEdit."""

    type: Literal["ultraedit"] = "ultraedit"
    maps: tuple[MapName, ...] = Field(("gate_proj", "up_proj"), min_length=1)
    """Which linear maps of the layers' MLPs are edited."""
    lr: float = Field(1e-6, gt=0)
    """Scale of the wanted changes; the paper's for 7B models."""


class UltraEdit(Editor):
    """Normalized gradients, written by regularized least squares."""

    config: UltraEditConfig
    needs_covariance = False
    commutes = False

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the edited maps (see ``map_number``), ascending."""
        return tuple(sorted(map_number(layer, name) for layer in self.config.layers for name in set(self.config.maps)))

    def compute(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: LifelongState,
        contexts: Sequence[str],
        progress: Progress | None = None,
    ) -> Computation:
        rows_by_map, losses = self.features(model, requests)
        changes: dict[int, LayerDelta] = {}
        moments: dict[int, Tensor] = {}
        for number, (inputs, gradients) in rows_by_map.items():
            features = torch.cat([inputs, gradients], dim=1)
            moments[number] = moments_of(features)
            hats = normalized(features, merged(state.memory.get(f"features.{number}"), moments[number]))
            h_hat, g_hat = hats[:, : inputs.shape[1]], hats[:, inputs.shape[1] :]
            wanted = -self.config.lr * h_hat.square().sum(dim=1, keepdim=True) * g_hat
            changes[number] = solved(inputs, wanted)
        if progress is not None:
            progress(len(requests))
        values = [scalar_outcome(loss, steps=1, converged=True) for loss in losses]
        return Computation(WeightDelta(changes, self.config.type), moments, values)

    def features(
        self, model: EditableModel, requests: Sequence[EditRequest]
    ) -> tuple[dict[int, tuple[Tensor, Tensor]], list[float]]:
        """Inputs (n, I) and output gradients (n, O) of every edited map, float64; and each request's mean loss.

        The loss is the mean over all answer tokens of the batch.
        """
        prompts = [model.text.encode_prompt(request.text) for request in requests]
        targets = [model.text.encode_target(request.target_new) for request in requests]
        rows = model.rows([p + t[:-1] for p, t in zip(prompts, targets, strict=True)])
        places = [
            (row, len(prompt) - 1 + i, token)
            for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
            for i, token in enumerate(target)
        ]
        row, at, token = torch.tensor(places, device=model.device).unbind(dim=1)
        positional = model.positional(rows.layout)
        first = min(layer_of(number) for number in self.layers)
        with torch.no_grad():
            hidden = model.run(model.embed(rows), 0, first, positional)
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        handles = []
        for number in self.layers:

            def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor, number: int = number) -> None:
                inputs[number] = args[0].detach()[row, at]
                output.retain_grad()
                outputs[number] = output

            handles.append(model.decoder.edited_map(number).register_forward_hook(hook))
        try:
            # the parameters are frozen: a gradient at the bottom makes the graph
            hidden = model.run(hidden.detach().requires_grad_(), first, model.num_layers, positional)
            nll = torch.nn.functional.cross_entropy(model.logits(hidden[row, at]).float(), token, reduction="none")
            nll.mean().backward()
        finally:
            for handle in handles:
                handle.remove()
        by_map = {}
        for number in self.layers:
            gradient = outputs[number].grad
            assert gradient is not None
            by_map[number] = (inputs[number].double().cpu(), gradient[row, at].double().cpu())
        losses = [float(nll.detach()[row == i].mean()) for i in range(len(requests))]
        return by_map, losses

    def advance(
        self,
        state: LifelongState,
        delta: WeightDelta,
        keys: Mapping[int, Tensor],
        request_ids: Sequence[str],
        fact_keys: Sequence[str],
    ) -> LifelongState:
        memory = {f"features.{n}": merged(state.memory.get(f"features.{n}"), moments) for n, moments in keys.items()}
        return super().advance(state, delta, keys, request_ids, fact_keys).remembering(memory)


def moments_of(features: Tensor) -> Tensor:
    """Mean, sum of squared deviations and count (w, 3) of features (n, w)."""
    mean = features.mean(dim=0)
    return torch.stack([mean, (features - mean).square().sum(dim=0), torch.full_like(mean, features.shape[0])], dim=1)


def merged(moments: Tensor | None, more: Tensor) -> Tensor:
    """Moments (w, 3) of two sets of features together, by Chan's formula; None stands for no features."""
    if moments is None:
        return more
    (mean, square, count), (mean_2, square_2, count_2) = moments.unbind(dim=1), more.unbind(dim=1)
    total, apart = count + count_2, mean_2 - mean
    return torch.stack(
        [mean + apart * count_2 / total, square + square_2 + apart.square() * count * count_2 / total, total], dim=1
    )


def normalized(features: Tensor, moments: Tensor) -> Tensor:
    """Features (n, w) less their lifelong mean, in units of their lifelong standard deviation."""
    mean, square, count = moments.unbind(dim=1)
    deviation = (square / (count - 1).clamp_min(1)).sqrt()
    return (features - mean) / (deviation + torch.finfo(features.dtype).eps)


def solved(inputs: Tensor, wanted: Tensor) -> LayerDelta:
    """dW (O, I) of ``dW^T = (H^T H + I)^-1 H^T V`` for inputs H (n, I) and wanted changes V (n, O), float64."""
    gram = inputs @ inputs.T + torch.eye(inputs.shape[0], dtype=inputs.dtype)
    right = torch.linalg.solve(gram, inputs)
    if inputs.shape[0] * sum((inputs.shape[1], wanted.shape[1])) > inputs.shape[1] * wanted.shape[1]:
        return LayerDelta("dense", (wanted.T @ right).float())
    return LayerDelta("low_rank", wanted.T.float().contiguous(), right.float().contiguous())
