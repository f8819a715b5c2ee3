"""What a step of the value optimization reads from the head: losses of rows of logits, and their gradient beside them.

Written out because the vocabulary is wide: under autograd a step makes a dozen tensors of the logits' size, here three.

Letters: P rows that predict a target token, K rows that are held to a distribution, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read_losses(logits: Tensor, tokens: Tensor, held_to: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of logits (P + K, V), differentiable.

    Args:
        tokens: (P,), what each of the first P rows should predict.
        held_to: log-probabilities (K, V); None where the rows are at them already, so that there is nothing to lose.

    Returns:
        (-log p(token) (P,), KL(p || held_to) (K,), whether another token is likelier (P,) bool).
    """
    results: tuple[Tensor, Tensor, Tensor] = _Losses.apply(logits, tokens, held_to)
    return results


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, held_to: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        count = tokens.numel()
        targets = torch.arange(count, device=logits.device), tokens
        highest = logits.amax(dim=-1, keepdim=True)
        gradient = (logits - highest).exp_()  # becomes the gradient of each row's loss, in the same memory
        # the target apart: 1 - p is the others' share, which p itself, near 1, has no digits for
        target = gradient[targets]
        gradient[targets] = 0.0
        total = gradient.sum(dim=-1, keepdim=True)
        others = total[:count, 0].clone()
        total[:count, 0] += target
        gradient.mul_(total.reciprocal())
        gradient[targets] = -others / total[:count, 0]
        size = total.log_().add_(highest)
        own = logits[targets]
        nll = size[:count, 0] - own
        missed = own < highest[:count, 0]
        p, above = gradient[count:], size[count:]
        if held_to is None:
            kl = torch.zeros_like(above[:, 0])
            p.zero_()
        else:
            apart = (logits[count:] - held_to).sub_(above)
            kl = torch.linalg.vecdot(p, apart)
            p.mul_(apart.sub_(kl[:, None]))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(missed)
        return nll, kl, missed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * torch.cat(gradients[:2])[:, None], None, None
