"""`EditableModel` on one rank of a group: whole maps, whole keys and whole outputs, whatever a rank itself holds.

Every rank runs the same calls in the same order. What a caller sees (keys, outputs of maps, weights) is the whole, and
is the same on every rank; what is kept is this rank's slice.

Letters: O = d_out, I = d_in of the edited map, N ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from errata.actors.sharded.held import held
from errata.actors.sharded.layout import Plan
from errata.actors.sharded.rank import Group
from errata.editing.checkpoint.slices import Cut
from errata.editing.covariance import MomentAccumulator
from errata.editing.delta import LayerDelta, apply_delta
from errata.editing.errors import ErrataError
from errata.editing.model.adapter import EditableModel
from errata.editing.state import MakeBase

_STEPS = (1e-3, 1e-4, 1e-5, 1e-2)
"""Lengths of the difference quotient's step, as shares of the input's; a deep model bends within the longer ones."""
_GRADIENT_TOLERANCE = {torch.float32: 0.05, torch.float64: 1e-4}


class ShardedEditableModel(EditableModel):
    """One rank's part of a model behind the interface of the whole."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str, digest: str, group: Group, plan: Plan) -> None:
        self.group, self.plan = group, plan
        super().__init__(model, tokenizer, name=name, digest=digest)
        check_gradients(self, group)

    # --- whole tensors from parts ---

    def cut(self, layer: int) -> Cut:
        """What this rank holds of an edited map's weight."""
        path = self.decoder.parameter_name(layer)
        row = self.plan.splits[path.removesuffix(".weight")] == "row"
        config = self.hf.config
        shape = (
            (config.hidden_size, config.intermediate_size) if row else (config.intermediate_size, config.hidden_size)
        )
        part = self.plan.cut(path, shape, self.group.rank)
        assert part is not None
        return part

    def map_inputs(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """As in the base class; the inputs are gathered from the ranks in every pass."""
        return self._whole(super().map_inputs(layers), {n: self.cut(n) for n in layers if self.cut(n).axis == 1})

    def map_outputs(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """As in the base class; outputs that are divided are gathered."""
        return self._whole(super().map_outputs(layers), {n: self.cut(n) for n in layers if self.cut(n).axis == 0})

    @contextmanager
    def _whole(
        self, catching: AbstractContextManager[dict[int, Tensor]], divided: Mapping[int, Cut]
    ) -> Iterator[dict[int, Tensor]]:
        with catching as caught:
            yield _Gathered(caught, divided, self.group)

    # --- the edited maps ---

    def weight(self, layer: int) -> Tensor:
        """Float32 master (O, I), gathered from the ranks at every call; what is kept is this rank's slice."""
        cut = self.cut(layer)
        return self.group.gather(self._part(layer), cut.sizes, cut.axis)

    def _part(self, layer: int) -> Tensor:
        if layer not in self._masters:
            self._masters[layer] = self.parameter(layer).detach().to(torch.float32, copy=True)
        return self._masters[layer]

    def width(self, layer: int) -> int:
        """d_in of the map, without a look at the weights."""
        return int(self.hf.config.intermediate_size if self.cut(layer).axis == 1 else self.hf.config.hidden_size)

    def set_weight(self, layer: int, weight: Tensor) -> None:
        """Keep this rank's slice of ``weight`` (O, I), float32, and make its cast live.

        Raises:
            ValueError: the shape is not that of the map.
            ErrataError: the ranks were not given the same weight.
        """
        cut, part = self.cut(layer), self._part(layer)
        want = list(part.shape)
        want[cut.axis] = sum(cut.sizes)
        if list(weight.shape) != want:
            raise ValueError(f"layer {layer}: weight of shape {tuple(weight.shape)}, want {tuple(want)}")
        given = weight.detach().to(self.device, torch.float32)
        if not self.group.same(given):
            raise ErrataError(f"layer {layer}: the ranks of {self.name!r} computed different weights")
        self._take(layer, cut.of(given).clone(memory_format=torch.contiguous_format))

    def _take(self, layer: int, part: Tensor) -> None:
        self._masters[layer] = part
        with torch.no_grad():
            self.parameter(layer).copy_(part)

    @contextmanager
    def patched(self, layers: Sequence[int]) -> Iterator[None]:
        """As in the base class, for this rank's slices."""
        saved = self.parts(layers)
        try:
            yield
        finally:
            self.set_parts(saved)

    def moments(self, layer: int, block: int = 256) -> MomentAccumulator:
        """As in the base class; this rank adds up its block of rows (I / N, I) only."""
        width = self.width(layer)
        sizes = self.cut(layer).sizes if self.cut(layer).axis == 1 else self.plan.sizes("", width)
        return BlockMoments(self.group, sizes, block=block, device=self.device)

    def shared_bases(self, make_base: MakeBase) -> MakeBase:
        """The large matrices are kept by one rank each."""
        return held(make_base, self.group)

    def apply_change(self, layer: int, change: LayerDelta) -> None:
        """Add a change to this rank's slice alone; nothing is gathered."""
        cut = self.cut(layer)
        if change.kind == "low_rank":
            assert change.right is not None
            left, right = (change.left, cut.of(change.right)) if cut.axis == 1 else (cut.of(change.left), change.right)
            part = apply_delta(self._part(layer), LayerDelta("low_rank", left, right))
        elif change.kind == "dense":
            part = apply_delta(self._part(layer), LayerDelta("dense", cut.of(change.left)))
        elif cut.axis == 1:
            part = apply_delta(self._part(layer), change)
        else:
            # an orthogonal change mixes the rows, which are on different ranks
            part = cut.of(apply_delta(self.weight(layer), change)).clone()
        self._take(layer, part)

    def parts(self, layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """This rank's slices as they are now, master and live, by layer; copies."""
        return {layer: (self._part(layer).clone(), self.parameter(layer).detach().clone()) for layer in layers}

    def set_parts(self, parts: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Make the slices what ``parts`` returned, byte for byte."""
        with torch.no_grad():
            for layer, (master, live) in parts.items():
                self._masters[layer] = master
                self.parameter(layer).copy_(live)

    def layer_parts(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, whole, one after the other, by its name in a checkpoint; collective."""
        tied = bool(getattr(self.hf.config, "tie_word_embeddings", False))
        for name, parameter in self.hf.named_parameters():
            if tied and name == "lm_head.weight":
                continue
            module = name.rpartition(".")[0]
            split = self.plan.splits.get(module)
            part = parameter.detach()
            if split is None or (split == "row" and name.endswith(".bias")):
                yield name, part
                continue
            axis = 1 if split == "row" else 0
            yield name, self.group.gather(part, self._sizes(module, part, axis), axis)

    def _sizes(self, module: str, part: Tensor, axis: int) -> tuple[int, ...]:
        mine = torch.tensor([part.shape[axis]], device=self.group.device)
        sizes = self.group.gather(mine, [1] * self.group.size, 0)
        return tuple(sizes.tolist())


class _Gathered(dict[int, Tensor]):
    """What hooks have caught, with divided tensors made whole when they are asked for; collective."""

    def __init__(self, caught: dict[int, Tensor], divided: Mapping[int, Cut], group: Group) -> None:
        super().__init__()
        self._caught, self._divided, self._group = caught, divided, group

    def __getitem__(self, number: int) -> Tensor:
        tensor = self._caught[number]
        if number not in self._divided:
            return tensor
        return self._group.gather(tensor.detach(), self._divided[number].sizes, -1)


class BlockMoments(MomentAccumulator):
    """Second moments of which every rank keeps a block of rows; ``total`` puts them together on rank 0.

    Of 28 672 columns in float64 the whole is 6.6 GB; each of eight ranks keeps 0.8 GB.
    """

    def __init__(self, group: Group, sizes: Sequence[int], *, block: int, device: torch.device | str) -> None:
        width = sum(sizes)
        super().__init__(0, block=block, device=device)
        self.group, self.cut = group, Cut(0, tuple(sizes), group.rank)
        self._buffer = torch.zeros(block, width, dtype=torch.float32, device=device)
        self.sum = torch.zeros(sizes[group.rank], width, dtype=torch.float64, device=device)

    def _flush(self) -> None:
        if self._fill:
            block = self._buffer[: self._fill]
            self.sum += (block[:, self.cut.span].T @ block).double()
            self._fill = 0

    def rows(self) -> Tensor:
        """This rank's block of rows (I / N, I), float64."""
        self._flush()
        return self.sum

    def total(self) -> Tensor:
        """The whole sum (I, I) on rank 0, symmetric; the other ranks get an empty tensor."""
        rows = self.rows()
        width = rows.shape[1]
        whole = torch.zeros(width if self.group.rank == 0 else 0, width, dtype=torch.float64)
        at = 0
        for rank, size in enumerate(self.cut.sizes):
            part = rows if rank == self.group.rank else torch.empty(size, width, dtype=rows.dtype, device=rows.device)
            part = self.group.send(part.contiguous(), rank)
            if self.group.rank == 0:
                whole[at : at + size] = part.cpu()
            at += size
        return symmetrize(whole)


def symmetrize(matrix: Tensor, block: int = 1024) -> Tensor:
    """Make A (A + A^T) / 2 in its place, by blocks, for want of room for a second one; an empty one stays empty."""
    for top in range(0, matrix.shape[0], block):
        rows = slice(top, top + block)
        for left in range(0, top + 1, block):
            columns = slice(left, left + block)
            mean = 0.5 * (matrix[rows, columns] + matrix[columns, rows].T)
            matrix[rows, columns], matrix[columns, rows] = mean, mean.T
    return matrix


def check_gradients(model: EditableModel, group: Group) -> None:
    """Compare a gradient through every layer with a difference quotient.

    There are tensor-parallel layers whose outputs are right and whose gradients are not, and target values optimized
    through those look normal.

    Raises:
        ErrataError: the gradient is wrong, or differs between the ranks.
    """
    vocabulary = int(model.hf.config.vocab_size)
    rows = model.rows([[(11 * i + 5) % vocabulary for i in range(6)]])
    positional = model.positional(rows.layout)
    with torch.no_grad():
        start = model.embed(rows)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(vocabulary, generator=generator).to(model.device)

    def value(hidden: Tensor) -> Tensor:
        top = model.run(hidden, 0, model.num_layers, positional)
        return (model.logits(top[:, -1]).float() * weights).sum()

    hidden = start.detach().clone().requires_grad_()
    value(hidden).backward()
    assert hidden.grad is not None
    gradient = hidden.grad.float()
    if not group.same(gradient):
        raise ErrataError(f"model {model.name!r}: its ranks disagree about a gradient; do not optimize through it")
    if model.dtype not in _GRADIENT_TOLERANCE:
        return  # a difference quotient says nothing in half precision
    slope = float(gradient.norm())
    tolerance, best = _GRADIENT_TOLERANCE[model.dtype], math.inf
    for share in _STEPS:
        step = share * float(start.float().norm())
        direction = (gradient / max(slope, 1e-30) * step).to(model.dtype)
        with torch.no_grad():
            rise = float(value(start + direction) - value(start - direction)) / (2 * step)
        best = rise if abs(rise - slope) < abs(best - slope) else best
        if abs(best - slope) <= tolerance * abs(slope):
            return
    raise ErrataError(
        f"model {model.name!r}: a gradient is {slope:.4g}, the nearest difference quotient {best:.4g}; "
        "this version of deepspeed does not give right gradients for it"
    )
