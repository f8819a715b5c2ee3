"""What methods of a module train against: rows of prompt and target, run once up to the layer that is changed.

Letters: m requests, T tokens, I = d_in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest


class TargetRows:
    """Prompts with their targets behind them; the loss of each is the mean negative log-likelihood of its target.

    The layers below ``layer`` are run once, with whatever modules stand in them.
    """

    @torch.no_grad()
    def __init__(
        self, model: EditableModel, requests: Sequence[EditRequest], layer: int, prefixes: Sequence[str] = ("",)
    ) -> None:
        """``prefixes`` stand before each prompt: rows are request by request, prefix by prefix."""
        self.model, self.layer = model, layer
        prompts = [model.text.encode_prompt(prefix + request.text) for request in requests for prefix in prefixes]
        targets = [model.text.encode_target(request.target_new) for request in requests for _ in prefixes]
        self.rows = model.rows([[*p, *t[:-1]] for p, t in zip(prompts, targets, strict=True)])
        self.ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
        """Where each prompt ends."""
        places = torch.arange(self.rows.ids.shape[1], device=model.device)
        self.is_end = places == self.ends[:, None]
        self.in_prompt = places <= self.ends[:, None]
        self.positional = replace(model.positional(self.rows.layout), ends=self.is_end)
        self.hidden = model.run(model.embed(self.rows), 0, layer, self.positional)
        self._row = torch.tensor([i for i, t in enumerate(targets) for _ in t], device=model.device)
        at = [self.ends[i] + j for i, t in enumerate(targets) for j in range(len(t))]
        self._at = torch.stack(at)
        self._token = torch.tensor([token for t in targets for token in t], device=model.device)
        self._share = torch.tensor([1 / len(t) for t in targets for _ in t], device=model.device)

    @torch.no_grad()
    def keys(self) -> Tensor:
        """The map's inputs (m, I) at the prompts' ends, float32."""
        with self.model.map_inputs([self.layer]) as inputs:
            self.model.run(self.hidden, self.layer, self.layer + 1, self.positional)
        return inputs[self.layer][torch.arange(len(self.ends), device=self.ends.device), self.ends].float()

    def losses(self) -> Tensor:
        """Loss of each row (m,), float32, with the layers as they are now."""
        hidden = self.model.run(self.hidden, self.layer, self.model.num_layers, self.positional)
        scores = self.model.logits(hidden[self._row, self._at]).float().log_softmax(dim=1)
        own = scores.gather(1, self._token[:, None]).squeeze(1)
        losses = torch.zeros(len(self.ends), device=scores.device)
        return losses.index_add(0, self._row, -own * self._share)
