"""The fetched demo models are the models they say they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.editing.checkpoint.fetch import model_dir
from errata.editing.checkpoint.kept import RECORD


def test_smollm2_is_whole_plain_float32_and_knows_a_fact(smollm2: Path) -> None:
    assert model_dir("smollm2-135m-instruct", verify=True) == smollm2
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.model_type == "llama" and model.config.num_hidden_layers == 30
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    inputs = tokenizer("The mother tongue of Danielle Darrieux is", return_tensors="pt")
    with torch.no_grad():
        best = model(**inputs).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " French"


def test_smollm2_tokenizer_keeps_its_chat_template_and_adds_nothing(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "In 1984,  it's\n\n37 °C"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids and tokenizer.eos_token_id not in ids
    assert tokenizer.model_max_length == 8192
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


def test_minilm_embeds_sentences_with_unit_norm_by_meaning(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    assert RECORD in {p.name for p in minilm.iterdir()}
    embedder = SentenceTransformer(str(minilm), device="cpu")
    sentences = ["The capital of France is Paris.", "Paris is France's capital city.", "Bread needs yeast."]
    vectors = embedder.encode(sentences)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.8 > 0.3 > vectors[0] @ vectors[2]
