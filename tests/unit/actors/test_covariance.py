"""Blocks of units, the order in which they are added, and who is asked for how much; no Ray is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import errata.actors.reduction
from errata.actors.covariance import _progress, _Run
from errata.actors.reduction import BlockTree, Pieces, Subtree, add_pieces, cut, fetch_repairing, joined
from errata.actors.workers.covariance import BlockInfo, EstimateJob, UnitWorker
from errata.editing.checkpoint.load import load_model
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of

GENERATION = SelfGenerationConfig(max_new_tokens=6, sequences_per_unit=3, slots=2)


def job(**changes: Any) -> EstimateJob:
    return EstimateJob(**{"generation": GENERATION, "layers": (1, 2), "sequences": 12, "version": "base", **changes})


# ---------------------------------------------------------------- the job


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "sequences": 5}, {"tokens": 0}, {"sequences": -1}])
def test_a_job_has_one_positive_budget(budget):
    with pytest.raises(ValidationError):
        EstimateJob(layers=(1,), version="v", **budget)


@pytest.mark.parametrize("change", [{"layers": ()}, {"units_per_block": 0}, {"unknown": 1}])
def test_a_job_is_closed_and_complete(change):
    with pytest.raises(ValidationError):
        job(**change)


def test_the_source_names_everything_that_decides_the_result():
    one = job().source("float32")
    assert one["kind"] == "self_generated" and one["sequences"] == 12 and one["max_new_tokens"] == 6
    for other in (job(seed=1), job(version="v1"), job(units_per_block=2), job(sequences=11)):
        assert other.source("float32") != one
    assert job().source("bfloat16") != one


# ---------------------------------------------------------------- blocks


def test_a_block_is_its_units_in_their_order(spec, role):
    worker = UnitWorker(spec, role)
    info, sums = worker.block(job(units_per_block=2, seed=5), 1, 5, {})
    model = load_model(spec.name)
    # block 1 of two units each: units 2 and 3; five sequences are three for the first and two for the second
    parts = [run_unit(model, unit_of(u, seed=5, sequences=n), (1, 2), GENERATION) for u, n in ((2, 3), (3, 2))]
    for layer in (1, 2):
        assert sums[layer].dtype == np.float64
        assert np.array_equal(sums[layer], parts[0].sums[layer].numpy() + parts[1].sums[layer].numpy())
    assert info.block == 1 and info.tokens == parts[0].tokens + parts[1].tokens
    assert info.documents == parts[0].documents + parts[1].documents


def test_a_block_repeated_by_another_worker_has_the_same_bytes(spec, role):
    one, other = UnitWorker(spec, role), UnitWorker(spec, role)
    other.block(job(), 7, 3, {})
    first, again = one.block(job(), 2, 3, {}), other.block(job(), 2, 3, {})
    assert all(first[1][layer].tobytes() == again[1][layer].tobytes() for layer in (1, 2))
    assert first[0].tokens == again[0].tokens


def test_a_block_speaks_with_the_weights_of_its_version_and_goes_back_to_the_base(spec, role):
    worker = UnitWorker(spec, role)
    base = worker.block(job(), 0, 3, {})[1]
    weight = load_model(spec.name).weight(1)
    edited = worker.block(job(version="v1"), 0, 3, {1: weight + 1.0})[1]
    assert not np.array_equal(edited[2], base[2])
    again = worker.block(job(), 0, 3, {})[1]
    assert all(np.array_equal(again[layer], base[layer]) for layer in (1, 2))


# ---------------------------------------------------------------- the order of addition


class _Pairs:
    """Stands for the remote addition: writes down what is added to what."""

    @staticmethod
    def remote(left: Any, right: Any) -> tuple[Any, Any]:
        return (left, right)


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        (1, 0),
        (2, (0, 1)),
        (3, ((0, 1), 2)),
        (4, ((0, 1), (2, 3))),
        (5, (((0, 1), (2, 3)), 4)),
        (7, ((((0, 1), (2, 3)), (4, 5)), 6)),
        (8, (((0, 1), (2, 3)), ((4, 5), (6, 7)))),
    ],
)
def test_the_tree_has_one_shape_for_each_number_of_blocks(count, shape, monkeypatch):
    monkeypatch.setattr(errata.actors.reduction, "_add_remote", _Pairs)
    tree = BlockTree()
    for block in range(count):
        tree.push((block, -block))
    assert tree.root()[0] == shape and len(tree.root()) == 2


class _Lossy(BlockTree):
    """Loses some subtrees once, and gives the shape of the sum instead of the sum."""

    gone: ClassVar[tuple[int, ...]] = (0, 6)

    def fetch(self) -> Any:
        return None if self.gone else self.root()[0]

    def lost(self) -> list[Subtree]:
        found = [node for node in self._nodes.values() if node.first in self.gone]
        self.gone = ()
        return sorted(found, key=lambda node: node.first)


def test_a_lost_subtree_is_made_of_its_blocks_again_and_stands_where_it_stood(monkeypatch):
    monkeypatch.setattr(errata.actors.reduction, "_add_remote", _Pairs)
    tree = _Lossy()
    for block in range(7):
        tree.push((block,))
    asked: list[list[int]] = []

    def redo(blocks: Sequence[int]) -> list[Pieces]:
        asked.append(list(blocks))
        return [(100 + block,) for block in blocks]

    assert fetch_repairing(tree, redo, 1) == ((((100, 101), (102, 103)), (4, 5)), 106)
    assert asked == [[0, 1, 2, 3], [6]]
    with pytest.raises(ValueError, match="subtree of 2 blocks: got 1"):
        tree.repair(Subtree(4, 2, ()), [(104,)])


def test_a_sum_that_is_lost_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr(errata.actors.reduction, "_add_remote", _Pairs)
    tree = _Lossy()
    tree.push((0,))
    monkeypatch.setattr(_Lossy, "lost", lambda self: list(self._nodes.values()))
    assert fetch_repairing(tree, lambda blocks: [(block,) for block in blocks], 2) is None


def test_a_node_adds_stripe_by_stripe_in_float64():
    left = {(1, 0): np.full((2, 2), 0.1), (2, 0): np.ones((3, 3))}
    total = add_pieces(left, {(1, 0): np.full((2, 2), 0.2), (2, 0): np.ones((3, 3))})
    assert total[1, 0].dtype == np.float64 and total[1, 0][0, 0] == 0.1 + 0.2 and total[2, 0].sum() == 18
    assert left[1, 0][0, 0] == 0.1


def symmetric(size: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    drawn = np.random.default_rng(seed).standard_normal((size, size))
    return drawn + drawn.T


@pytest.mark.parametrize("sizes", [{3: 1}, {1: 6, 2: 3}, {4: 127, 9: 128}, {4: 700, 5: 700, 6: 300}, {0: 2100}])
@pytest.mark.parametrize("piece_bytes", [1, 4096, 10**9])
def test_what_is_cut_and_joined_is_what_it_was_to_the_byte(sizes: dict[int, int], piece_bytes: int):
    sums = {layer: symmetric(size, layer) for layer, size in sizes.items()}
    pieces = cut(sums, piece_bytes=piece_bytes)
    assert 1 <= len(pieces) <= 24 and all(pieces)
    assert {layer: array.tobytes() for layer, array in joined(pieces).items()} == {
        layer: array.tobytes() for layer, array in sums.items()
    }
    kept = sum(rows.nbytes for piece in pieces for rows in piece.values())
    whole = sum(array.nbytes for array in sums.values())
    # the lower half, and of the squares on the diagonal all
    assert kept <= whole and (min(sizes.values()) < 2000 or kept < 0.54 * whole)


def test_pieces_are_of_like_size_and_as_many_as_are_worth_it():
    sums = {layer: symmetric(1024, layer) for layer in range(6)}
    sizes = [sum(rows.nbytes for rows in piece.values()) for piece in cut(sums, most=6, piece_bytes=1)]
    assert len(sizes) == 6 and max(sizes) < 1.35 * min(sizes)
    assert len(cut(sums, most=100, piece_bytes=8 * 2**20)) == 3, "28 MB of halves"
    assert len(cut(sums, most=2, piece_bytes=8 * 2**20)) == 2
    assert [rows.shape for piece in cut({1: np.zeros((0, 9))}) for rows in piece.values()] == [(0, 0)]


# ---------------------------------------------------------------- who is asked for how much


def finish(run: _Run, block: int, tokens: int) -> None:
    run.finished[block] = (BlockInfo(block, tokens, (), 0.1), ())


def test_a_budget_in_sequences_is_shared_out_to_the_last_one():
    run = _Run(job(sequences=10, units_per_block=2), None)  # six a block
    assert run.total_blocks() == 2
    assert [run.sequences_for(block) for block in range(2)] == [6, 4]
    run.next_block = 2
    assert not run.wants_more() and not run.complete()
    run.released = 2
    assert run.complete()


def test_a_budget_in_tokens_asks_for_what_is_likely_to_count():
    run = _Run(job(sequences=None, tokens=100), None)
    assert run.total_blocks() is None and run.sequences_for(9) == 3
    run.next_block = 3
    assert run.wants_more()  # nothing is known of a block's size
    finish(run, 0, 40)
    run.released, run.tokens = 1, 40
    assert not run.wants_more()  # two blocks are under way, 40 tokens each: 120
    finish(run, 1, 10)
    run.released, run.tokens = 2, 50
    assert run.wants_more()  # one block of about 25 is under way
    run.tokens = 100
    assert run.complete()


def test_progress_counts_what_is_finished_and_never_more_than_all():
    run = _Run(job(sequences=None, tokens=100), None)
    nothing = _progress(run, 0.0)
    assert (nothing.tokens, nothing.share, nothing.seconds_left) == (0, 0.0, None)
    finish(run, 0, 25)
    some = _progress(run, 2.0)
    assert (some.tokens, some.share, some.tokens_per_second, some.seconds_left) == (25, 0.25, 12.5, 6.0)
    finish(run, 1, 200)
    assert _progress(run, 2.0).share == 1.0 and _progress(run, 2.0).seconds_left == 0.0


def test_the_tensors_of_a_version_are_left_alone(spec, role):
    worker = UnitWorker(spec, role)
    weight = load_model(spec.name).weight(1) + 0.5
    kept = weight.clone()
    worker.block(job(version="v1"), 0, 3, {1: weight})
    assert torch.equal(weight, kept)
