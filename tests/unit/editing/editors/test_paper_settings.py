"""Settings with which a method runs as its paper or its published code has it, against the formula in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from errata.editing.contexts import sample_contexts, sample_groups
from errata.editing.editors import make_editor
from errata.editing.estimation.selfgen import SelfGenerationConfig, seed_sequences, unit_of, words_of
from errata.editing.keys import SubjectPass
from errata.editing.request import EditRequest
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import CONTEXTS, config_of, covariance_of

REQUEST = EditRequest(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="Canada")


@pytest.mark.parametrize("key", ["averaged", "published"])
def test_rome_with_either_key(key: str) -> None:
    model = tiny_model("llama", layers=3)
    editor = make_editor(config_of("rome", key=key))
    covariance = covariance_of(model)
    state = editor.new_state(model, covariance)
    W = model.weight(1).double().numpy().copy()
    found = editor.compute(model, [REQUEST], state, CONTEXTS)
    k = SubjectPass(model, [REQUEST], CONTEXTS).keys(1, "mean").double().numpy()[:, 0]
    bare = SubjectPass(model, [REQUEST], ("",)).keys(1, "mean").double().numpy()[:, 0]
    assert np.linalg.norm(k - bare) > 1e-3 * np.linalg.norm(k)
    v = found.values[0].state.double().numpy()
    C = covariance.mean(1).double().numpy()
    read = bare if key == "published" else k
    row = np.linalg.solve(C, k)
    want = np.outer(v - W @ read, row) / (read @ row)  # compute_u and compute_v of the authors' code
    change = found.delta.layers[1]
    got = change.left.double().numpy() @ change.right.double().numpy()
    assert np.linalg.norm(got - want) <= 2e-6 * np.linalg.norm(want)
    # the bare key is what the published form maps to v; the averaged key is then missed
    assert np.linalg.norm((W + got) @ read - v) <= 2e-5 * np.linalg.norm(v)
    other = k if key == "published" else bare
    assert np.linalg.norm((W + got) @ other - v) > 1e-3 * np.linalg.norm(v)


def test_rect_on_rome_takes_the_same_key() -> None:
    model = tiny_model("llama", layers=3)
    covariance = covariance_of(model)
    found = {}
    for key in ("averaged", "published"):
        rect = make_editor(config_of("rect", base="rome", layers=(1,), keep=1.0, key=key))
        rome = make_editor(config_of("rome", key=key))
        thinned = rect.compute(model, [REQUEST], rect.new_state(model, covariance), CONTEXTS).delta.layers[1]
        whole = rome.compute(model, [REQUEST], rome.new_state(model, covariance), CONTEXTS).delta.layers[1]
        assert torch.equal(thinned.left, whole.left) and torch.equal(thinned.right, whole.right)
        found[key] = thinned.right
    assert not torch.equal(found["averaged"], found["published"])


def test_mose_reaches_beyond_the_layers_it_chooses_among() -> None:
    model = tiny_model("llama", layers=4)
    plain = make_editor(config_of("mose", layers=(1, 2), candidates=1))
    beyond = make_editor(config_of("mose", layers=(1, 2), candidates=1, beyond=True))
    assert plain.layers == (1, 2) and beyond.layers == (0, 1, 2, 3)
    covariance = covariance_of(model, (0, 1, 2, 3))
    asked = [REQUEST]
    layers, _ = beyond.choose(model, asked, beyond.new_state(model, covariance), CONTEXTS)  # type: ignore[attr-defined]
    clipped, _ = plain.choose(model, asked, plain.new_state(model, covariance), CONTEXTS)  # type: ignore[attr-defined]
    assert len(layers) == 3 and set(clipped) == set(layers) & {1, 2}
    assert layers[1] in (1, 2)  # the one in the middle was chosen
    with pytest.raises(ValidationError, match="leave out layer 0"):
        config_of("mose", layers=(0, 1), beyond=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("literal", [False, True])
def test_mose_with_either_v(family: str, literal: bool) -> None:
    """V as the paper has it, or the averaged keys' outputs moved by what the bare prompts are moved by; eqs. 16-20."""
    model = tiny_model(family, layers=3)
    editor = make_editor(config_of("mose", layers=(1,), selection="predefined", literal_values=literal))
    covariance = covariance_of(model)
    asked = [REQUEST, EditRequest(subject="Angola", prompt="The people of {} speak", target_new="Italy")]
    found = editor.compute(model, asked, editor.new_state(model, covariance), CONTEXTS)
    W, C = model.weight(1).double().numpy(), covariance.mean(1).double().numpy()
    K = found.keys[1].double().numpy()
    k = SubjectPass(model, asked, ("",)).keys(1, "mean").double().numpy()
    delta = np.stack([value.delta.double().numpy() for value in found.values], axis=1)
    V = W @ (k if literal else K) + delta
    U, _, Vt = np.linalg.svd(10.0 * W @ C @ W.T + V @ (W @ K).T)
    got = found.delta.layers[1].left.double().numpy()
    np.testing.assert_allclose(got, U @ Vt, atol=1e-5)
    other = W @ (K if literal else k) + delta
    assert np.linalg.norm(V - other) > 1e-3 * np.linalg.norm(V)


def test_romes_prefixes_of_two_lengths() -> None:
    model = tiny_model("llama", layers=2)
    found = sample_groups(model, ((3, 5), (2, 10)), seed=4)
    assert found[:4] == sample_contexts(model, count=3, length=5, seed=4)
    assert len(found) == 6 and found[0] == "" and found.count("") == 1
    assert sample_groups(model, ((3, 5),), seed=4) == found[:4]
    assert sample_groups(model, ((0, 5), (0, 1)), seed=4) == ("",)


def test_seeds_of_words_alone_and_a_bos_before_them() -> None:
    model = tiny_model("llama", layers=1)
    words = words_of(model.text.tokenizer, int(model.hf.config.vocab_size))
    special = set(model.text.tokenizer.all_special_ids)
    assert words and not special & set(words) and words == sorted(set(words))
    unit = unit_of(0, seed=1, sequences=64)

    def drawn(**given: object) -> list[list[int]]:
        return seed_sequences(model, unit, SelfGenerationConfig.model_validate(given))

    bos = list(model.text.bos)
    assert all(set(row[len(bos) :]) <= set(words) for row in drawn(seed_pool="words", seed_tokens=2))
    assert all(len(row) == 1 for row in drawn(seed_bos=False))
    if model.text.tokenizer.bos_token_id is not None:
        assert all(row[0] == model.text.tokenizer.bos_token_id and len(row) == 2 for row in drawn(seed_bos=True))
    # what was there before keeps its digest
    assert "seed_pool" not in SelfGenerationConfig().identity() and "seed_bos" not in SelfGenerationConfig().identity()
    assert SelfGenerationConfig(seed_pool="words").identity()["seed_pool"] == "words"
