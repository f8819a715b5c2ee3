from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from errata.editing.errors import UserError
from errata.retrieval.embedder import (
    HashEmbedder,
    HashEmbedderConfig,
    SentenceEmbedder,
    build_embedder,
    unit_rows,
)


def test_hash_vectors_are_unit_float32_and_independent_of_the_batch():
    embedder = HashEmbedder(dim=64)
    texts = ["The capital of France is Paris.", "Alice Munro writes.", "", "!!"]
    together = embedder.embed(texts)
    assert together.shape == (4, 64) and together.dtype == np.float32 and together.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(embedder.embed([text])[0], row)
    assert embedder.embed([]).shape == (0, 64)


def test_hash_vectors_are_the_same_in_another_process():
    code = (
        "from errata.retrieval.embedder import HashEmbedder as H; print(H(dim=32).embed(['Rome in Italy'])[0].tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(HashEmbedder(dim=32).embed(["Rome in Italy"])[0].tolist())


def test_hash_similarity_follows_shared_words():
    near, far, query = HashEmbedder().embed(
        ["The mother tongue of Ada Byron is Greek.", "Mount Fuji lies in Chile.", "What is Ada Byron's mother tongue?"]
    )
    assert near @ query > 0.4 > far @ query


@pytest.mark.parametrize(
    ("statement", "question", "other"),
    [
        ("法国的首都是里昂。", "法国的首都城市是", "鲁迅出生在"),
        ("鲁迅出生在广州。", "鲁迅的出生地是", "德国的首都是"),
        ("夏目漱石が生まれた町は大阪。", "夏目漱石の出身地は", "自由の女神がある町は"),
        ("エッフェル塔がある町はローマ。", "エッフェル塔の所在地は", "太宰治が生まれた県は"),
        ("หอไอเฟลตั้งอยู่ในเมืองโรม", "เมืองที่หอไอเฟลตั้งอยู่คือ", "เมืองหลวงของญี่ปุ่นคือ"),
    ],
)
def test_hash_similarity_without_spaces_between_words(statement, question, other):
    kept, asked, apart = HashEmbedder().embed([statement, question, other])
    assert kept @ asked > 0.25 and kept @ asked > kept @ apart + 0.1


def test_digest_names_the_settings():
    assert HashEmbedder(dim=64).digest == HashEmbedder(dim=64).digest
    assert len({HashEmbedder(dim=64).digest, HashEmbedder(dim=65).digest, HashEmbedder(dim=64, ngram=3).digest}) == 3
    assert build_embedder(HashEmbedderConfig(dim=64)).digest == HashEmbedder(dim=64).digest


def test_unit_rows_refuses_what_is_no_vector():
    with pytest.raises(ValueError, match="1 of 2 vectors are not finite"):
        unit_rows(np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="shape"):
        unit_rows(np.ones(3))
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


def test_a_sentence_model_that_is_not_there_is_a_users_error_without_asking_the_network():
    with pytest.raises(UserError, match=r"no-such-model.*three ways"):
        SentenceEmbedder("no-such-model")
