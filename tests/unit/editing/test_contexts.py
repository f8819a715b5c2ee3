"""Context prefixes: sampled once, by seed, from the model's own likely words."""

from __future__ import annotations

import torch

from errata.editing.contexts import OPENINGS, sample_contexts
from errata.editing.model.adapter import EditableModel
from tests.helpers.tiny import tiny_model
from tests.unit.helpers import plain


def test_the_empty_context_and_the_asked_number_of_prefixes(llama: EditableModel) -> None:
    assert sample_contexts(llama, count=0, length=10, seed=0) == ("",)
    contexts = sample_contexts(llama, count=7, length=5, seed=0)
    assert len(contexts) == 8 and contexts[0] == ""
    for i, context in enumerate(contexts[1:]):
        assert context.startswith(OPENINGS[i % len(OPENINGS)]) and context.endswith(". ")
        assert "{" not in context and "}" not in context and "\n" not in context


def test_a_seed_gives_the_same_prefixes(llama: EditableModel) -> None:
    first = sample_contexts(llama, count=5, length=6, seed=3)
    torch.manual_seed(1234)
    assert sample_contexts(tiny_model("llama", layers=3), count=5, length=6, seed=3) == first
    assert sample_contexts(llama, count=5, length=6, seed=4) != first


def test_prefixes_are_drawn_among_the_five_likeliest_tokens(llama: EditableModel) -> None:
    """The words a prefix of one token can end with are the plain top five after its opening, and several occur."""
    ids = llama.text.encode_prompt(OPENINGS[0])
    scores = plain.logits(llama, ids)[-1].detach()
    for token in llama.text.eos_ids:
        scores[token] = -torch.inf
    allowed = {" ".join(llama.text.decode([*ids, token]).split()) + ". " for token in scores.topk(5).indices.tolist()}
    seen = {sample_contexts(llama, count=1, length=1, seed=seed)[1] for seed in range(40)}
    assert seen <= allowed and len(seen) > 1
