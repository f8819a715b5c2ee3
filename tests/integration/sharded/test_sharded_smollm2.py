"""A real model in two parts: the same words, the same gradients, the same effect of an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from errata.actors.settings import ModelSpec, ParallelConfig, RayConfig, RoleConfig
from errata.actors.sharded.client import ShardedModel
from errata.actors.sharded.worker import ModelWorker
from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = ["The mother tongue of Danielle Darrieux is", "The capital of Italy is the city of"]
REQUEST = EditRequest(
    id="1", subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="English", target_true="French"
)
VALUES = ValueConfig(lr=0.5, steps=12, clamp=0.75, weight_decay=0.5)


def test_smollm2_in_two_parts_is_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """Nine heads in three groups: one rank holds two of them, the other one."""
    whole = load_model(str(smollm2))
    plain = ModelWorker(whole)
    spec = ModelSpec(name=str(smollm2), digest=whole.digest, parallel=ParallelConfig(size=2, timeout_seconds=120))
    sharded = ShardedModel(RayConfig(), spec, RoleConfig(num_cpus=1))
    try:
        before = sharded.generate(PROMPTS, max_new_tokens=12)
        assert before == plain.generate(PROMPTS, 12)
        want = plain.logits(PROMPTS[0])
        assert float((sharded.logits(PROMPTS[0]) - want).norm()) < 1e-4 * float(want.norm())
        sums, tokens = plain.second_moments(PROMPTS, (5,))
        found, count = sharded.second_moments(PROMPTS, (5,))
        assert count == tokens
        assert float((found[5] - sums[5]).norm()) < 1e-5 * float(sums[5].norm())
        [value] = plain.optimize_values([REQUEST], 8, ("",), VALUES)
        [got] = sharded.optimize_values([REQUEST], layer=8, contexts=("",), config=VALUES)
        assert float((got.delta - value.delta).norm()) < 1e-2 * float(value.delta.norm())
        assert (got.steps, got.converged) == (value.steps, value.converged)

        config = AlphaEditConfig(layers=(6, 7, 8), tau=2.0, values=VALUES)
        session = EditSession(whole, make_editor(config), KeyCovariance.identity(dict.fromkeys((6, 7, 8), 1536)), ("",))
        base = session.weights()
        delta = session.apply(EditBatch(sequence=1, requests=(REQUEST,))).delta
        assert delta is not None
        sharded.apply(delta)
        assert sharded.generate(PROMPTS, max_new_tokens=12) == plain.generate(PROMPTS, 12) != before
        for layer, weight in session.weights().items():
            assert torch.equal(sharded.weights((layer,))[layer], weight)
        sharded.export(tmp_path / "edited")
        assert ModelWorker(load_model(str(tmp_path / "edited"))).generate(PROMPTS, 12) == plain.generate(PROMPTS, 12)
        sharded.undo()
        for layer, weight in base.items():
            assert torch.equal(sharded.weights((layer,))[layer], weight)
        assert sharded.generate(PROMPTS, max_new_tokens=12) == before
        assert sharded.revivals == 0
    finally:
        sharded.close()
    assert ray.is_initialized()
