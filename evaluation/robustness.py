"""How far an edited subject's value may move, and how far other wordings move it (RoSE, sections 3.2 to 3.4, C.1).

An edit holds in another wording where the *activation deviation*, what the update makes of the difference of two
wordings' keys, stays within the *tolerance radius*, the noise that the value bears.

Letters: m facts, I = d_in and O = d_out of the edited map, d hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from errata.editing.delta import LayerDelta
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.value_config import PLAIN, ValueConfig
from errata.editing.value_problem import Problem, edit_segments


def activation_deviation(change: LayerDelta, keys: Tensor, others: Tensor) -> Tensor:
    """``|dW (k' - k)|`` (m,) of keys k and k' (I, m) of two wordings, dW low-rank or dense (RoSE, eq. 5)."""
    moved = others.double() - keys.double()
    if change.kind == "low_rank":
        moved = change.rows.double() @ moved
    elif change.kind != "dense":
        raise ValueError(f"a change that is added is needed, got {change.kind!r}")
    return (change.left.double() @ moved).norm(dim=0)


def pairwise_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines (m, n) of the columns of (I, m) and (I, n), float64."""
    one, other = (x.double() / x.double().norm(dim=0).clamp_min(1e-30) for x in (first, second))
    return one.T @ other


def gradient_conflicts(gradients: Tensor) -> Tensor:
    """``1 - |cos|`` of every pair of rows (m, d), the m (m - 1) / 2 pairs above the diagonal in order."""
    cosines = pairwise_cosines(gradients.T, gradients.T)
    rows, columns = torch.triu_indices(len(gradients), len(gradients), offset=1)
    return 1.0 - cosines[rows, columns].abs()


def tolerance_radius(
    holds: Callable[[Tensor], Tensor],
    size: int,
    generator: torch.Generator,
    *,
    step: float,
    most: float,
    trials: int = 10,
    share: float = 0.9,
) -> float:
    """Largest length of noise that a value bears: growing by ``step`` while at least ``share`` of ``trials`` hold.

    Gaussian directions, scaled to the length; fresh ones for every length. 0 where not even the value itself holds.

    Args:
        holds: from noise (n, size) to a bool for each row: whether the target is still predicted.
        most: where the search ends.
    """
    if not bool(holds(torch.zeros(1, size)).all()):
        return 0.0
    radius, number = 0.0, 1
    while (length := number * step) <= most * (1 + 1e-9):
        noise = torch.randn(trials, size, generator=generator)
        noise = noise * (length / noise.norm(dim=1, keepdim=True))
        if float(holds(noise).float().mean()) < share:
            break
        radius, number = length, number + 1
    return radius


@torch.no_grad()
def target_probabilities(
    model: EditableModel, request: EditRequest, layer: int, deltas: Tensor, target: str | None = None
) -> Tensor:
    """P(target) (n,) after a request's own prompt, with each of ``deltas`` (n, d) added to the output of ``layer`` at
    the subject's last token: the product over the target's tokens."""
    tokens, subject = model.text.encode_for_edit("", request.prompt, request.subject)
    wanted = model.text.encode_target(request.target_new if target is None else target)
    rows = model.rows([tokens + wanted[:-1]] * len(deltas))
    positional = model.positional(rows.layout)
    hidden = model.run(model.embed(rows), 0, layer + 1, positional)
    hidden[:, subject] += deltas.to(hidden)
    hidden = model.run(hidden, layer + 1, model.num_layers, positional)
    logits = model.logits(hidden[:, len(tokens) - 1 :]).float().log_softmax(dim=-1)
    places = torch.arange(len(wanted), device=logits.device)
    return logits[:, places, torch.tensor(wanted, device=logits.device)].sum(dim=1).exp().cpu()


def value_gradients(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Tensor:
    """Gradients (m, d) of the requests' own losses by the change of their subjects' states, where that is 0."""
    config = ValueConfig(kl_factor=0.0, weight_decay=0.0)
    problem = Problem(model, [edit_segments(model, r, contexts) for r in requests], layer, config, "block", PLAIN)
    delta = torch.zeros_like(problem.h).requires_grad_()
    losses, _ = problem.losses(delta, problem.h, None)
    (gradient,) = torch.autograd.grad(losses.sum(), delta)
    return gradient.float().cpu()
