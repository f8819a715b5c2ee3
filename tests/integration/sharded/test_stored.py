"""A covariance in the object store: the same matrices, read by the rank that works with them and by nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from errata.actors.clients import EditorClient
from errata.actors.settings import ModelSpec, ParallelConfig, RayConfig, RoleConfig
from errata.actors.sharded import stored as storing
from errata.actors.sharded.stored import StoredCovariance, stored
from errata.actors.workers.editor import ContextSpec
from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.errors import UserError
from errata.editing.values import ValueConfig
from tests.helpers.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("local_ray")

WIDE = 3000
"""d_in: a matrix of 72 MB."""
MEGABYTE = 2**20


def covariance(width: int, layers: tuple[int, ...] = (1, 2)) -> KeyCovariance:
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(40, width, generator=generator, dtype=torch.float64)
    sums = {layer: keys.T @ keys + layer * torch.eye(width, dtype=torch.float64) for layer in layers}
    return KeyCovariance(sums, 40, {"kind": "random"}, SampleRecord(((1.0, 2),)))


def test_it_is_the_covariance_and_a_layer_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = covariance(200)
    kept = stored(plain)
    assert isinstance(kept, StoredCovariance) and stored(kept) is kept and stored("batch") == "batch"
    # as a rank gets it, from a reference to it
    kept = ray.get(ray.put(kept))
    read: list[Any] = []
    get = ray.get
    monkeypatch.setattr(storing.ray, "get", lambda reference: read.append(reference) or get(reference))
    assert (kept.digest, kept.tokens, kept.layers, kept.source) == (plain.digest, 40, (1, 2), plain.source)
    with pytest.raises(UserError, match="covers layers \\[1, 2\\], not layer 3"):
        kept.mean(3)
    assert 2 in kept.sums and len(kept.sums) == 2 and not read
    assert torch.equal(kept.mean(2), plain.mean(2)) and len(read) == 1


def own_memory(pid: int) -> int:
    """Bytes that belong to a process alone; what it reads of the object store is shared and does not count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.slow
def test_a_rank_that_factors_nothing_holds_nothing(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "model", "llama", hidden=48, heads=6, inner=WIDE)
    editor = MemitConfig(layers=(1,), cov_weight=2.0, values=ValueConfig(steps=1))
    spec = ModelSpec(name=str(checkpoint), parallel=ParallelConfig(size=2, timeout_seconds=120))
    history = [covariance(WIDE, (1,))]
    client = EditorClient(
        RayConfig(editor=RoleConfig(num_cpus=0.5)), spec, editor, ContextSpec(0, 1, 0, ("",)), lambda: history
    )
    try:
        pids = [int(ray.get(rank.pid.remote(), timeout=120)[1]) for rank in client.actor.rank_actors]
        assert client.map_widths() == {1: WIDE}
        before = [own_memory(pid) for pid in pids]
        client.restore()
        assert client.map_widths() == {1: WIDE}
        grown = [own_memory(pid) - start for pid, start in zip(pids, before, strict=True)]
    finally:
        client.close()
    matrix = 8 * WIDE**2
    # one rank has lambda C and its factor, the other neither these nor the covariance
    assert grown[0] > 1.9 * matrix
    assert grown[1] < 0.3 * matrix
    assert max(grown) < 3.5 * matrix
