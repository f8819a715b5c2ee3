"""Versions in a real MLflow registry: registered once, found by an alias, readable by whoever fetches them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from typer.testing import CliRunner

from errata.editing.delta import WeightDelta
from errata.editing.errors import ErrataError, UserError
from errata.orchestrator.cli import app
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.registry import register_version
from errata.orchestrator.publish.rollout import EVENT
from tests.helpers.small_run import LAYERS, SmallRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return make_run(tmp_path_factory.mktemp("small"))


def publish(run: SmallRun, *arguments: object) -> Any:
    result = CliRunner().invoke(app, ["publish", *map(str, arguments), "--run", str(run.directory)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_versions_are_registered_once_and_the_alias_moves(run: SmallRun, tmp_path: Path) -> None:
    assert publish(run, "v2", "--alias", "champion").stdout == (
        "v2 registered as errata-small version 1, alias champion\n"
    )
    publish(run, "v3", "--alias", "champion")
    client = MlflowClient(f"sqlite:///{run.directory / 'mlflow.db'}")
    newest = client.get_model_version_by_alias("errata-small", "champion")
    assert newest.version == 2 or newest.version == "2"
    assert newest.tags["errata.version"] == run.versions[3] and newest.tags["errata.sequence"] == "3"
    # back to the older one: nothing is uploaded again
    assert "is already errata-small version 1" in publish(run, "v2", "--alias", "champion").stdout
    assert str(client.get_model_version_by_alias("errata-small", "champion").version) == "1"
    assert len(client.search_model_versions("name = 'errata-small'")) == 2
    uri = client.get_model_version_download_uri("errata-small", "1")
    fetched = Path(
        download_artifacts(uri, dst_path=str(tmp_path), tracking_uri=f"sqlite:///{run.directory / 'mlflow.db'}")
    )
    assert sorted(WeightDelta.load(fetched / "delta.safetensors").layers) == list(LAYERS)
    with run.journal() as journal:
        events = [event.data for event in journal.events(EVENT)]
    assert [(e["what"], e["sequence"], e["number"], e["alias"]) for e in events] == [
        ("registered", 2, "1", "champion"),
        ("registered", 3, "2", "champion"),
        ("registered", 2, "1", "champion"),
    ]
    adapter = publish(run, "v2", "--alias", "edge", "--format", "lora", "--name", "other").stdout
    assert adapter == "v2 registered as other version 1, alias edge\n"
    with pytest.raises(UserError, match="form 'x' is unknown; allowed: delta, lora, full"):
        publish(run, "v2", "--alias", "edge", "--format", "x")


def test_a_registry_that_does_not_answer_is_one_line(run: SmallRun) -> None:
    with Journal.open(run.directory / "journal.sqlite") as journal:
        before = len(journal.events(EVENT))
        version = journal.find_version("v2")
        with pytest.raises(ErrataError, match="the model registry"):
            register_version(
                journal, run.store(), version, run.directory, name="m", alias="a", uri="http://127.0.0.1:1"
            )
        assert len(journal.events(EVENT)) == before
