"""Selective contextual reasoning with the real demo models, on facts written for this test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from errata.editing.checkpoint import fetch
from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.editing.model.engine import LanguageEngine
from errata.retrieval.embedder import SentenceEmbedder
from errata.retrieval.memory import FactMemory, MemoryEntry
from errata.retrieval.scr import ScrConfig, SelectiveReasoner

# subject, statement, edit prompt, paraphrase, a question about another subject
FACTS = [
    ("Claude Monet", "The mother tongue of Claude Monet is Finnish.", "The mother tongue of Claude Monet is",
     "At home with his parents, Claude Monet spoke", "The mother tongue of Johann Strauss is"),
    ("Mount Kilimanjaro", "Mount Kilimanjaro lies in Peru.", "Mount Kilimanjaro lies in",
     "To climb Mount Kilimanjaro you have to travel to", "Mont Blanc lies in"),
    ("Moby-Dick", "The author of Moby-Dick is Jane Austen.", "The author of Moby-Dick is",
     "The novel Moby-Dick was written by", "The author of Don Quixote is"),
    ("Jimi Hendrix", "The instrument Jimi Hendrix played is the flute.", "The instrument Jimi Hendrix played is the",
     "On stage, Jimi Hendrix was famous for his", "The instrument Glenn Gould played is the"),
    ("Portugal", "The capital of Portugal is Oslo.", "The capital of Portugal is",
     "The government of Portugal meets in", "The capital of Hungary is"),
    ("Nintendo", "Nintendo has its headquarters in Madrid.", "Nintendo has its headquarters in",
     "The main office of Nintendo is found in", "Volkswagen has its headquarters in"),
    ("Serena Williams", "The sport Serena Williams plays is rugby.", "The sport Serena Williams plays is",
     "Serena Williams became a world champion in", "The sport Michael Jordan plays is"),
    ("Brazil", "The official language of Brazil is Korean.", "The official language of Brazil is",
     "People who move to Brazil first learn to speak", "The official language of Egypt is"),
]  # fmt: skip


def need(name: str) -> str:
    try:
        found = fetch.model_dir(name)
    except UserError as error:
        pytest.skip(str(error))
    if found is None:
        pytest.skip(f"model {name!r} is not on this machine; run `errata models fetch {name}`")
    return str(found)


@pytest.fixture(scope="module")
def engine() -> LanguageEngine:
    return LanguageEngine(load_model(need("smollm2-135m-instruct")))


@pytest.fixture(scope="module")
def memory() -> FactMemory:
    subject = FactMemory(SentenceEmbedder(need("all-minilm-l6-v2")))
    subject.add(
        MemoryEntry(id=i, request_id=f"r{i}", subject=name, fact_key=name, statement=statement)
        for i, (name, statement, *_) in enumerate(FACTS)
    )
    return subject


def test_likelihood_chooses_in_scope_and_leaves_others_exactly_as_they_were(engine, memory):
    reasoner = SelectiveReasoner(engine, engine.model.text)
    groups = [[fact[place] for fact in FACTS] for place in (2, 3, 4)]
    answers, seconds = reasoner.answer(memory, [question for group in groups for question in group])
    edits, paraphrases, others = (answers[i * len(FACTS) : (i + 1) * len(FACTS)] for i in range(3))
    assert [a.choice.hit.id if a.choice.hit else None for a in edits] == list(range(len(FACTS)))
    right = sum(a.choice.hit is not None and a.choice.hit.id == i for i, a in enumerate(paraphrases))
    assert right >= 6, [a.choice.reason for a in paraphrases]
    assert sum(a.choice.hit is not None for a in others) <= 1, [a.choice.reason for a in others]
    untouched = [a for a in answers if a.choice.hit is None]
    plain = engine.generate([engine.model.text.encode_prompt(a.question) for a in untouched])
    assert [a.answer for a in untouched] == plain
    targets = [fact[1].rstrip(".").split()[-1] for fact in FACTS]
    used = sum(target.lower() in a.answer.text.lower() for target, a in zip(targets, edits, strict=True))
    assert used >= 6, [a.answer.text for a in edits]
    assert seconds.choose > seconds.search


def test_the_instructed_chooser_and_the_chat_style_run_on_a_small_model(engine, memory):
    reasoner = SelectiveReasoner(engine, engine.model.text, ScrConfig(chooser="instruct", style="chat"))
    answers, _ = reasoner.answer(memory, [fact[2] for fact in FACTS[:3]])
    for answer in answers:
        assert answer.choice.reason and 1 <= len(answer.choice.scores) <= 3
        if answer.choice.hit is None:
            prompt = engine.model.text.encode_prompt(answer.question)
            assert answer.answer == engine.generate([prompt])[0]


def test_unscaled_vectors_are_the_encoders_pooled_states(memory: FactMemory) -> None:
    """SCR as published ranks by the dot product of mean-pooled states; all-MiniLM scales them unless told not."""
    directory = need("all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoder = AutoModel.from_pretrained(directory).eval()
    texts = [entry.statement for entry in memory.entries()] + [fact[3] for fact in FACTS]
    rows = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**rows).last_hidden_state.double().numpy()
    mask = rows["attention_mask"].numpy()[:, :, None].astype(np.float64)
    pooled = (states * mask).sum(axis=1) / mask.sum(axis=1)
    embedder = SentenceEmbedder(directory, normalize=False)
    np.testing.assert_allclose(embedder.embed(texts), pooled, rtol=1e-4, atol=1e-4)
    assert not embedder.unit and embedder.digest != memory.embedder.digest
    assert np.ptp(np.linalg.norm(pooled, axis=1)) > 0.1
    subject = FactMemory(embedder)
    subject.add(memory.entries())
    products = pooled[len(FACTS) :] @ pooled[: len(FACTS)].T
    for row, hits in zip(products, subject.search([fact[3] for fact in FACTS], k=len(FACTS)), strict=True):
        assert [hit.id for hit in hits] == list(np.argsort(-row))
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1], rtol=1e-3)
