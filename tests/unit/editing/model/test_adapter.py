"""Every family's adapter against the library's own pass, and the contract of the edited weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_tensors
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.errors import ErrataError, UserError
from errata.editing.model import decoder as decoder_module
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import FAMILIES, Decoder, _cache_argument
from errata.editing.model.flat import flat_pass
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig
from tests.helpers.tiny import tiny_hf, tiny_model, tiny_tokenizer
from tests.unit.helpers import plain

Tiny = Callable[[str], EditableModel]


def test_the_families_are_the_promised_ones() -> None:
    assert set(FAMILIES) == set(plain.FAMILIES)


@pytest.mark.parametrize("family", plain.FAMILIES)
def test_padded_layer_by_layer_pass_equals_the_library(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    generator = torch.Generator().manual_seed(1)
    # rows longer than the sliding window of 6, and a row of one token
    sequences = [torch.randint(1, 380, (n,), generator=generator).tolist() for n in (3, 14, 9, 1)]
    with torch.no_grad():
        rows = model.rows(sequences)
        hidden = model.run(model.embed(rows), 0, model.num_layers, model.positional(rows.layout))
        got = model.logits(hidden)
        for row, ids in enumerate(sequences):
            want = plain.logits(model, ids)
            error = (got[row, : len(ids)] - want).abs().max() / want.abs().max()
            assert error < 2e-5, f"row {row}: {error:.2g}"


class OfNow(nn.Module):
    def forward(self, hidden_states: object, attention_mask: object = None, cache: object = None) -> None: ...


class OfBefore(nn.Module):
    def forward(self, hidden_states: object, past_key_values: object = None, **more: object) -> None: ...


class OfLongAgo(nn.Module):
    def forward(self, hidden_states: object, layer_past: object = None, **more: object) -> None: ...


@pytest.mark.parametrize(
    ("layer", "name"), [(OfNow, "cache"), (OfBefore, "past_key_values"), (OfLongAgo, "layer_past")]
)
def test_a_layer_is_given_its_store_under_the_name_it_has_for_it(layer: type[nn.Module], name: str) -> None:
    """transformers 5.24 renamed it, and every first edit began with a warning of the old name."""
    assert _cache_argument(layer) == name


@pytest.mark.parametrize("family", plain.FAMILIES)
def test_parameter_name_and_orientation_of_the_edited_map(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    stored = model.hf.state_dict()[model.decoder.parameter_name(1)]
    weight = model.weight(1)
    assert weight.dtype == torch.float32
    assert weight.shape == (32, 48)  # (d_out, d_in), whatever the checkpoint's orientation
    assert torch.equal(stored.T if family == "gpt2" else stored, weight)
    assert model.parameter(1) is plain.edited_map(model, 1).weight


@pytest.mark.parametrize("family", plain.FAMILIES)
def test_a_weight_change_moves_the_output_by_change_times_key(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    ids = [5, 77, 130, 9, 201]
    site = plain.edited_map(model, 1)
    keys, before = plain.read(model, site, ids, "in"), plain.read(model, site, ids)
    change = 0.1 * torch.randn(32, 48, generator=torch.Generator().manual_seed(3))
    model.set_weight(1, model.weight(1) + change)
    after = plain.read(model, site, ids)
    # a bias, where there is one, cancels
    torch.testing.assert_close(after - before, keys @ change.T, rtol=1e-4, atol=1e-5)


def _edit(
    model: EditableModel, config: MemitConfig | AlphaEditConfig, requests: list[EditRequest]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one batch; targets (m, d) and the states (m, d) that the library's pass reaches at the subjects."""
    layers = config.layers
    covariance = KeyCovariance.identity({layer: model.weight(layer).shape[1] for layer in layers})
    session = EditSession(model, make_editor(config), covariance, ("",))
    receipt = session.apply(EditBatch(sequence=1, requests=tuple(requests)))
    assert all(r.applied for r in receipt.results) and receipt.targets is not None
    reached = []
    for request in requests:
        ids, at = plain.subject_position(model, "", request.prompt, request.subject)
        reached.append(plain.read(model, plain.block(model, layers[-1]), ids)[at])
    return receipt.targets, torch.stack(reached)


def _values(post_norm: str = "exact", clamp: float | None = 2.0) -> ValueConfig:
    return ValueConfig(lr=0.3, steps=6, clamp=clamp, weight_decay=0.0, post_norm=post_norm)  # type: ignore[arg-type]


def _states(model: EditableModel, requests: list[EditRequest], layer: int) -> torch.Tensor:
    rows = []
    for request in requests:
        ids, at = plain.subject_position(model, "", request.prompt, request.subject)
        rows.append(plain.read(model, plain.block(model, layer), ids)[at])
    return torch.stack(rows)


@pytest.mark.parametrize(
    "family, layers",
    # behind a norm every edited map has a target of its own: test_post_norm_targets.py
    [(family, layers) for family in plain.FAMILIES if family not in plain.POST_NORM for layers in ((1,), (0, 1))],
)
def test_an_edit_reaches_its_target_state(
    tiny: Tiny, requests: list[EditRequest], family: str, layers: tuple[int, ...]
) -> None:
    model, chosen = tiny(family), requests[:2]
    before = _states(model, chosen, 1)
    targets, reached = _edit(model, MemitConfig(layers=layers, cov_weight=1e-6, values=_values()), chosen)
    moved = (targets - before).norm(dim=1)
    assert bool((moved > 0.05 * before.norm(dim=1)).all()), "the edit asks for too little to show anything"
    assert bool(((reached - targets).norm(dim=1) < 1e-3 * moved).all())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_an_unhindered_alphaedit_reaches_its_target_state(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model, chosen = tiny(family), requests[:2]
    before = _states(model, chosen, 1)
    config = AlphaEditConfig(layers=(1,), tau=2.0, l2=1e-6, values=_values())  # C = I: everything is below tau
    targets, reached = _edit(model, config, chosen)
    assert bool(((reached - targets).norm(dim=1) < 1e-3 * (targets - before).norm(dim=1)).all())


@pytest.mark.parametrize("family", plain.POST_NORM)
def test_the_published_form_misses_its_target_behind_a_norm(
    tiny: Tiny, requests: list[EditRequest], family: str
) -> None:
    """Why ``post_norm: exact`` exists: the norm turns and rescales what is added to the map's output."""
    model, chosen = tiny(family), requests[:2]
    before = _states(model, chosen, 1)
    config = MemitConfig(layers=(1,), cov_weight=1e-6, values=_values("published", clamp=0.75))
    targets, reached = _edit(model, config, chosen)
    assert bool(((reached - targets).norm(dim=1) > 0.1 * (targets - before).norm(dim=1)).all())


def test_an_unknown_model_type_is_refused_with_the_list() -> None:
    config = AutoConfig.for_model(
        "opt", vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        max_position_embeddings=32, word_embed_proj_dim=16,
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        EditableModel(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), name="x")
    assert "'opt'" in str(caught.value)
    assert all(family in str(caught.value) for family in plain.FAMILIES)


class _WithoutNorm(Decoder):
    def _final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class _WrongPositions(Decoder):
    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor, kind: str) -> object:
        return super().rotary(hidden, 2 * positions, kind)


class _SkipsALayer(Decoder):
    def layer(self, index: int, hidden: torch.Tensor, positional: object, cache: object = None) -> torch.Tensor:
        return hidden if index == 0 else super().layer(index, hidden, positional, cache)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [_WithoutNorm, _WrongPositions, _SkipsALayer])
def test_loading_notices_a_family_whose_pass_differs(monkeypatch: pytest.MonkeyPatch, broken: type[Decoder]) -> None:
    hf = tiny_hf("llama")
    EditableModel(hf, tiny_tokenizer(), name="sound")
    monkeypatch.setitem(decoder_module.FAMILIES, "llama", broken)
    with pytest.raises(ErrataError, match=r"'unsound' \(llama\): the layer-by-layer pass differs"):
        EditableModel(hf, tiny_tokenizer(), name="unsound")


def test_a_library_whose_layers_compute_something_else_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hf = tiny_hf("llama")
    assert flat_pass(EditableModel(hf, tiny_tokenizer(), name="sound").decoder, [0], 4) is not None
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 1.5 * forward(self, x))
    model = EditableModel(hf, tiny_tokenizer(), name="newer")
    assert "'newer' (llama): the layers written out here differ from the library's" in caplog.text
    assert flat_pass(model.decoder, [0], 4) is None


def _bytes(model: EditableModel) -> str:
    return digest_tensors(dict(model.hf.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patched_takes_everything_back_byte_for_byte(family: str, dtype: torch.dtype) -> None:
    model = EditableModel(tiny_hf(family, layers=2).to(dtype), tiny_tokenizer(), name="x")
    # a master that is not representable in the live dtype
    model.set_weight(0, model.weight(0) * 1.001)
    before, masters = _bytes(model), model.weights([0, 1])
    with pytest.raises(RuntimeError, match="inside"), model.patched([0, 1]):
        model.set_weight(0, model.weight(0) + 1.0)
        model.set_weight(1, model.weight(1) * 0.5)
        assert _bytes(model) != before
        raise RuntimeError("inside")
    assert _bytes(model) == before
    assert all(torch.equal(model.weight(i), masters[i]) for i in (0, 1))


def test_half_precision_keeps_a_float32_master() -> None:
    model = EditableModel(tiny_hf("llama", layers=2).bfloat16(), tiny_tokenizer(), name="x")
    start = model.weight(1).clone()
    step = 1e-4 * start.abs().max() * torch.ones_like(start)
    for _ in range(50):
        model.set_weight(1, model.weight(1) + step)
    want = start.double() + 50 * step.double()
    assert (model.weight(1).double() - want).abs().max() < 1e-6
    assert torch.equal(model.parameter(1).detach(), model.weight(1).bfloat16())
    # the same steps on the served weight itself are lost to rounding
    served = start.bfloat16()
    for _ in range(50):
        served = served + step.bfloat16()
    assert (served.double() - want).norm() > 10 * (model.parameter(1).double() - want).norm()


def test_set_weight_copies_and_checks(llama: EditableModel) -> None:
    given = llama.weight(0) + 1.0
    llama.set_weight(0, given)
    kept = given.clone()
    given.zero_()
    assert torch.equal(llama.weight(0), kept)
    assert torch.equal(llama.parameter(0).detach(), kept)
    with pytest.raises(ValueError, match=r"layer 0: weight of shape \(48, 32\), want \(32, 48\)"):
        llama.set_weight(0, kept.T)


def test_weights_are_copies_and_set_weights_writes_them_back(llama: EditableModel) -> None:
    before, saved = _bytes(llama), llama.weights([0, 2])
    llama.set_weights({layer: torch.zeros_like(w) for layer, w in saved.items()})
    assert not bool(llama.parameter(2).any())
    llama.set_weights(saved)
    assert _bytes(llama) == before


def test_map_hooks_see_the_pass_and_are_gone_afterwards(llama: EditableModel) -> None:
    ids = [5, 77, 130, 9]
    with llama.map_inputs([0, 2]) as inputs, llama.map_outputs([2]) as outputs:
        plain.logits(llama, ids)
    assert sorted(inputs) == [0, 2]
    torch.testing.assert_close(inputs[2][0], plain.read(llama, plain.edited_map(llama, 2), ids, "in"))
    torch.testing.assert_close(outputs[2][0], plain.read(llama, plain.edited_map(llama, 2), ids))
    seen = inputs[0]
    plain.logits(llama, [1, 2, 3])
    assert inputs[0] is seen


def test_layers_that_do_not_exist_are_named(llama: EditableModel) -> None:
    llama.check_layers([0, 2])
    for layer in (3, -1):
        with pytest.raises(UserError, match=rf"layer {layer} does not exist in 'tiny-llama'; allowed: 0\.\.2"):
            llama.check_layers([0, layer])


def test_the_digest_is_that_of_the_weights() -> None:
    first, same, other = (tiny_model("llama", layers=1, seed=seed) for seed in (0, 0, 1))
    assert first.digest == same.digest != other.digest
