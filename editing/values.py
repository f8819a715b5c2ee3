"""Target values: the hidden state at the subject's last token that makes the model say the new fact.

For each edit a change ``delta`` of the hidden state is optimized (ROME, arXiv:2202.05262, eq. 4; MEMIT,
arXiv:2210.07229, sec. 4.2.1)::

    loss = mean_j mean_t -log P(target_t | context_j, prompt, target_<t)
         + kl_factor * KL(P_delta || P_0)  at the subject's last token of "{subject} is a"
         + weight_decay * |delta| / |h|^2

Four observations make it fast and change nothing beyond rounding. Edits are independent and Adam is
elementwise, so many are optimized in one batch, each with its own stop. Layers up to the value layer do not
depend on ``delta``: they run once. Attention is causal: positions before the subject's last token never change,
so their keys and values are kept and only the positions after them run. And only the positions that predict a
target need logits.

Letters: B edits, d hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.packed import multiplying
from errata.editing.request import EditRequest
from errata.editing.value_config import FAST, PLAIN, TargetValue, ValueConfig, Variant
from errata.editing.value_problem import (
    KL_TEMPLATE,
    JointProblem,
    LayersProblem,
    Problem,
    Segment,
    edit_segments,
    lengths,
    projection_loss,
    protected_states,
)

__all__ = [
    "FAST",
    "KL_TEMPLATE",
    "PLAIN",
    "Problem",
    "TargetValue",
    "ValueConfig",
    "Variant",
    "edit_segments",
    "optimize_values",
]

logger = logging.getLogger(__name__)

_REPACK_SHARE = 0.8
"""Rows of finished edits are dropped once fewer than this share of a batch is still running."""


def optimize_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    contexts: Sequence[str],
    config: ValueConfig,
    space: Literal["block", "mlp"] = "block",
    progress: Callable[[int], None] | None = None,
    variant: Variant = PLAIN,
) -> list[TargetValue]:
    """Target values of many edits at one layer, in the order of the requests.

    Args:
        model: its current weights are those the edits are made on.
        layer: the value layer L; ``delta`` is added to its output at the subject's last token.
        contexts: prefixes, the empty one first.
        space: where norms (clamp, decay) are taken: the block's output, or the MLP's output (ROME, MOSE).
        progress: called with the number of edits finished so far.
        variant: what a method does differently. The requests of a group get the same value, with the ``h`` of the
            group's first.
    """
    prompts: Sequence[Sequence[str] | None] = variant.prompts or [None] * len(requests)
    contexts = contexts[: config.contexts]
    every = [edit_segments(model, r, contexts, p) for r, p in zip(requests, prompts, strict=True)]
    kept = [sum(len(s.tokens) - s.subject for s in segments) for segments in every]
    groups = [list(group) for group in variant.groups or [[i] for i in range(len(requests))]]
    widest = [max(kept[i] for i in group) for group in groups]
    results: list[TargetValue | None] = [None] * len(requests)
    order = sorted(range(len(groups)), key=lambda g: (-widest[g], groups[g][0]))
    batch: list[list[int]] = []
    finished = rows = 0
    for place, index in enumerate(order):
        batch.append(groups[index])
        rows += len(groups[index])
        following = groups[order[place + 1]] if place + 1 < len(order) else None
        if following is None or (rows + len(following)) * widest[order[place + 1 - len(batch)]] > config.batch_tokens:
            edits = [every[i] for group in batch for i in group]
            problem = problem_of(model, edits, layer, config, space, variant)
            with multiplying(problem.packed):
                values = _minimize(problem, config, [len(g) for g in batch])
            for group, value in zip(batch, values, strict=True):
                for i in group:
                    results[i] = value
            finished += rows
            batch, rows = [], 0
            if progress is not None:
                progress(finished)
    return [value for value in results if value is not None]


def problem_of(
    model: EditableModel,
    edits: Sequence[list[Segment]],
    layer: int,
    config: ValueConfig,
    space: Literal["block", "mlp"],
    variant: Variant,
) -> Problem:
    kind = LayersProblem if variant.layers else JointProblem if variant.joint else Problem
    problem = kind(model, edits, layer, config, space, variant)
    if config.kp_factor:
        if variant.layers or variant.joint:
            raise UserError(
                "editor.values.kp_factor is for methods that find one change, of one layer's state or output"
            )
        problem.protected = protected_states(model, config.kp_subjects, layer, in_mlp=problem.in_mlp)
    return problem


def _minimize(problem: Problem, config: ValueConfig, sizes: Sequence[int]) -> list[TargetValue]:
    """Adam from zero with a projection after every update and a stop of its own for every group of edits.

    The rows of the problem are the edits, group after group; ``sizes`` counts those of each group. Nothing that is
    given is changed.
    """
    count = len(sizes)
    device = problem.h.device
    first_rows = torch.tensor([sum(sizes[:g]) for g in range(count)], device=device)
    h, size, states = problem.h[first_rows], problem.size[first_rows], problem.states(first_rows)
    units = problem.units(first_rows)
    deltas = [torch.zeros(h.shape[1], device=device, requires_grad=True) for _ in range(count)]
    adam = torch.optim.Adam(deltas, lr=config.lr)
    loss_of, steps_of = [float("nan")] * count, [0] * count
    converged, clamped = [False] * count, [False] * count
    running = list(range(count))
    packed = list(range(count))
    owner = _owners(sizes, packed, device)
    places = torch.tensor(packed, device=device)
    baseline: Tensor | None = None
    for step in range(config.steps):
        rows = torch.stack([deltas[g].detach() for g in packed])
        rows = (rows if units is None else rows * units[places])[owner].requires_grad_()
        # a shared delta is measured by one size
        losses, baseline = problem.losses(rows, h[places][owner], baseline, size[places][owner])
        for g, value in zip(packed, _mean_by(owner, losses.detach()).tolist(), strict=True):
            if g in running:
                loss_of[g], steps_of[g] = value, step + 1
                converged[g] = value < config.stop_loss
        running = [g for g in running if not converged[g]]
        if not running or step == config.steps - 1:
            break
        losses.sum().backward()
        assert rows.grad is not None
        gradients = rows.grad / lengths(rows.grad)[:, None] if problem.variant.unit_gradients else rows.grad
        gradients = _mean_by(owner, gradients)
        for g, gradient in zip(packed, gradients if units is None else gradients * units[places], strict=True):
            deltas[g].grad = None if converged[g] else gradient  # Adam leaves alone what has no gradient
        adam.step()
        with torch.no_grad():
            for g in running:
                delta = deltas[g].detach() if units is None else deltas[g].detach() * units[g]
                allowed, clamped[g] = problem.project(delta, h[g], size[g])
                deltas[g].copy_(allowed if units is None else allowed / units[g])
        if len(running) < _REPACK_SHARE * len(packed):
            left = torch.tensor([packed[int(p)] in running for p in owner], device=device)
            rows_left = left.nonzero().squeeze(1)
            problem, baseline = problem.kept(rows_left), None if baseline is None else baseline[rows_left]
            packed = list(running)
            owner = _owners(sizes, packed, device)
            places = torch.tensor(packed, device=device)
    final = torch.stack([d.detach() for d in deltas])
    final = final if units is None else final * units
    reached = states(final)
    kept = None if problem.protected is None else projection_loss(final, problem.protected).tolist()
    return [
        TargetValue(
            h[g].cpu(),
            final[g].cpu(),
            reached[g].cpu(),
            loss_of[g],
            steps_of[g],
            converged[g],
            clamped[g],
            None if kept is None else kept[g],
        )
        for g in range(count)
    ]


def _owners(sizes: Sequence[int], packed: Sequence[int], device: torch.device) -> Tensor:
    """For every row the place of its group among ``packed``."""
    places = [place for place, g in enumerate(packed) for _ in range(sizes[g])]
    return torch.tensor(places, device=device)


def _mean_by(owner: Tensor, rows: Tensor) -> Tensor:
    """Means of the rows (B, ...) of each group."""
    groups = int(owner.max()) + 1
    if groups == rows.shape[0]:
        return rows
    total = torch.zeros(groups, *rows.shape[1:], dtype=rows.dtype, device=rows.device).index_add(0, owner, rows)
    counts = torch.bincount(owner, minlength=groups).to(rows.dtype)
    return total / counts.reshape(-1, *[1] * (rows.ndim - 1))
