"""The live version on a sampling server: there while an estimate runs, gone afterwards, whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.actors.workers.covariance import Estimate, EstimateJob
from errata.editing.covariance import KeyCovariance
from errata.editing.errors import ErrataError, UserError
from errata.editing.estimation.sampling_server import SamplingServerConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.sampling import EVENT, LiveSampling
from tests.helpers.small_run import SmallRun, make_run
from tests.helpers.vllm_like import VllmLike


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def run(made: SmallRun, tmp_path: Path) -> SmallRun:
    shutil.copytree(made.directory, tmp_path / "run")
    return SmallRun(tmp_path / "run", made.model, made.weights, made.versions)


@pytest.fixture
def server() -> Iterator[VllmLike]:
    server = VllmLike(lambda path, prompt: "")
    yield server
    server.close()


class Estimator:
    """Remembers under which name it was to sample, and what the server held then."""

    def __init__(self, server: VllmLike) -> None:
        self.server, self.failure = server, ErrataError("given up")
        self.fails = False
        self.seen: list[tuple[str | None, dict[str, str]]] = []

    def estimate(self, job: EstimateJob, weights: Any, progress: Any = None, stop: Any = None) -> Estimate:
        name = None if job.generation.server is None else job.generation.server.model
        self.seen.append((name, dict(self.server.adapters)))
        assert all((Path(path) / "adapter_model.safetensors").is_file() for path in self.server.adapters.values())
        if self.fails:
            raise self.failure
        return Estimate(KeyCovariance.identity({0: 4}), (), 0.0, 0)


def estimate(
    run: SmallRun, server: VllmLike, version: str, estimator: Estimator, *, plain: bool = False, **settings: Any
) -> list[str]:
    """One estimate of a version; the events that came of it."""
    with Journal.open(run.directory / "journal.sqlite") as journal:
        before = len(journal.events(EVENT))
        asked = None if plain else SamplingServerConfig(url=server.url + "/", model="base-model")
        found = journal.find_version(version)
        job = EstimateJob(generation=SelfGenerationConfig(server=asked), layers=(0,), tokens=10, version=found.digest)
        try:
            LiveSampling(estimator, PublishConfig(**settings), journal, run.store()).estimate(job, {})
        finally:
            events = [event.data for event in journal.events(EVENT)][before:]
        assert all(event["version"] == found.digest and event["server"] == server.url for event in events)
        return [event["what"] for event in events]


def test_a_version_is_loaded_for_its_estimate_and_unloaded_after(run: SmallRun, server: VllmLike) -> None:
    estimator = Estimator(server)
    assert estimate(run, server, "v2", estimator) == ["loading", "unloaded"]
    [(name, adapters)] = estimator.seen
    assert name is not None and name.startswith("errata-sampling-v2-") and list(adapters) == [name]
    assert adapters[name].startswith(str(run.directory / "adapters" / "sampling" / "v2-"))
    assert server.adapters == {} and not Path(adapters[name]).exists()


def test_what_the_server_holds_anyway_is_not_loaded(run: SmallRun, server: VllmLike) -> None:
    estimator = Estimator(server)
    assert estimate(run, server, "v0", estimator) == [] and estimator.seen == [("base-model", {})]
    assert estimate(run, server, "v2", estimator, plain=True) == [] and estimator.seen[1] == (None, {})
    assert not server.calls


def test_an_estimate_that_fails_leaves_nothing_behind_and_a_killed_one_is_cleared_away(
    run: SmallRun, server: VllmLike, tmp_path: Path
) -> None:
    estimator = Estimator(server)
    estimator.fails = True
    with pytest.raises(ErrataError, match="given up"):
        estimate(run, server, "v2", estimator)
    left = estimator.seen[0][0]
    assert server.adapters == {} and left is not None
    # an adapter of a run that was killed, one that clients use, and one of another run
    server.adapters |= {left: "gone", "errata": str(tmp_path), "errata-sampling-v2-00000000": str(tmp_path)}
    estimator.fails = False
    (tmp_path / "adapter_model.safetensors").touch()
    assert estimate(run, server, "v3", estimator) == ["loading", "unloaded"]
    assert set(server.adapters) == {"errata", "errata-sampling-v2-00000000"}
    assert left not in estimator.seen[1][1] and "gone" not in estimator.seen[1][1].values()


def test_a_server_that_does_not_take_it_is_an_error_before_anything_is_sampled(run: SmallRun, server: VllmLike) -> None:
    estimator = Estimator(server)
    server.max_rank = 1
    with pytest.raises(ErrataError, match="greater than max_lora_rank 1"):
        estimate(run, server, "v2", estimator)
    with pytest.raises(UserError, match="v2 does not fit into rank 1"):
        estimate(run, server, "v2", estimator, max_rank=1)
    assert not estimator.seen and server.adapters == {}


def test_where_the_server_sees_the_adapters_elsewhere(run: SmallRun, server: VllmLike, tmp_path: Path) -> None:
    (tmp_path / "mnt").symlink_to(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    estimator = Estimator(server)
    estimate(run, server, "v2", estimator, adapters=str(tmp_path / "shared"), adapters_on_server=str(tmp_path / "mnt"))
    [path] = estimator.seen[0][1].values()
    assert path.startswith(str(tmp_path / "mnt" / "sampling" / "v2-"))


def test_a_run_may_be_resumed_with_its_server_elsewhere(run: SmallRun) -> None:
    def settings(**server: Any) -> RunConfig:
        data = {
            "model": {"name": str(run.model)},
            "editor": {"type": "alphaedit", "layers": [1]},
            "stream": {},
            "covariance": {"tokens": 10, "server": {"url": "http://a", "model": "base", **server}},
        }
        return build_config(data)

    assert settings().identity() == settings(url="http://b:1", parallel=3, retries=0).identity()
    assert settings().identity() != settings(model="another").identity()
