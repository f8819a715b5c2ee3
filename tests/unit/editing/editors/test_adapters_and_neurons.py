"""LoRA, AdaLoRA and KN on tiny models: what is served, what it begins with, and what adds up to what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editing.editors.gradient.kn import attributions
from errata.editing.editors.gradient.lora import unpacked
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import is_module, map_number, number_name
from errata.editing.request import EditRequest
from errata.editing.session import EditSession
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import batch, session_of
from tests.unit.editing.editors.test_grace import UNRELATED, fact, logits, says

EDITS = [
    fact("a", "two", prompt="Therefore I think that {}"),
    fact("b", "ten", prompt="The answer is {}", subject="Alice Munro"),
]


# --- adapters ---


def peft_model(session: EditSession, name: str) -> Any:
    """The library's own model with the session's adapter in it."""
    import peft

    config = session.editor.config
    common = {"target_modules": list(config.maps), "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    if name == "lora":
        made = peft.LoraConfig(r=config.rank, **common)
    else:
        made = peft.AdaLoraConfig(init_r=config.rank, r=8, total_step=10, **common)
    model = peft.get_peft_model(tiny_model("llama", layers=3).hf, made).eval()
    for number in session.editor.layers:
        path = session.model.decoder.parameter_name(number).removesuffix(".weight")
        module = model.get_submodule(f"base_model.model.{path}")
        weight = session.model.weight(number)
        adapter = unpacked(session.state.memory[f"adapter.{number}"], *weight.shape)
        with torch.no_grad():
            for part in ("A", "B", *(("E",) if name == "adalora" else ())):
                held = getattr(module, f"lora_{part}")["default"]
                getattr(held, "weight", held).copy_(adapter[part])
    return model


@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_what_is_served_is_what_peft_computes(name: str) -> None:
    session = session_of(name, layers=(0, 1, 2), steps=8, lr=2e-2)
    for number, request in enumerate(EDITS, start=1):
        session.apply(batch(number, request))
    want_of = peft_model(session, name)
    for text in (*UNRELATED, EDITS[0].text):
        ids = torch.tensor([session.model.text.encode_prompt(text)])
        with torch.no_grad():
            want = want_of(input_ids=ids).logits
            got = session.model.hf(input_ids=ids).logits
        assert float((got - want).abs().max()) <= 1e-5 * max(1.0, float(want.abs().max()))
        assert float((want - logits(tiny_model("llama", layers=3), text)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_an_adapter_begins_at_zero_learns_its_edits_and_goes_on(name: str) -> None:
    session = session_of(name, layers=(0, 1, 2), steps=60, lr=2e-2, dropout=0.0)
    editor: Any = session.editor
    for number, adapter in editor.adapters(session.model, session.state).items():
        left, right = editor.factors(adapter)
        assert not bool((left @ right).any()), number
        assert bool(left.any()) or bool(right.any())
    receipt = session.apply(batch(1, EDITS[0]))
    assert says(session, EDITS[0]) and receipt.delta is not None
    first = session.state.memory
    session.apply(batch(2, EDITS[1]))
    assert says(session, EDITS[1])
    assert any(not torch.equal(first[name], session.state.memory[name]) for name in first)
    base = session.base
    for number, adapter in editor.adapters(session.model, session.state).items():
        left, right = editor.factors(adapter)
        torch.testing.assert_close(session.model.weight(number), base[number] + left @ right, rtol=0, atol=1e-5)


def test_dropout_follows_the_seed_and_not_the_process() -> None:
    ran = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        session = session_of("lora", layers=(1,), steps=3)
        ran.append(session.apply(batch(1, EDITS[0])).delta)
    assert ran[0] is not None and ran[1] is not None and ran[0].digest == ran[1].digest
    other = session_of("lora", layers=(1,), steps=3, dropout=0.5).apply(batch(1, EDITS[0])).delta
    assert other is not None and other.digest != ran[0].digest


def test_orthogonality_is_that_of_the_paper() -> None:
    session = session_of("adalora", layers=(1,))
    editor: Any = session.editor
    adapters = editor.adapters(session.model, session.state)
    want = []
    for adapter in adapters.values():
        a, b = adapter["A"].double().numpy(), adapter["B"].double().numpy()
        for gram in (a @ a.T, b.T @ b):
            want.append((((gram - torch.eye(len(gram)).numpy()) ** 2).sum()) ** 0.5)
    assert float(editor.penalty(adapters)) == pytest.approx(0.5 * sum(want) / len(want), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
def test_a_fused_matrix_is_refused_by_name(family: str) -> None:
    with pytest.raises(UserError, match=r"no map '[qv]_proj' of its own: '\w+' holds queries, keys and values"):
        session_of("lora", family=family)
    model = tiny_model(family, layers=1)
    assert model.weight(map_number(0, "o_proj")).shape == (32, 32), "what is behind attention is a map of its own"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2", "gptj"])
def test_attention_maps_have_numbers(family: str) -> None:
    model = tiny_model(family, layers=2)
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
        number = map_number(1, kind)
        assert number_name(number) == f"1 {kind}" and not is_module(number)
        weight = model.weight(number)
        found = [n for n, p in model.hf.named_parameters() if p is model.parameter(number)]
        assert found == [model.decoder.parameter_name(number)] and weight.ndim == 2
        with model.patched([number]):
            model.set_weight(number, torch.zeros_like(weight))
            changed = logits(model, UNRELATED[0])
        assert not torch.equal(changed, logits(model, UNRELATED[0]))


# --- knowledge neurons ---


def chance(model: EditableModel, prompt: str, token: int, layer: int, scale: float) -> float:
    """P(token) with the map's input at the last position scaled, by a plain pass."""

    def hook(module: Any, args: tuple[Any, ...]) -> Any:
        x = args[0].clone()
        x[:, -1] *= scale
        return (x,)

    handle = model.decoder.edited_map(layer).register_forward_pre_hook(hook)
    try:
        return float(logits(model, prompt)[0, -1].double().softmax(dim=0)[token])
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_attributions_add_up_to_what_the_neurons_do(family: str) -> None:
    model = tiny_model(family, layers=3)
    prompt = "The sport that Thierry Henry plays is"
    at_end = logits(model, prompt)[0, -1]
    # what the model says most surely of the words that are one token
    word = max(["the", "two", "nine", "ten", "in", "of"], key=lambda w: float(at_end[model.text.encode_target(w)[0]]))
    (token,) = model.text.encode_target(word)
    found = attributions(model, prompt, word, (0, 1, 2), 1000)
    for layer in (0, 1, 2):
        want = chance(model, prompt, token, layer, 1.0) - chance(model, prompt, token, layer, 0.0)
        size = float(found[layer].double().abs().sum())
        assert float(found[layer].double().sum()) == pytest.approx(want, abs=5e-3 * size) and size > 0


def test_columns_are_rewritten_and_all_others_stay() -> None:
    session = session_of("kn", layers=(0, 1, 2), threshold=0.5)
    request = EDITS[0].model_copy(update={"target_true": "nine"})
    editor: Any = session.editor
    neurons = editor.neurons(session.model, request)
    assert 0 < len(neurons) < 40
    session.apply(batch(1, request))
    text, table = session.model.text, session.model.hf.get_input_embeddings().weight.detach().double()
    old, new = (table[text.encode_target(t)].sum(dim=0) for t in ("nine", "two"))
    for layer in (0, 1, 2):
        moved = session.model.weight(layer).double() - session.base[layer].double()
        chosen = sorted(neuron for at, neuron in neurons if at == layer)
        others = [i for i in range(moved.shape[1]) if i not in chosen]
        assert not bool(moved[:, others].any())
        for neuron in chosen:
            torch.testing.assert_close(moved[:, neuron], 2 * new - 2 * old, rtol=1e-5, atol=1e-6)


def test_refined_neurons_are_those_that_paraphrases_share() -> None:
    request = EDITS[0].model_copy(update={"target_true": "nine", "paraphrases": ("What is the question? yes", "no")})
    both = session_of("kn", threshold=0.3, share=1.0)
    plain = session_of("kn", threshold=0.3, refine=False)
    shared, alone = (set(s.editor.neurons(s.model, request)) for s in (both, plain))  # type: ignore[attr-defined]
    assert shared < alone


def test_an_edit_without_an_old_answer_is_refused_by_name_and_the_others_are_written() -> None:
    session = session_of("kn")
    known: EditRequest = EDITS[1].model_copy(update={"target_true": "nine"})
    receipt = session.apply(batch(1, EDITS[0], known))
    assert [r.applied for r in receipt.results] == [False, True]
    assert "has no target_true" in str(receipt.results[0].reason)
