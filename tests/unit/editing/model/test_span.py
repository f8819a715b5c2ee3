"""The written-out pass over the upper layers against autograd through the library's own modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from errata.editing.model import span as span_module
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import Layout
from errata.editing.model.kv import PrefixKV
from errata.editing.model.packed import Plain
from errata.editing.model.span import GatedSpan, span_of

Tiny = Callable[[str], EditableModel]
Past = dict[int, tuple[Tensor, Tensor]]
Setup = tuple[Layout, Layout, Past, Tensor]
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
    past: Past = {
        i: (torch.randn(2, heads, 5, width), torch.randn(2, heads, 5, width)) for i in range(start, model.num_layers)
    }
    return new_layout, past_layout, past, torch.randn(2, 4, model.hidden_size)


def made(
    model: EditableModel, start: int, new: Layout, before: Layout, past: Past, wanted: Tensor | None = None
) -> GatedSpan | None:
    return span_of(model.decoder, start, new, before, past, Plain, wanted)


@pytest.mark.parametrize("read", [((1, 1, 1, 1), (1, 1, 1, 0)), ((0, 1, 0, 1), (0, 1, 0, 0))])
@pytest.mark.parametrize("family", KNOWN)
def test_values_and_gradients_are_those_of_the_library(
    tiny: Tiny, family: str, read: tuple[tuple[int, ...], ...]
) -> None:
    model = tiny(family)
    new, before, past, hidden = setup(model)
    positional = model.positional(new, before.followed_by(new))
    wanted = torch.tensor(read).bool()
    span = made(model, 1, new, before, past, wanted)
    assert span is not None
    seen = wanted[..., None]  # padding is not read, and nothing flows back to it
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
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert float(gradients[1].abs().max()) > 1e-3


def test_the_past_stays_as_it_is(tiny: Tiny) -> None:
    model = tiny("llama")
    new, before, past, hidden = setup(model)
    kept = {i: (keys.clone(), values.clone()) for i, (keys, values) in past.items()}
    span = made(model, 1, new, before, past)
    assert span is not None
    once = span(hidden)
    torch.testing.assert_close(span(hidden), once, rtol=0, atol=0)
    assert all(torch.equal(a, b) for i in past for a, b in zip(past[i], kept[i], strict=True))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_tokens_without_a_past_and_a_past_of_which_nothing_runs(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    _, _, past, hidden = setup(model)
    new = Layout(torch.tensor([[0, 1, 2, 0], [3, 0, 1, 2]]), torch.tensor([[0, 0, 0, 2], [1, 2, 2, 2]]))
    before = Layout(
        torch.tensor([[0, 1, 0, 0, 0], [0, 1, 2, 0, 1]]), torch.tensor([[1, 1, -1, -1, -1], [1, 1, 1, 0, 0]])
    )
    span = made(model, 1, new, before, past)
    assert span is not None
    want = model.run(hidden, 1, model.num_layers, model.positional(new, before.followed_by(new)), PrefixKV(past))
    torch.testing.assert_close(span(hidden), want, rtol=1e-4, atol=1e-5)
    nothing = Layout(before.positions[:, :0], before.segments[:, :0])
    empty = {i: (keys[:, :, :0], values[:, :, :0]) for i, (keys, values) in past.items()}
    span = made(model, 1, new, nothing, empty)
    assert span is not None
    want = model.run(hidden, 1, model.num_layers, model.positional(new), PrefixKV(empty))
    torch.testing.assert_close(span(hidden), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "phi3"])
def test_other_layers_go_the_general_way(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    new, before, past, _ = setup(model)
    assert made(model, 1, new, before, past) is None


def test_a_layer_that_somebody_changed_goes_the_general_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    new, before, past, _ = setup(model)
    attention: nn.Module = model.decoder.attention(1)
    handle = attention.register_forward_hook(lambda module, args, output: None)
    assert made(model, 1, new, before, past) is None, "a hook sees what passes"
    handle.remove()
    assert made(model, 1, new, before, past) is not None
    map_: nn.Module = model.decoder.edited_map(1)
    monkeypatch.setitem(vars(map_), "forward", lambda x: x)
    assert made(model, 1, new, before, past) is None, "a map of its own"
    monkeypatch.undo()
    monkeypatch.setattr(span_module, "MOST_SCORES", 1)
    assert made(model, 1, new, before, past) is None, "too much to keep for the way back"
