"""The pass over pieces end to end against the library's own pass over each piece alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import map_number
from errata.editing.model.flat import flat_pass

Tiny = Callable[[str], EditableModel]
PIECES = [[5, 9, 2, 7, 7, 1], [3], [8, 8, 4, 6]]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_keys_are_those_of_each_piece_alone(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    last = model.num_layers - 1
    maps = [0, last, map_number(last, "gate_proj"), map_number(0, "up_proj")]
    flat = flat_pass(model.decoder, maps, longest=6)
    assert flat is not None
    got: dict[int, torch.Tensor] = {}
    hidden = flat.run(PIECES, lambda number, keys: got.update({number: keys.clone()}), onward=[2, 0])
    assert set(got) == set(maps)
    for i, states in zip([2, 0], hidden.split([4, 6]), strict=True):
        with torch.no_grad():
            want = model.hf(input_ids=torch.tensor([PIECES[i]])).logits[0]
        torch.testing.assert_close(model.logits(states), want, rtol=1e-4, atol=1e-5)
    at = 0
    for piece in PIECES:
        with model.map_inputs(maps) as inputs, torch.no_grad():
            model.hf(input_ids=torch.tensor([piece]))
        for number in maps:
            torch.testing.assert_close(got[number][at : at + len(piece)], inputs[number][0], rtol=1e-4, atol=1e-5)
        at += len(piece)


def test_the_pass_ends_at_the_last_key(llama: EditableModel) -> None:
    gate = map_number(1, "gate_proj")
    flat = flat_pass(llama.decoder, [gate], longest=6)
    assert flat is not None
    ran: list[str] = []
    mlp = llama.decoder.layers[1].get_submodule("mlp")
    # a hook would send the pass the general way, so they are put on after it was chosen
    hooks = [
        mlp.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("gate_proj", "down_proj")
    ]
    try:
        flat.run(PIECES, lambda number, keys: ran.append(str(number)))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [str(gate)], "neither the map whose input is read nor the next runs"


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "phi3", "gpt2", "gptj", "gpt_neox"])
def test_other_layers_have_no_such_pass(tiny: Tiny, family: str) -> None:
    assert flat_pass(tiny(family).decoder, [0], longest=6) is None


def test_a_window_shorter_than_a_piece_has_none(tiny: Tiny) -> None:
    model = tiny("mistral")
    window = model.decoder.window(model.decoder.layer_kind(0))
    assert window is not None
    assert flat_pass(model.decoder, [0], longest=window) is not None
    assert flat_pass(model.decoder, [0], longest=window + 1) is None
    assert flat_pass(model.decoder, [], longest=1) is None


def test_a_head_that_turns_in_part_goes_the_general_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny("llama").decoder
    rotary = decoder.rotary
    monkeypatch.setattr(decoder, "rotary", lambda *args: tuple(table[..., :-2] for table in rotary(*args)))
    assert flat_pass(decoder, [0], longest=6) is None
