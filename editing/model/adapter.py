"""A loaded language model as the rest of the project sees it: passes over parts of it, and its edited maps.

Letters: B rows, T tokens, d hidden size, I = d_in of the edited map, O = d_out (= d in every supported family).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from errata.editing.covariance import MomentAccumulator
from errata.editing.digest import digest_tensors
from errata.editing.errors import ErrataError, UserError
from errata.editing.model.capacity import Capacity
from errata.editing.model.decoder import (
    Decoder,
    Layout,
    Positional,
    decoder_for,
    is_module,
    layer_of,
    plain_layout,
)
from errata.editing.model.flat import flat_pass
from errata.editing.model.installed import InstalledModules
from errata.editing.model.packed import PackedWeights
from errata.editing.model.text import TextCodec
from errata.editing.state import MakeBase

logger = logging.getLogger(__name__)

_CHECK_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6, torch.float16: 0.1, torch.bfloat16: 0.5}


@dataclass
class Rows:
    """Right-padded token rows: ids (B, T) and their layout."""

    ids: Tensor
    layout: Layout
    lengths: Tensor


class EditableModel:
    """One causal language model in evaluation mode, its tokenizer, and float32 masters of the edited maps."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str, digest: str | None = None) -> None:
        self.hf = cast(Any, model.eval().requires_grad_(False))
        self.decoder: Decoder = decoder_for(model)
        self.text = TextCodec(tokenizer)
        self.name = name
        self.family: str = str(self.hf.config.model_type)
        self.num_layers = len(self.decoder.layers)
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.hidden_size: int = int(self.hf.config.hidden_size)
        self.capacity = Capacity.of(self.hf.config, rows=int(self.hf.get_input_embeddings().weight.shape[0]))
        assert self.capacity.rows is not None
        self.text.use_embeddings(self.capacity.rows)
        self.packed = PackedWeights()
        self._masters: dict[int, Tensor] = {}
        self.modules = InstalledModules(self.decoder, self.device, self.dtype)
        self.digest = digest if digest is not None else digest_tensors(dict(model.state_dict()))
        self._check_forward()

    def _check_forward(self) -> None:
        """Compare this package's layer-by-layer pass with the library's own, so that a change there is noticed."""
        ids = [(7 * i + 3) % int(self.capacity.rows or 1) for i in range(6)]
        with torch.no_grad():
            want = self.hf(input_ids=torch.tensor([ids], device=self.device)).logits[0, -1].float()
            rows = self.rows([ids])
            hidden = self.run(self.embed(rows), 0, self.num_layers, self.positional(rows.layout))
            got = self.decoder.logits(hidden[0, -1]).float()
            flat = flat_pass(self.decoder, [self.num_layers - 1], len(ids))
            end_to_end = None if flat is None else flat.run([ids], lambda *_: None, onward=[0])
            written_out = want if end_to_end is None else self.decoder.logits(end_to_end[-1]).float()
        if not bool(torch.isfinite(want).all()):
            bad = [name for name, tensor in self.hf.state_dict().items() if not bool(torch.isfinite(tensor).all())]
            where = f"NaN or infinite numbers in {', '.join(bad[:3])}" if bad else f"it overflows in {self.dtype}"
            raise UserError(f"model {self.name!r}: its pass gives no numbers: {where}")
        scale = want.abs().max().clamp_min(1.0)
        error = float((got - want).abs().max() / scale)
        allowed = _CHECK_TOLERANCE.get(self.dtype, 0.5)
        if not error <= allowed:
            raise ErrataError(
                f"model {self.name!r} ({self.family}): the layer-by-layer pass differs from the library's by "
                f"{error:.2g} of the largest logit; this version of transformers is not supported for this family"
            )
        error = float((written_out - want).abs().max() / scale)
        if not error <= allowed:
            self.decoder.written_out = False
            logger.warning(
                "model %r (%s): the layers written out here differ from the library's by %.2g of the largest logit; "
                "the library's are used, which takes longer", self.name, self.family, error,
            )  # fmt: skip

    # --- passes ---

    def rows(self, sequences: Sequence[Sequence[int]]) -> Rows:
        """Token lists to one right-padded batch on the model's device.

        Raises:
            UserError: a list is longer than the model's positions, or holds a token without an embedding.
        """
        self.require_fits(sequences)
        lengths = torch.tensor([len(s) for s in sequences], device=self.device)
        width = int(lengths.max())
        ids = torch.full((len(sequences), width), self.text.pad_id, dtype=torch.long)
        for row, tokens in enumerate(sequences):
            ids[row, : len(tokens)] = torch.tensor(list(tokens), dtype=torch.long)
        return Rows(ids.to(self.device), plain_layout(lengths, width), lengths)

    def require_fits(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raise UserError unless the model can take in every token list."""
        for tokens in sequences:
            problem = self.capacity.problem(self.text, tokens)
            if problem is not None:
                raise UserError(problem)

    def embed(self, rows: Rows) -> Tensor:
        """Input of layer 0, (B, T, d)."""
        return self.decoder.embed(rows.ids, rows.layout.positions)

    def positional(self, queries: Layout, keys: Layout | None = None) -> Positional:
        """Rotary tables and masks for passes of ``queries`` over ``keys``; made once, used for every layer."""
        probe = torch.empty(1, dtype=self.dtype, device=self.device)
        return self.decoder.positional(probe, queries, keys)

    def run(self, hidden: Tensor, start: int, stop: int, positional: Positional, cache: Any = None) -> Tensor:
        """Layers ``start`` to ``stop - 1`` over hidden states (B, T, d)."""
        with self.modules.read(positional, cache):
            for index in range(start, stop):
                hidden = self.decoder.layer(index, hidden, positional, cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Last layer's output (..., d) to logits (..., V)."""
        return self.decoder.logits(hidden)

    def map_inputs(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Within the context, each pass leaves the input (B, T, I) of the edited maps of ``layers`` in the dict."""
        return _catching({layer: self.decoder.edited_map(layer) for layer in layers}, inputs=True)

    def map_outputs(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Within the context, each pass leaves the output (B, T, O) of the edited maps, bias included, in the dict."""
        return _catching({layer: self.decoder.edited_map(layer) for layer in layers}, inputs=False)

    def attention_outputs(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Within the context, each pass leaves the attention's output (B, T, d) of ``layers`` in the dict."""
        return _catching({layer: self.decoder.attention(layer) for layer in layers}, inputs=False)

    @contextmanager
    def added(self, layer: int, *, attention: Tensor, mapped: Tensor | None = None) -> Iterator[None]:
        """Within the context, (B, T, d) are added to the outputs of a layer's attention and of its edited map."""

        def hook(change: Tensor) -> Any:
            def add(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
                return (output[0] + change, *output[1:]) if isinstance(output, tuple) else output + change

            return add

        handles = [self.decoder.attention(layer).register_forward_hook(hook(attention))]
        if mapped is not None:
            handles.append(self.decoder.edited_map(layer).register_forward_hook(hook(mapped)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def overwritten(self, outputs: Mapping[int, Tensor], where: Tensor) -> Iterator[None]:
        """Within the context, the maps' outputs are ``outputs`` (B, T, O) by layer where ``where`` (B, T, 1) is set."""

        def hook(given: Tensor) -> Any:
            def put(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
                return torch.where(where, given.to(output.dtype), output)

            return put

        handles = [self.decoder.edited_map(n).register_forward_hook(hook(given)) for n, given in outputs.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- the edited maps: a layer's number means its output projection, see ``map_number`` for the others. A slot for a
    # module (``module_number``) has bytes for a weight, uint8, empty ones where there is none ---

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise UserError unless every map exists."""
        for number in layers:
            layer = layer_of(number)
            if not 0 <= layer < self.num_layers:
                raise UserError(f"layer {layer} does not exist in {self.name!r}; allowed: 0..{self.num_layers - 1}")
            self.decoder.map_path(number)

    def parameter(self, layer: int) -> nn.Parameter:
        """The live parameter of the edited map, in the model's own dtype and orientation."""
        weight = self.decoder.edited_map(layer).weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def weight(self, layer: int) -> Tensor:
        """Float32 master (O, I) of the edited map. The caller must not write into it."""
        if is_module(layer):
            return self.modules.get(layer)
        if layer not in self._masters:
            live = self.parameter(layer).detach()
            # a copy: a master that shared the live storage would change when the live weight is patched
            self._masters[layer] = (live.T if self.decoder.transposed else live).to(torch.float32, copy=True)
        return self._masters[layer]

    def width(self, layer: int) -> int:
        """d_in of the edited map, or of the one that a module stands at."""
        return int(self.weight(layer_of(layer) if is_module(layer) else layer).shape[1])

    def moments(self, layer: int, block: int = 256) -> MomentAccumulator:
        """What the keys of a layer are added up in."""
        return MomentAccumulator(self.width(layer), block=block, device=self.device)

    def shared_bases(self, make_base: MakeBase) -> MakeBase:
        """How the fixed matrices of the closed forms are made for this model; here, as they are."""
        return make_base

    def set_weight(self, layer: int, weight: Tensor) -> None:
        """Make ``weight`` (O, I), float32, the master and its cast the live weight.

        Raises:
            ValueError: the shape is not that of the map.
            DamagedFileError: of a slot, the bytes are no module.
        """
        if is_module(layer):
            self.modules.put(layer, weight)
            return
        if weight.shape != self.weight(layer).shape:
            raise ValueError(
                f"layer {layer}: weight of shape {tuple(weight.shape)}, want {tuple(self.weight(layer).shape)}"
            )
        master = weight.detach().to(self.device, torch.float32, copy=True)
        self._masters[layer] = master
        with torch.no_grad():
            self.parameter(layer).copy_(master.T if self.decoder.transposed else master)

    def weights(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Copies of the masters, by layer."""
        return {layer: self.weight(layer).clone() for layer in layers}

    def set_weights(self, weights: Mapping[int, Tensor]) -> None:
        """``set_weight`` for each layer."""
        for layer, weight in weights.items():
            self.set_weight(layer, weight)

    @contextmanager
    def patched(self, layers: Sequence[int]) -> Iterator[None]:
        """Whatever is written to the maps of ``layers`` inside is taken back at the end, byte for byte."""
        slots = {layer: self.modules.get(layer) for layer in layers if is_module(layer)}
        layers = [layer for layer in layers if layer not in slots]
        saved_masters = {layer: self.weight(layer) for layer in layers}
        saved_live = {layer: self.parameter(layer).detach().clone() for layer in layers}
        try:
            yield
        finally:
            with torch.no_grad():
                for layer in layers:
                    self._masters[layer] = saved_masters[layer]
                    self.parameter(layer).copy_(saved_live[layer])
            for number, packed in slots.items():
                if self.modules.get(number) is not packed:
                    self.modules.put(number, packed)


@contextmanager
def _catching(modules: Mapping[int, nn.Module], *, inputs: bool) -> Iterator[dict[int, Tensor]]:
    """Hooks that leave what goes into the modules, or comes out of them, in the dict; gone at the end."""
    caught: dict[int, Tensor] = {}
    handles = []
    for number, module in modules.items():

        def before(_: nn.Module, args: tuple[Any, ...], number: int = number) -> None:
            caught[number] = args[0]

        def after(_: nn.Module, __: tuple[Any, ...], output: Any, number: int = number) -> None:
            caught[number] = output[0] if isinstance(output, tuple) else output

        handles.append(module.register_forward_pre_hook(before) if inputs else module.register_forward_hook(after))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
