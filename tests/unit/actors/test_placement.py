"""What Ray is told about an actor, and which places are asked for before a run begins."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from errata.actors import placement
from errata.actors.placement import PlacedRole, Reservation, actor_options, bundle_of
from errata.actors.settings import RayConfig, RoleConfig
from errata.editing.errors import UserError

GPU = {"num_cpus": 4, "num_gpus": 1, "labels": {"errata.io/group": "gpu"}, "placement": "spread"}


def test_a_plain_role_asks_for_what_it_always_did():
    role = RoleConfig(num_cpus=0.5, resources={"big": 1})
    assert actor_options(role) == {"num_cpus": 0.5, "num_gpus": 0.0, "resources": {"big": 1}, "max_restarts": 0}


def test_labels_and_spreading_are_told():
    options = actor_options(RoleConfig.model_validate(GPU))
    assert options["label_selector"] == {"errata.io/group": "gpu"} and options["scheduling_strategy"] == "SPREAD"


def test_a_place_has_what_is_asked_for_and_nothing_empty():
    assert bundle_of(RoleConfig.model_validate(GPU)) == {"CPU": 4, "GPU": 1}
    assert bundle_of(RoleConfig(num_cpus=0, resources={"disk": 2})) == {"disk": 2}


@pytest.mark.parametrize("labels", [{"a b": "c"}, {"group": "not a value"}, {"/x": "y"}, {"x": "in()"}])
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(ValidationError, match="no label"):
        RayConfig.model_validate({"editor": {"labels": labels}})


@pytest.mark.parametrize("value", ["gpu", "!cpu", "in(a, b)", "H100"])
def test_values_may_be_denied_or_several(value):
    config = RayConfig.model_validate({"editor": {"labels": {"ray.io/accelerator-type": value}}})
    assert config.editor.labels["ray.io/accelerator-type"] == value


def test_nothing_is_reserved_unless_asked_for():
    config = RayConfig()
    assert Reservation(config).config is config
    asked = RayConfig(reserve=True)
    assert Reservation(asked, sharded=True).config is asked


def test_every_role_with_actors_gets_a_group_of_its_own():
    config = RayConfig.model_validate({"reserve": True, "generation": GPU, "evaluation_workers": 0})
    reserved = Reservation(config)
    groups = {role: getattr(reserved.config, role) for role in ("editor", "retrieval", "generation")}
    assert all(isinstance(role, PlacedRole) for role in groups.values())
    assert len({role.group for role in groups.values()}) == 3
    assert not isinstance(reserved.config.evaluation, PlacedRole)
    assert reserved.config.generation.num_gpus == 1 and reserved.config.generation.labels == GPU["labels"]


class _Group:
    def __init__(self, *arguments, **options):
        self.arguments, self.options = arguments, options

    def ready(self):
        return self


def test_no_room_is_said_with_what_was_wanted_and_nothing_stays_reserved(monkeypatch):
    made, removed = [], []

    def make(*arguments, **options):
        made.append(_Group(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(placement, "placement_group", make)
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement.ray, "wait", lambda groups, num_returns, timeout: (groups[:-1], groups[-1:]))
    config = RayConfig.model_validate({"reserve": True, "generation": GPU, "reserve_timeout_seconds": 5})
    reservation = Reservation(config)
    with pytest.raises(UserError, match=r"within 5 s for .*2 x generation .*errata.io/group"):
        reservation.take()
    assert removed == made and len(made) == 4
    generation = next(group for group in made if "generation" in group.arguments[2])
    assert generation.arguments[:2] == ([{"CPU": 4.0, "GPU": 1.0}] * 2, "SPREAD")
    assert generation.options["bundle_label_selector"] == [{"errata.io/group": "gpu"}] * 2
