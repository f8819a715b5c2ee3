"""Packed products against plain ones: values, gradients, other numbers of rows, what is kept, nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from errata.editing.model import packed
from errata.editing.model.packed import PackedWeights, Plain, multiplying

packs = pytest.mark.skipif(not packed._library_packs(), reason="this build of torch does not pack weights")


def linear(inputs: int, outputs: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6), (2, 3), (5,), (3, 4, 2), (32,), (33,), (70,)])
def test_values_and_gradients_are_those_of_the_plain_product(bias: bool, shape: tuple[int, ...]) -> None:
    module = linear(24, 40, bias)
    x = torch.randn(*shape, 24, requires_grad=True)
    weights = torch.randn(*shape, 40)
    want = module(x)
    (want_gradient,) = torch.autograd.grad((want * weights).sum(), x)
    found = PackedWeights().of({module: 6})
    assert len(found) == int(packed._library_packs())
    with multiplying(found):
        got = module(x)
        (gradient,) = torch.autograd.grad((got * weights).sum(), x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, want_gradient)
    assert "forward" not in vars(module)


def test_other_modules_stay_as_they_are() -> None:
    half, trained = linear(8, 8, False, torch.bfloat16), linear(8, 8, False).requires_grad_(True)
    plain, many = linear(8, 8, False), linear(8, 8, True)
    assert not PackedWeights().of({half: 3, trained: 3, nn.ReLU(): 3, many: packed.MOST_ROWS + 1})
    assert not PackedWeights(most_bytes=2 * 8 * 8 * 4 - 1).of({plain: 3})


def test_an_error_inside_leaves_nothing_behind() -> None:
    module = linear(8, 8, False)
    with pytest.raises(KeyError), multiplying(PackedWeights().of({module: 2})):
        raise KeyError("x")
    assert "forward" not in vars(module)


@packs
def test_a_weight_is_packed_once_for_all_numbers_of_rows() -> None:
    module, kept = linear(8, 8, False), PackedWeights()
    assert kept.of({module: 33}, make=False) == {}
    first = kept.of({module: 30})[module]
    for rows in (1, 32, 33, 64):
        assert kept.of({module: rows}) == {module: first}
    assert kept.bytes == 2 * 8 * 8 * 4, "both ways"


@packs
@pytest.mark.parametrize("rows", [1, 7, 31, 64])
def test_where_the_librarys_order_is_another_one_the_plain_product_is_taken(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    multiplied = packed._multiplied
    monkeypatch.setattr(packed, "_multiplied", lambda x, *rest: multiplied(x, *rest).flip(-1))
    module = linear(24, 40, True)
    x, gradient = torch.randn(rows, 24), torch.randn(rows, 40)
    ours = PackedWeights().of({module: rows})[module]
    torch.testing.assert_close(ours.forward(x), module(x))
    torch.testing.assert_close(ours.backward(gradient), gradient @ module.weight)


@pytest.mark.parametrize("rows", [5, 70])
@pytest.mark.parametrize("biases", [(False, False, False), (True, False, True)])
def test_maps_of_one_input_multiply_as_one(rows: int, biases: tuple[bool, ...]) -> None:
    maps = [linear(24, outputs, bias) for outputs, bias in zip((40, 8, 8), biases, strict=True)]
    x, gradient = torch.randn(2, rows // 2, 24), torch.randn(2, rows // 2, 56)
    want = torch.cat([module(x) for module in maps], dim=-1)
    want_back = gradient @ torch.cat([module.weight for module in maps])
    found = [Plain(maps)]
    if packed._library_packs():
        kept = PackedWeights().joined(maps, 5)
        assert kept is not None
        found.append(kept)
    for product in found:
        torch.testing.assert_close(product.forward(x), want)
        torch.testing.assert_close(product.backward(gradient), want_back)


@packs
def test_one_of_several_that_was_written_to_packs_all_anew() -> None:
    maps, kept = [linear(8, 8, False), linear(8, 16, False)], PackedWeights()
    first = kept.joined(maps, 8)
    assert first is not None and kept.joined(maps, 8) is first and kept.joined(maps[:1], 8, make=False) is None
    with torch.no_grad():
        maps[1].weight.mul_(2.0)
    again = kept.joined(maps, 8)
    assert again is not None and again is not first
    x = torch.randn(3, 8)
    torch.testing.assert_close(again.forward(x), torch.cat([module(x) for module in maps], dim=-1))
    assert kept.bytes == 2 * 8 * 24 * 4


def test_a_map_that_cannot_be_packed_leaves_the_others_alone() -> None:
    maps = [linear(8, 8, False), linear(8, 8, False, torch.bfloat16)]
    assert PackedWeights().joined(maps, 3) is None and PackedWeights().joined(maps[:1], 65) is None


@packs
def test_a_weight_that_was_written_to_is_packed_anew() -> None:
    module, kept = linear(8, 8, False), PackedWeights()
    x = torch.randn(8, 8)
    first = kept.of({module: 8})[module]
    with torch.no_grad():
        module.weight.copy_(torch.randn(8, 8))
    assert not first.current
    again = kept.of({module: 8})[module]
    torch.testing.assert_close(again.forward(x), module(x))
    assert kept.bytes == 2 * 8 * 8 * 4, "the old one is gone"


@packs
def test_beyond_its_bytes_nothing_more_is_packed_and_nothing_makes_room() -> None:
    one, two, three = (linear(8, 8, False) for _ in range(3))
    kept = PackedWeights(most_bytes=2 * 2 * 8 * 8 * 4)
    assert set(kept.of({one: 8, two: 8, three: 8})) == {one, two}
    assert set(kept.of({three: 8, one: 8})) == {one}
    assert kept.bytes == kept.most_bytes
