"""`model.parallel` in the configuration."""

from __future__ import annotations

import pytest

from errata.actors.settings import ParallelConfig, RayConfig, RoleConfig
from errata.editing.errors import UserError
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import identity_of

PLAIN = {
    "model": {"name": "m"},
    "editor": {"type": "memit", "layers": [1]},
    "stream": {"path": "hub:facts"},
    "covariance": {"tokens": 9},
}


def with_model(**changes: object) -> dict:
    return {**PLAIN, "model": {"name": "m", **changes}}


def test_it_reaches_the_actors_and_is_part_of_what_decides_the_results() -> None:
    config = build_config(with_model(parallel={"kind": "deepspeed", "size": 3}))
    assert config.model_spec("d").parallel == ParallelConfig(size=3)
    assert config.identity() != build_config(PLAIN).identity()


def test_a_run_of_before_goes_on_without_it() -> None:
    plain = build_config(PLAIN).dump()
    older = {**plain, "model": {key: value for key, value in plain["model"].items() if key != "parallel"}}
    assert "parallel" not in older["model"]
    assert identity_of(older) == identity_of(plain)


@pytest.mark.parametrize(
    ("parallel", "complaint"),
    [
        ({"kind": "megatron", "size": 2}, "deepspeed"),
        ({"size": 1}, "greater than or equal to 2"),
        ({"size": 2, "ranks": 2}, "ranks"),
    ],
)
def test_what_does_not_fit_is_refused(parallel: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build_config(with_model(parallel=parallel))


def test_editors_that_need_whole_maps_are_refused() -> None:
    data = {**with_model(parallel={"size": 2}), "editor": {"type": "ft_l", "layers": [1]}}
    with pytest.raises(UserError, match="'ft_l' needs each edited map whole"):
        build_config(data)


def test_a_local_ray_has_room_for_every_rank() -> None:
    config = RayConfig(generation_workers=2, evaluation_workers=1, retrieval=RoleConfig(num_cpus=0.5))
    assert config.local_cpus(3) == 3 * (2 + 1 + 1) + 0.5 + 1
