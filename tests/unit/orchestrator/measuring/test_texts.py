"""Texts of several domains: how they are read, and what is said of one that cannot be."""

from __future__ import annotations

import gzip
import json

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.config.evaluation import TextConfig
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import identity_of
from errata.orchestrator.measuring.texts import read_texts


def test_fields_are_joined_and_documents_counted_from_the_skipped_on(tmp_path):
    place = tmp_path / "code.jsonl.gz"
    with gzip.open(place, "wt") as file:
        file.writelines(json.dumps({"prompt": f"def f{i}():", "body": f"    return {i}"}) + "\n" for i in range(5))
    text = TextConfig(path=str(place), fields=("prompt", "body"), skip=1, documents=2)
    assert read_texts({"code": text}) == {"code": ["def f1():\n    return 1", "def f2():\n    return 2"]}


def test_plain_text_falls_into_paragraphs_lines_or_one_document(tmp_path):
    place = tmp_path / "a.txt"
    place.write_text("one\ntwo\n\nthree\n")
    split = {how: TextConfig(path=str(place), split=how).read() for how in ("blank_line", "line", "file")}
    assert [len(documents) for documents in split.values()] == [2, 3, 1]


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (None, {}, "evaluation.texts.news: .*does not exist"),
        ("a\n\nb\n", {"skip": 2}, "evaluation.texts.news: .*holds no text behind its first 2 documents"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(tmp_path, content, settings, said):
    place = tmp_path / "news.txt"
    if content is not None:
        place.write_text(content)
    with pytest.raises(UserError, match=said):
        read_texts({"news": TextConfig(path=str(place), **settings)})


def test_the_file_is_found_beside_the_configuration_and_counts_among_what_decides(tmp_path):
    (tmp_path / "beside.txt").write_text("text")
    data = {
        "model": {"name": "tiny"},
        "editor": {"type": "memit", "layers": [1]},
        "stream": {"path": "facts.jsonl"},
        "covariance": {"tokens": 100},
    }
    without = build_config(data)
    config = build_config({**data, "evaluation": {"texts": {"a": {"path": "beside.txt"}}}}, tmp_path / "run.yaml")
    assert config.evaluation.texts["a"].path == str(tmp_path / "beside.txt")
    assert identity_of(config.dump()) != identity_of(without.dump())
    older = without.dump()
    del older["evaluation"]["texts"], older["stream"]["probes"]
    assert identity_of(older) == identity_of(without.dump()), "a run begun by a release that knew none of these"
