"""The written-out pass over the upper layers against autograd through the library's own modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from editing.model import span as span_module
from editing.model.adapter import EditableModel
from editing.model.decoder import Layout, Positional
from editing.model.kv import PrefixKV
from editing.model.span import GatedSpan, span_of

Tiny = Callable[[str], EditableModel]
Setup = tuple[Positional, dict[int, tuple[Tensor, Tensor]], Tensor]
KNOWN = ("llama", "mistral", "qwen2", "qwen3")


def setup(model: EditableModel, start: int = 1) -> Setup:
    """Two rows of two segments each behind a past, with padding in the second row."""
    torch.manual_seed(0)
    config = model.hf.config
    heads, width = config.num_key_value_heads, model.decoder.layers[0].self_attn.head_dim  # type: ignore[union-attr]
    past_layout = Layout(
        torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, -1, -1]])
    )
    new_layout = Layout(torch.tensor([[3, 4, 2, 3], [2, 3, 1, 0]]), torch.tensor([[0, 0, 1, 1], [0, 0, 1, -1]]))
    past = {
        i: (torch.randn(2, heads, 5, width), torch.randn(2, heads, 5, width)) for i in range(start, model.num_layers)
    }
    return model.positional(new_layout, past_layout.followed_by(new_layout)), past, torch.randn(2, 4, model.hidden_size)


def made(
    model: EditableModel, start: int, positional: Positional, past: dict[int, tuple[Tensor, Tensor]]
) -> GatedSpan | None:
    return span_of(model.decoder, start, positional, past, lambda module: module.forward)


@pytest.mark.parametrize("family", KNOWN)
def test_values_and_gradients_are_those_of_the_library(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    positional, past, hidden = setup(model)
    span = made(model, 1, positional, past)
    assert span is not None
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])[..., None]  # padding is not read, and nothing flows back to it
    weights = torch.randn_like(hidden) * seen
    outputs, gradients = [], []
    for run in (span, lambda x: model.run(x, 1, model.num_layers, positional, PrefixKV(past))):
        x = hidden.clone().requires_grad_()
        out = run(x)
        (out * weights).sum().backward()
        outputs.append(out.detach() * seen)
        assert x.grad is not None
        gradients.append(x.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0] * seen, gradients[1] * seen, rtol=1e-4, atol=1e-5)
    assert float(gradients[1].abs().max()) > 1e-3


def test_the_past_stays_and_can_be_taken_out_again(tiny: Tiny) -> None:
    model = tiny("llama")
    positional, past, hidden = setup(model)
    span = made(model, 1, positional, past)
    assert span is not None
    once = span(hidden)
    torch.testing.assert_close(span(hidden), once, rtol=0, atol=0)
    for i, (keys, values) in enumerate(span.past):
        assert torch.equal(keys, past[1 + i][0]) and torch.equal(values, past[1 + i][1])


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "phi3"])
def test_other_layers_go_the_general_way(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    positional, past, _ = setup(model)
    assert made(model, 1, positional, past) is None


def test_a_layer_that_somebody_changed_goes_the_general_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    positional, past, _ = setup(model)
    attention: nn.Module = model.decoder.attention(1)
    handle = attention.register_forward_hook(lambda module, args, output: None)
    assert made(model, 1, positional, past) is None, "a hook sees what passes"
    handle.remove()
    assert made(model, 1, positional, past) is not None
    map_: nn.Module = model.decoder.edited_map(1)
    monkeypatch.setitem(vars(map_), "forward", lambda x: x)
    assert made(model, 1, positional, past) is None, "a map of its own"
    monkeypatch.undo()
    monkeypatch.setattr(span_module, "MOST_SCORES", 1)
    assert made(model, 1, positional, past) is None, "too much to keep for the way back"
