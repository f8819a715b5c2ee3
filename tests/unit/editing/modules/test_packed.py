"""A module as bytes: equal for equal contents, changed row by row, and refused where they are damaged."""

from __future__ import annotations

import pytest
import torch

from errata.editing.delta import LayerDelta, WeightDelta, apply_delta, weight_norm
from errata.editing.errors import DamagedFileError
from errata.editing.modules.kinds import make_module
from errata.editing.modules.packed import EMPTY, Content, after, norm_of, replacing, unpack


def rows(*numbers: float) -> torch.Tensor:
    return torch.tensor([[n, n] for n in numbers], dtype=torch.float32)


def added(*numbers: float, drop: tuple[int, ...] = ()) -> torch.Tensor:
    tensors = {"drop": torch.tensor(drop, dtype=torch.long), "append.keys": rows(*numbers)}
    return Content("codebook", 3, {"eps": 1.0, "a": [1, 2]}, tensors, "rows").pack()


def test_equal_contents_have_equal_bytes_and_come_back_as_they_were() -> None:
    one = Content("codebook", 3, {"b": 1, "a": 2}, {"keys": rows(1, 2), "owners": torch.tensor([5, 6])})
    other = Content("codebook", 3, {"a": 2, "b": 1}, {"owners": torch.tensor([5, 6]), "keys": rows(1, 2)})
    assert torch.equal(one.pack(), other.pack()) and one.pack().dtype == torch.uint8
    back = unpack(one.pack())
    assert (back.kind, back.layer, back.rule, back.form) == ("codebook", 3, {"a": 2, "b": 1}, "whole")
    assert torch.equal(back.tensors["keys"], rows(1, 2)) and back.tensors["owners"].dtype == torch.int64
    assert norm_of(one.pack()) == pytest.approx(10**0.5) == weight_norm(one.pack()) and weight_norm(EMPTY) == 0


def test_a_change_by_rows_goes_on_from_what_is_there() -> None:
    slot = after(after(EMPTY, added(1, 2, 3)), added(4, drop=(0, 2)))
    assert torch.equal(unpack(slot).tensors["keys"], rows(2, 4)) and unpack(slot).form == "whole"
    whole = Content("codebook", 3, {}, {"keys": rows(9)}).pack()
    assert torch.equal(after(slot, whole), whole)
    assert torch.equal(after(whole, replacing(slot, 3)), replacing(slot, 3))
    assert after(slot, replacing(EMPTY, 3)).numel() == 0


def test_a_change_does_not_go_on_from_another_module() -> None:
    other = Content("gated", 3, {}, {"keys": rows(1)}).pack()
    with pytest.raises(DamagedFileError, match="a codebook at layer 3 goes on from a gated at layer 3"):
        after(other, added(1))


@pytest.mark.parametrize("length", [0, 4, 30, 90])
def test_bytes_that_are_no_module_are_refused(length: int) -> None:
    cut = added(1)[:length] if length else torch.zeros(40, dtype=torch.uint8)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        unpack(cut)


def test_a_kind_of_a_later_release_is_named() -> None:
    with pytest.raises(DamagedFileError, match="kind 'oracle' is not known; known: codebook, gated, pieces, side"):
        make_module(Content("oracle", 0, {}), torch.device("cpu"), torch.float32)


def test_a_delta_holds_a_module_beside_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    delta = WeightDelta({9003: LayerDelta("module", added(1)), 1: LayerDelta("dense", torch.ones(2, 2))}, "grace")
    delta.save(tmp_path / "delta.safetensors")
    back = WeightDelta.load(tmp_path / "delta.safetensors")
    assert back.digest == delta.digest and torch.equal(back.layers[9003].left, added(1))
    assert torch.equal(apply_delta(EMPTY, back.layers[9003]), after(EMPTY, added(1)))
    with pytest.raises(ValueError, match=r"factors are torch\.uint8"):
        LayerDelta("module", torch.ones(3))
