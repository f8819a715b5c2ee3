"""Places of groups of ranks: who gets which reserved group, and what is asked of the cluster."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from errata.actors import placement
from errata.actors.placement import PlacedRole
from errata.actors.settings import RayConfig, RoleConfig
from errata.actors.sharded import places
from errata.actors.sharded.places import GroupPool, RankPlaces, RankReservation, RanksRole, make_places, plain
from errata.editing.errors import UserError

GPU: dict[str, Any] = {"num_cpus": 4, "num_gpus": 1, "labels": {"errata.io/group": "gpu"}}
ASKED = {"reserve": True, "reserve_timeout_seconds": 5, "generation": GPU, "evaluation_workers": 0}


class _Group(SimpleNamespace):
    def ready(self) -> _Group:
        return self


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What was made and removed, by name where there is one."""
    seen = SimpleNamespace(made=[], removed=[])

    def make(bundles: Any, strategy: str = "PACK", name: str = "", bundle_label_selector: Any = None) -> _Group:
        seen.made.append(_Group(bundles=bundles, strategy=strategy, name=name, labels=bundle_label_selector))
        return seen.made[-1]

    for module in (placement, places):
        monkeypatch.setattr(module, "placement_group", make)
        monkeypatch.setattr(module, "remove_placement_group", seen.removed.append)
    monkeypatch.setattr(places, "get_placement_group", lambda name: next(g for g in seen.made if g.name == name))
    return seen


def test_the_ranks_of_a_group_lie_together_unless_they_are_to_be_spread(cluster: SimpleNamespace) -> None:
    together = make_places(RoleConfig.model_validate(GPU), 2)
    assert together == _Group(
        bundles=[{"CPU": 4, "GPU": 1}] * 2, strategy="PACK", name="", labels=[{"errata.io/group": "gpu"}] * 2
    )
    apart = make_places(RoleConfig(num_cpus=0, placement="spread"), 3)
    assert (apart.strategy, len(apart.bundles), apart.labels) == ("SPREAD", 3, None)
    assert all(bundle for bundle in apart.bundles)


def test_nothing_is_reserved_unless_asked_for() -> None:
    config = RayConfig()
    assert RankReservation(config, 2).config is config


def test_every_copy_of_the_model_has_a_group_of_its_own(cluster: SimpleNamespace, monkeypatch: Any) -> None:
    monkeypatch.setattr(placement.ray, "wait", lambda groups, num_returns, timeout: (groups, []))
    reservation = RankReservation(RayConfig.model_validate(ASKED), 2)
    reservation.take()
    # two copies that generate and the editor's, of two ranks each; the memory has no model
    assert sorted(len(group.bundles) for group in cluster.made) == [1, 2, 2, 2]
    assert isinstance(reservation.config.retrieval, PlacedRole)
    generation = reservation.config.generation
    assert isinstance(generation, RanksRole)
    first, second = RankPlaces(generation, 2), RankPlaces(generation, 2)
    assert {first.group.name, second.group.name} == set(generation.pool.names)
    lost = first.group.name
    first.give_back()
    first.give_back()
    again, more = RankPlaces(generation, 2), RankPlaces(generation, 2)
    # the one that is made again has the places of the lost one; one more than reserved gets places of its own
    assert again.group.name == lost and more.group.name == "" and not cluster.removed
    more.give_back()
    assert cluster.removed == [more.group]
    reservation.give_back()
    assert len(cluster.removed) == len(cluster.made)


def test_no_room_is_said_with_what_a_copy_takes(cluster: SimpleNamespace, monkeypatch: Any) -> None:
    monkeypatch.setattr(placement.ray, "wait", lambda groups, num_returns, timeout: (groups[:-1], groups[-1:]))
    with pytest.raises(UserError, match=r"within 5 s for .*2 x generation .*; 3 such places for each copy"):
        RankReservation(RayConfig.model_validate(ASKED), 3).take()
    assert cluster.removed == cluster.made


def test_ranks_see_the_plain_role() -> None:
    role = RanksRole(**GPU, pool=GroupPool(["a"]))
    assert plain(role) == RoleConfig.model_validate(GPU) and type(plain(role)) is RoleConfig
    assert pickle.loads(pickle.dumps(plain(role))).num_gpus == 1
    assert plain("spec") == "spec"
