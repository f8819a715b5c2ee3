"""The composition for one machine: parsed strictly, and everything that one part says of another is true."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
import yaml

from tests.helpers.k8s.objects import K8S, ROOT

FOLDER = K8S / "compose"


@pytest.fixture(scope="module")
def composition() -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return plain


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("stop_grace_period: 10m", "stop_grace_period: soon"),
        ("condition: service_healthy", "condition: service_happy"),
        ("source: run\n", "source: runn\n"),
        ("secrets: [tokens]", "secrets: [token]"),
    ],
)
def test_it_parses_strictly_and_a_mistake_is_caught(good: str, bad: str) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed here")
    text = (FOLDER / "compose.yaml").read_text()

    def check(given: str) -> None:
        # merges of YAML (<<) are the reader's part
        parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(given)))
        parsed.validate()
        for names in (parsed.validate_configs, parsed.validate_secrets):
            names()

    check(text)
    assert good in text
    with pytest.raises(Exception, match=r"."):
        check(text.replace(good, bad, 1))


def test_its_configuration_resolves_and_names_its_neighbors(composition: dict[str, Any], tmp_path: Any) -> None:
    from errata.orchestrator.config.loading import load_config

    config = load_config(str(FOLDER / "run.yaml"))
    assert config.schedule == "asap" and config.ray.address == "local"
    assert config.stream.redis is not None
    hosts = {re.sub(r"^\w+://([\w.-]+).*$", r"\1", url) for url in (config.stream.redis.url, config.tracking.uri or "")}
    assert hosts == {"redis", "mlflow"} <= set(composition["services"])
    assert config.covariance.store is not None and config.covariance.store.startswith("/var/lib/errata/shared")


def test_its_commands_are_commands(composition: dict[str, Any]) -> None:
    from errata.orchestrator.cli import app

    command = composition["services"]["errata"]["command"]
    assert command[0] == "errata"
    group: Any = typer.main.get_command(app)
    context = group.make_context("errata", list(command[1:]), resilient_parsing=True)
    assert group.resolve_command(context, list(command[1:]))[0] == "serve"
    serve = group.commands["serve"]
    parsed = serve.make_context("serve", list(command[2:])).params
    assert parsed["port"] == 8080 and parsed["host"] == "0.0.0.0"
    fetched = " ".join(composition["services"]["fetch"]["command"])
    config = yaml.safe_load((FOLDER / "run.yaml").read_text())
    assert f"errata models fetch {config['model']['name']}" in fetched and "all-minilm-l6-v2" in fetched


def test_what_it_mounts_is_there(composition: dict[str, Any]) -> None:
    services = composition["services"]
    assert all((FOLDER / entry["file"]).is_file() for entry in composition["configs"].values())
    ignored = (ROOT / ".gitignore").read_text()
    assert all(entry["file"].startswith("secrets/") for entry in composition["secrets"].values())
    assert "/k8s/compose/secrets/" in ignored
    for name, service in services.items():
        assert {entry["source"] for entry in service.get("configs", [])} <= set(composition["configs"]), name
        assert set(service.get("secrets", [])) <= set(composition["secrets"]), name
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in composition["volumes"] or (FOLDER / source).is_dir(), f"{name}: {mount}"
        assert set(service.get("depends_on", [])) <= set(services), name
    context = services["errata"]["build"]["context"]
    assert (FOLDER / context / services["errata"]["build"]["dockerfile"]).is_file()


def test_only_this_machine_reaches_it_and_nothing_runs_with_more_than_it_needs(composition: dict[str, Any]) -> None:
    for name, service in composition["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and not service["image"].endswith("latest"), name
        assert re.search(r":v?\d|@sha256:", service["image"]), name


def test_metrics_go_from_the_service_to_the_dashboard(composition: dict[str, Any]) -> None:
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"][0]
    ((host, port),) = [target.split(":") for target in scrape["static_configs"][0]["targets"]]
    command = composition["services"][host]["command"]
    assert port == command[command.index("--port") + 1]
    assert scrape["authorization"]["credentials_file"].endswith(composition["services"]["prometheus"]["secrets"][0])
    source = yaml.safe_load((FOLDER / "grafana" / "source.yaml").read_text())["datasources"][0]
    assert source["url"].split("//")[1].split(":")[0] in composition["services"]
    provider = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"][0]
    mounts = composition["services"]["grafana"]["volumes"]
    assert any(mount.split(":")[1] == provider["options"]["path"] for mount in mounts)


def test_redis_and_images_are_those_of_the_manifests(composition: dict[str, Any]) -> None:
    manifests = "".join(path.read_text() for path in (K8S / "base").glob("*.yaml"))
    manifests = re.sub(r"image: (\S+):\S+(@sha256:\w+)", r"image: \1\2", manifests)  # a composition names one of both
    for name in ("redis", "errata", "mlflow"):
        assert f"image: {composition['services'][name]['image']}\n" in manifests, name
