"""An answer token by token against the engine's own, and against sampling done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.model.streaming import Sampling, TokenStream
from tests.helpers.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", layers=3)


PROMPTS = ["The capital of France is", "Danielle speaks", "a"]


def said(model: EditableModel, prompt: str, sampling: Sampling) -> tuple[str, list[int], str]:
    stream = TokenStream(LanguageEngine(model), model.text.encode_prompt(prompt), sampling)
    parts = []
    while stream.finish is None:
        parts.append(stream.step())
    assert stream.step() == ""  # an ended answer stays ended
    return "".join(parts), stream.ids, stream.finish


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_stream_is_the_engines_answer_token_for_token(model, prompt):
    ids = model.text.encode_prompt(prompt)
    (answer,) = LanguageEngine(model).generate([ids], max_new_tokens=12, stop_at_newline=False)
    text, ids, finish = said(model, prompt, Sampling(12))
    assert (text, tuple(ids)) == (answer.text, answer.ids)
    assert finish == ("length" if len(ids) == 12 else "stop")


def test_the_greedy_token_is_the_argmax_of_a_plain_pass(model):
    ids = model.text.encode_prompt(PROMPTS[0])
    _, tokens, _ = said(model, PROMPTS[0], Sampling(4))
    for at, token in enumerate(tokens):
        with torch.no_grad():
            logits = model.decoder.model(torch.tensor([ids + tokens[:at]])).logits[0, -1]
        assert int(logits.argmax()) == token


def test_sampling_follows_its_seed_and_the_softmax(model):
    prompt = model.text.encode_prompt(PROMPTS[0])
    assert said(model, PROMPTS[0], Sampling(8, 1.0, seed=3)) == said(model, PROMPTS[0], Sampling(8, 1.0, seed=3))
    with torch.no_grad():
        logits = model.decoder.model(torch.tensor([prompt])).logits[0, -1].double().numpy() / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    draws = [said(model, PROMPTS[0], Sampling(1, 0.7, seed=seed))[1][:1] for seed in range(300)]
    first = [ids[0] for ids in draws if ids]
    top = int(p.argmax())
    # a binomial share, five standard deviations wide
    assert abs(first.count(top) / 300 - p[top]) < 5 * np.sqrt(p[top] * (1 - p[top]) / 300) + 1e-9


def test_top_p_leaves_only_the_most_probable(model):
    prompt = model.text.encode_prompt(PROMPTS[0])
    with torch.no_grad():
        p = model.decoder.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    order = p.argsort(descending=True)
    kept = set(order[: int((p[order].cumsum(0) < 0.02).sum()) + 1].tolist())
    for seed in range(40):
        ids = said(model, PROMPTS[0], Sampling(1, 1.0, 0.02, seed))[1]
        assert not ids or ids[0] in kept
    assert said(model, PROMPTS[0], Sampling(6, 1.0, 1e-9)) == said(model, PROMPTS[0], Sampling(6))


def test_a_stop_ends_the_answer_and_no_part_of_it_is_given_out(model):
    whole, ids, _ = said(model, PROMPTS[0], Sampling(12))
    for stop in {whole[3:5], whole[-2:], whole[:1]} - {""}:
        stream = TokenStream(LanguageEngine(model), model.text.encode_prompt(PROMPTS[0]), Sampling(12, stop=(stop,)))
        given = ""
        while stream.finish is None:
            given += stream.step()
            assert (whole.split(stop)[0]).startswith(given)
        assert given == whole.split(stop)[0] and stream.finish == "stop" and len(stream.ids) <= len(ids)


def test_a_stop_that_never_comes_takes_nothing_away(model):
    whole, _, _ = said(model, PROMPTS[0], Sampling(12))
    # its beginning is at the very end of the answer
    assert said(model, PROMPTS[0], Sampling(12, stop=(whole[-1] + "\x00never",)))[0] == whole
