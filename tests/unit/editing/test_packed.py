"""Packed products against plain ones: values, gradients, other numbers of rows, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editing.model import packed
from editing.model.packed import packed_products


def linear(inputs: int, outputs: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6), (2, 3), (5,), (3, 4, 2)])
def test_values_and_gradients_are_those_of_the_plain_product(bias: bool, shape: tuple[int, ...]) -> None:
    module = linear(24, 40, bias)
    x = torch.randn(*shape, 24, requires_grad=True)
    weights = torch.randn(*shape, 40)
    want = module(x)
    (want_gradient,) = torch.autograd.grad((want * weights).sum(), x)
    with packed_products({module: 6}) as count:
        assert count == int(packed._library_packs())
        got = module(x)
        (gradient,) = torch.autograd.grad((got * weights).sum(), x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, want_gradient)
    assert "forward" not in vars(module)


def test_other_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    half, trained = linear(8, 8, False, torch.bfloat16), linear(8, 8, False).requires_grad_(True)
    plain, many = linear(8, 8, False), linear(8, 8, True)
    with packed_products({half: 3, trained: 3, nn.ReLU(): 3, many: packed.MOST_ROWS + 1}) as count:
        assert count == 0
    monkeypatch.setattr(packed, "MOST_BYTES", 8 * 8 * 4 - 1)
    with packed_products({plain: 3}) as count:
        assert count == 0


def test_an_error_inside_leaves_nothing_behind() -> None:
    module = linear(8, 8, False)
    with pytest.raises(KeyError), packed_products({module: 2}):
        raise KeyError("x")
    assert "forward" not in vars(module)
