"""A rank is killed in the middle of a call: the group is made again and the answer is the same."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from errata.actors.settings import ModelSpec, ParallelConfig, RayConfig, RoleConfig
from errata.actors.sharded.client import ShardedModel
from errata.editing.checkpoint.load import load_model
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig
from tests.helpers.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("local_ray")

REQUESTS = [EditRequest(id="1", subject="France", prompt="The capital of {} is", target_new="Rome")]
LONG = ValueConfig(lr=0.01, steps=400, stop_loss=0.0, weight_decay=0.0)
"""Some seconds on any machine."""


def change(seed: int) -> WeightDelta:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(48, 2, generator=generator), torch.randn(2, 50, generator=generator)
    return WeightDelta({1: LayerDelta("low_rank", 0.1 * left, 0.1 * right)}, "test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sharded") / "model", "llama", hidden=48, heads=6, inner=50)


@pytest.fixture(scope="module")
def sharded(checkpoint: Path, local_ray: None) -> Iterator[ShardedModel]:
    spec = ModelSpec(name=str(checkpoint), parallel=ParallelConfig(size=2, timeout_seconds=60))
    model = ShardedModel(RayConfig(), spec, RoleConfig(num_cpus=0.5), [change(1)])
    yield model
    model.close()


def process_of(model: ShardedModel, rank: int) -> int:
    return int(ray.get(model.actor.rank_actors[rank].pid.remote(), timeout=120)[1])


class Murder:
    """SIGKILL for a process while a call is under way; says whether the call was still running."""

    def __init__(self, pid: int, after: float) -> None:
        self.done = threading.Event()
        self.in_time = False
        self._thread = threading.Thread(target=self._kill, args=(pid, after))
        self._thread.start()

    def _kill(self, pid: int, after: float) -> None:
        time.sleep(after)
        self.in_time = not self.done.is_set()
        os.kill(pid, signal.SIGKILL)

    def join(self) -> None:
        self.done.set()
        self._thread.join()
        assert self.in_time, "the call was over before the rank was killed; make it longer"


@pytest.mark.slow
def test_a_rank_killed_during_value_optimization_changes_nothing(sharded: ShardedModel, checkpoint: Path) -> None:
    sharded.apply(change(2))
    want = sharded.optimize_values(REQUESTS, layer=2, contexts=("",), config=LONG)
    weights = sharded.weights((1,))
    whole = load_model(str(checkpoint))
    assert not torch.equal(weights[1], whole.weight(1))
    pid = process_of(sharded, 1)
    before = sharded.revivals
    murder = Murder(pid, after=0.4)
    got = sharded.optimize_values(REQUESTS, layer=2, contexts=("",), config=LONG)
    murder.join()
    assert sharded.revivals == before + 1
    # the new ranks have taken the deltas over, so that the same bits come out
    assert torch.equal(got[0].delta, want[0].delta)
    assert torch.equal(sharded.weights((1,))[1], weights[1])


def test_undo_reaches_the_bytes_of_the_checkpoint(sharded: ShardedModel, checkpoint: Path) -> None:
    while len(sharded.deltas):
        sharded.undo()
    assert torch.equal(sharded.weights((1,))[1], load_model(str(checkpoint)).weight(1))


def test_what_is_wrong_with_a_call_is_said_and_the_group_lives_on(sharded: ShardedModel) -> None:
    before = sharded.revivals
    with pytest.raises(UserError, match="layer 9 does not exist"):
        sharded.weights((9,))
    assert sharded.generate(["Rome lies in"], max_new_tokens=2)
    assert sharded.revivals == before


@pytest.mark.slow
def test_ranks_killed_between_calls_and_during_generation(sharded: ShardedModel) -> None:
    prompts = [f"Rome lies in {number}" for number in range(40)]
    want = sharded.generate(prompts, max_new_tokens=120)
    before = sharded.revivals
    os.kill(process_of(sharded, 0), signal.SIGKILL)
    time.sleep(1)
    assert sharded.generate(prompts, max_new_tokens=120) == want
    assert sharded.revivals == before + 1
    for rank in (1, 0):
        murder = Murder(process_of(sharded, rank), after=0.3)
        assert sharded.generate(prompts, max_new_tokens=120) == want
        murder.join()
    assert sharded.revivals == before + 3


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up(checkpoint: Path) -> None:
    spec = ModelSpec(name=str(checkpoint), parallel=ParallelConfig(size=2, timeout_seconds=10))
    model = ShardedModel(RayConfig(), spec, RoleConfig(num_cpus=0.5))
    pid = process_of(model, 1)
    try:
        want = model.generate(["Rome lies in"], max_new_tokens=5)
        os.kill(pid, signal.SIGSTOP)
        # one that waits for it longer than it must runs into the test's own time limit
        assert model.generate(["Rome lies in"], max_new_tokens=5) == want
        assert model.revivals == 1
    finally:
        model.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # a stopped process may outlive its actor


@pytest.mark.slow
def test_a_missing_model_is_said_once(tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tmp_path / "nowhere"), parallel=ParallelConfig(size=2))
    model = ShardedModel(RayConfig(), spec, RoleConfig(num_cpus=0.5))
    try:
        with pytest.raises(UserError, match="nowhere"):
            model.generate(["Rome"], max_new_tokens=1)
    finally:
        model.close()
