"""Blocks of a corpus: the same scheduler and workers as self-generation, with a supply that comes to an end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errata.actors.covariance import _Run
from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.covariance import BlockInfo, CorpusShare, EstimateJob, UnitWorker
from errata.editing.errors import DamagedFileError, ErrataError
from errata.editing.estimation.corpus import CorpusConfig, survey
from errata.editing.estimation.selfgen import SelfGenerationConfig
from tests.helpers.tiny import save_tiny

LAYERS = (0, 1)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> UnitWorker:
    directory = save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=3)
    return UnitWorker(ModelSpec(name=str(directory)), RoleConfig())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Rome lies in Italy, {i} times. " * (1 + i % 3)}) + "\n" for i in range(11))
    )
    return path


def job(text: Path, **given: Any) -> EstimateJob:
    reading = CorpusConfig(path=str(text), window=20, documents_per_unit=2, nll_documents=3)
    found = survey(reading)
    share = CorpusShare(reading=reading, digest=found.digest, documents=found.documents)
    return EstimateJob(**({"corpus": share, "layers": LAYERS, "tokens": 10_000, "version": "v"} | given))


def test_blocks_are_the_documents_in_order_however_they_are_cut(worker: UnitWorker, text: Path) -> None:
    """Any cut into blocks counts the same tokens; sums agree up to the order of addition."""
    totals = []
    for units, blocks in ((6, [0]), (1, [5, 0, 1, 2, 3, 4]), (2, [2, 0, 1])):
        cut = job(text, units_per_block=units)
        made = [worker.block(cut, index, 2 * units, {}) for index in blocks]
        tokens = sum(info.tokens for info, _ in made)
        totals.append((tokens, {layer: sum(sums[layer] for _, sums in made) for layer in LAYERS}))
    assert len({tokens for tokens, _ in totals}) == 1 and totals[0][0] > 100
    for _, sums in totals[1:]:
        for layer in LAYERS:
            np.testing.assert_allclose(sums[layer], totals[0][1][layer], rtol=1e-6, atol=1e-9)


def test_a_block_is_the_same_bytes_whatever_was_done_before(worker: UnitWorker, text: Path) -> None:
    first, sums = worker.block(job(text), 2, 2, {})
    worker.block(job(text), 4, 2, {})
    again, repeated = worker.block(job(text), 2, 2, {})
    assert all(np.array_equal(sums[layer], repeated[layer]) for layer in LAYERS)
    assert first.tokens == again.tokens and first.documents == again.documents == ()
    assert len(worker.block(job(text), 0, 2, {})[0].documents) >= 2, "the likelihood of the first documents is taken"


def test_a_worker_refuses_another_text(worker: UnitWorker, text: Path) -> None:
    planned = job(text)
    text.write_text('{"text": "something else"}\n')
    with pytest.raises(DamagedFileError, match=r"corpus 'text\.jsonl' has digest"):
        worker.block(planned, 0, 2, {})


def test_a_corpus_that_ends_before_the_budget_completes_the_job(text: Path) -> None:
    run = _Run(job(text, units_per_block=2), weights=None)
    assert run.total_blocks() == 3 and [run.sequences_for(block) for block in range(3)] == [4, 4, 3]
    for block in range(3):
        assert run.wants_more() and not run.complete()
        run.next_block += 1
        run.finished[block] = (BlockInfo(block, 50, (), 0.1), None)
        run.released, run.tokens = run.released + 1, run.tokens + 50
    assert run.complete() and not run.wants_more()


def test_a_token_budget_ends_a_corpus_early_and_documents_bound_it_too(text: Path) -> None:
    run = _Run(job(text, tokens=80), weights=None)
    run.tokens = 80
    assert run.complete()
    assert job(text, tokens=None, sequences=5).most == 5 and job(text, tokens=None, sequences=99).most == 11


def test_the_source_of_a_corpus_names_the_text_and_not_its_place(text: Path) -> None:
    source = job(text).source("float32")
    assert source["kind"] == "corpus" and source["name"] == "text.jsonl" and "seed" not in source
    assert str(text.parent) not in json.dumps(source)
    assert EstimateJob(layers=(1,), tokens=5, version="v").source("float32")["kind"] == "self_generated"


def test_fused_keys_are_checked_against_a_second_pass(worker: UnitWorker, text: Path) -> None:
    generation = SelfGenerationConfig(max_new_tokens=9, sequences_per_unit=5, slots=2)
    found = worker.check(EstimateJob(generation=generation, layers=LAYERS, tokens=50, version="v"), 5, {})
    assert found.tokens > 10 and set(found.errors) == set(LAYERS) and max(found.errors.values()) < 1e-5


def test_a_second_pass_that_counts_otherwise_is_an_error(worker: UnitWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.actors.workers.covariance.second_pass", lambda *_: ({}, 3))
    with pytest.raises(ErrataError, match="keys, a second pass 3"):
        worker.check(EstimateJob(layers=LAYERS, tokens=50, version="v"), 2, {})
