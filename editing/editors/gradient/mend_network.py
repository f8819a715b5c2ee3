"""The network of MEND: gradients of maps, as their factors, in; the factors of an edit, out.

Mitchell et al. 2022, arXiv:2110.11309, sec. 3.2. The gradient of a linear map's weight is ``sum_t delta_t x_t^T`` over
tokens. Both factors, normalized by running statistics of their map, go through one network, which maps of one shape
share; each map has a scale and a shift of its own in every layer of it, and a learned rate. It begins as the identity.

Letters: t tokens, I = d_in, O = d_out, d = I + O, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.editing.digest import digest_json, digest_tensors
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import DamagedFileError
from errata.editing.model.adapter import EditableModel
from errata.editing.tensors import read_tensors, write_tensors

_FORMAT = "errata-mend-1"
_LAYERS = 2
"""One hidden layer, and the one that puts out."""
Factors = tuple[Tensor, Tensor]
"""Inputs x (t, I) of a map and gradients delta (t, O) of its outputs, float32."""


class MendNetwork(nn.Module):
    """One network a shape, and what belongs to each map; all maps by their numbers.

    Args:
        shapes: (O, I) of every map.
        rank: of the layers' matrices, at most; the paper's is 1 920.
        lr: what each map's learned rate begins with.
        normalize: divide by running statistics; false is for checks.
    """

    def __init__(
        self, shapes: Mapping[int, tuple[int, int]], *, rank: int, lr: float, normalize: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.shapes, self.rank, self.normalize = dict(shapes), rank, normalize
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.own, self.rates = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, size in sorted({_name(shape): sum(shape) for shape in shapes.values()}.items()):
            inner = min(rank, size)
            for layer in range(_LAYERS):
                # a product of zero: with what is added to it, each layer begins as the identity
                self.weights[f"{name}_{layer}_u"] = nn.Parameter(torch.zeros(size, inner))
                self.weights[f"{name}_{layer}_v"] = nn.Parameter(torch.randn(inner, size, generator=generator))
                self.weights[f"{name}_{layer}_bias"] = nn.Parameter(torch.zeros(size))
        for number, shape in sorted(shapes.items()):
            for layer in range(_LAYERS):
                self.own[f"{number}_{layer}_scale"] = nn.Parameter(torch.ones(sum(shape)))
                self.own[f"{number}_{layer}_shift"] = nn.Parameter(torch.zeros(sum(shape)))
            self.rates[str(number)] = nn.Parameter(torch.tensor(lr))
            for kind in ("mean", "square"):
                self.register_buffer(f"{kind}_{number}", torch.zeros(sum(shape)))
            self.register_buffer(f"count_{number}", torch.zeros(()))

    def watch(self, number: int, factors: Factors) -> None:
        """Take factors into the running mean and sum of squared deviations of their map (Welford)."""
        rows = torch.cat(factors, dim=1)
        mean, square, count = (getattr(self, f"{kind}_{number}") for kind in ("mean", "square", "count"))
        for row in rows:
            count += 1
            apart = row - mean
            mean += apart / count
            square += apart * (row - mean)

    def forward(self, number: int, factors: Factors) -> Factors:
        """The factors (t, I) and (t, O) of the edit of one map."""
        x = torch.cat(factors, dim=1)
        count = getattr(self, f"count_{number}")
        if self.normalize and float(count) > 1:
            deviation = (getattr(self, f"square_{number}") / (count - 1)).sqrt()
            x = (x - getattr(self, f"mean_{number}")) / (deviation + 1e-7)
        name = _name(self.shapes[number])
        for layer in range(_LAYERS):
            u, v = self.weights[f"{name}_{layer}_u"], self.weights[f"{name}_{layer}_v"]
            inner = (x @ v.T) @ u.T + self.weights[f"{name}_{layer}_bias"]
            inner = inner * self.own[f"{number}_{layer}_scale"] + self.own[f"{number}_{layer}_shift"]
            x = x + (inner.clamp_min(0) if layer < _LAYERS - 1 else inner)
        size, width = self.shapes[number]
        first, second = x.split([width, size], dim=1)
        return first, second

    def change(self, number: int, factors: Factors) -> tuple[Tensor, Tensor]:
        """Left (O, t) and right (t, I) factors of what W changes by: ``W <- W - lr sum_t delta~ x~^T``."""
        x, delta = self(number, factors)
        return -self.rates[str(number)] * delta.T, x

    # --- as a file ---

    def about(self) -> dict[str, Any]:
        """What the network is made with, as plain data."""
        shapes = {str(number): list(shape) for number, shape in sorted(self.shapes.items())}
        return {"shapes": shapes, "rank": self.rank, "normalize": self.normalize}

    def save(
        self, path: Path, more: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> str:
        """Write the network, with what its training goes on from beside it; its digest.

        Args:
            more: plain data beside it.
            tensors: of the training, by names of their own.
        """
        own = {f"network.{name}": value.detach().clone().contiguous() for name, value in self.state_dict().items()}
        beside = {f"training.{name}": value.clone().contiguous() for name, value in (tensors or {}).items()}
        about = json.dumps({"network": self.about(), **(more or {})}, sort_keys=True)
        write_tensors(path, {**own, **beside}, _FORMAT, {"about": about})
        return network_digest(self)


def load_network(path: Path) -> tuple[MendNetwork, dict[str, Any], dict[str, Tensor]]:
    """A stored network, the plain data beside it, and the tensors of its training.

    Raises:
        DamagedFileError: it is no such file.
    """
    metadata, tensors = read_tensors(path, _FORMAT, "trained editor")
    try:
        about = json.loads(metadata["about"])
        shapes = {int(number): (int(o), int(i)) for number, (o, i) in about["network"]["shapes"].items()}
        network = MendNetwork(shapes, rank=about["network"]["rank"], lr=0.0, normalize=about["network"]["normalize"])
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "training": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        network.load_state_dict(parts["network"])
    except (LookupError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"trained editor {path.name!r} cannot be read: {error}") from error
    return network, about, parts["training"]


def network_digest(network: MendNetwork) -> str:
    """Names a network by what it computes: its shapes and numbers, without its training."""
    return digest_json({"about": network.about(), "tensors": digest_tensors(dict(network.state_dict()))})


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def factors_of(model: EditableModel, rows: TargetRows, numbers: Sequence[int]) -> tuple[dict[int, Factors], Tensor]:
    """Factors of the gradient of the mean loss at every map, by number, and the losses (m,).

    Tokens whose input or gradient is zero are left out.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for number in numbers:

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor, number: int = number) -> None:
            inputs[number] = args[0].detach()
            output.retain_grad()
            outputs[number] = output

        handles.append(model.decoder.edited_map(number).register_forward_hook(hook))
    hidden = rows.hidden
    try:
        with torch.enable_grad():
            rows.hidden = hidden.detach().requires_grad_()  # the parameters are frozen: this makes the graph
            losses = rows.losses()
            losses.mean().backward()
    finally:
        rows.hidden = hidden
        for handle in handles:
            handle.remove()
    found = {}
    for number in numbers:
        gradient = outputs[number].grad
        assert gradient is not None
        x, delta = inputs[number].flatten(0, 1).float(), gradient.flatten(0, 1).float()
        kept = (x != 0).any(dim=1) & (delta != 0).any(dim=1)
        found[number] = (x[kept], delta[kept])
    return found, losses.detach()


@contextmanager
def changed_by(model: EditableModel, changes: Mapping[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the context the maps are ``W + left @ right``, for factors by number; gradients reach the factors."""
    handles = []
    for number, (left, right) in changes.items():

        def hook(
            _: nn.Module, args: tuple[Any, ...], output: Tensor, left: Tensor = left, right: Tensor = right
        ) -> Tensor:
            return output + ((args[0].to(right.dtype) @ right.T) @ left.T).to(output.dtype)

        handles.append(model.decoder.edited_map(number).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
