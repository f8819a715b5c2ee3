"""The Helm chart, rendered by Helm itself: by default it is the kustomize base, and its values do what they say."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.helpers.k8s.objects import K8S, Object, find, name_of, of_kind, pods
from tests.unit.k8s.test_manifests import CHECKS

CHART = K8S / "helm" / "errata"
helm = pytest.importorskip("helm_python", reason="Helm's own engine (helm-python-sdk) is not installed here")


def render(values: Object | None = None) -> list[Object]:
    """Objects of the chart as Helm makes them, in the namespace errata."""
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values or {})
        texts = chart.render(values or {}, name="errata", namespace="errata")
    rendered = [thing for text in texts.values() for thing in yaml.safe_load_all(text) if thing]
    assert rendered
    return rendered


def plain(thing: Object) -> Object:
    """An object without what the two ways name differently: hashed names, the mark of a configuration, its text."""
    thing = copy.deepcopy(thing)
    text = re.sub(r"(errata-(?:config|backup))-[a-z0-9]{10}\b", r"\1", json.dumps(thing))
    thing = json.loads(text)
    if thing["kind"] == "Deployment":
        annotations = thing["spec"]["template"]["metadata"].pop("annotations", {})
        assert set(annotations) <= {"checksum/run"}
    if thing["kind"] == "ConfigMap" and "run.yaml" in thing["data"]:
        thing["data"]["run.yaml"] = yaml.safe_load(thing["data"]["run.yaml"])
    return thing


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_generator", K8S / "helm" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_templates_are_what_the_base_makes_them(script: ModuleType, objects: Any) -> None:
    objects("base")  # skips where kubectl is not installed
    assert script.outdated() == []


def test_with_its_defaults_it_is_the_kustomize_base(objects: Any) -> None:
    base = {name_of(t): t for t in map(plain, objects("base")) if t["kind"] != "Namespace"}
    chart = {name_of(t): t for t in map(plain, render())}
    assert chart.keys() == base.keys()
    for name, thing in base.items():
        assert chart[name] == thing, name


@pytest.mark.parametrize(
    "values",
    [{}, {"monitoring": {"enabled": True}, "tls": {"enabled": True, "host": "facts.example.com"}}],
    ids=["defaults", "everything"],
)
def test_every_check_of_the_manifests_passes(values: Object, objects: Any, checks: Any) -> None:
    """Strict schemas, pod security, references, flows, commands, configurations: as for the kustomize builds."""
    namespace = find(objects("base"), "Namespace", "errata")
    rendered = [namespace, *render(values)]
    names = [name for name in CHECKS if name != "scope"]
    bad = {name: problems for name in names if (problems := checks[name](rendered))}
    assert not bad, json.dumps(bad, indent=1)
    if "ray kinds" in checks:
        assert checks["ray kinds"](rendered) == []


def test_helm_finds_nothing_to_complain_of() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [entry for entry in found["messages"] if entry["severity"] > 1] == []  # 1 is a remark: no icon


def test_what_everyone_sets_reaches_every_pod() -> None:
    rendered = render(
        {
            "image": {"repository": "registry.example.com/errata", "tag": "0.1.0-cuda", "pullSecrets": ["registry"]},
            "nodeSelector": {"pool": "models"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "storage": {"className": "fast"},
            "secrets": {"tokens": "my-tokens", "redis": "my-redis"},
            "run": {"model": {"name": "/var/lib/errata/shared/models/mine"}},
        }
    )
    found = pods(rendered)
    assert len(found) >= 7
    for pod in found:
        assert pod.spec["imagePullSecrets"] == [{"name": "registry"}], pod.where
        assert pod.spec["nodeSelector"] == {"pool": "models"} and pod.spec["tolerations"], pod.where
    images = {c["image"] for pod in found for c in pod.containers}
    assert {image for image in images if "errata" in image} == {"registry.example.com/errata:0.1.0-cuda"}
    claims = of_kind(rendered, "PersistentVolumeClaim")
    assert len(claims) == 3 and all(claim["spec"]["storageClassName"] == "fast" for claim in claims)
    text = json.dumps(rendered)
    assert "my-tokens" in text and "my-redis" in text and '"errata-tokens"' not in text
    config = yaml.safe_load(find(rendered, "ConfigMap", "errata-config")["data"]["run.yaml"])
    assert config["model"]["name"].endswith("/mine") and config["schedule"] == "asap"


def test_a_changed_configuration_makes_a_new_pod() -> None:
    def checksum(values: Object) -> str:
        pod = find(render(values), "Deployment", "errata-orchestrator")["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/run"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"run": {"batching": {"size": 3}}})


@pytest.mark.parametrize(
    "values",
    [
        {"imge": {}},
        {"image": {"tag": "latest"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"storage": {"state": {"size": "50Gi", "accessMode": "ReadWriteMany"}}},
        {"storage": {"shared": {"size": "much"}}},
        {"ray": {"editor": {"maxReplicas": 2}}},
        {"ray": {"cpu": {"maxReplicas": "4"}}},
        {"run": {"model": {"name": ""}}},
        {"monitoring": {"enabled": "yes"}},
    ],
)
def test_a_value_that_does_not_fit_is_refused(values: Object) -> None:
    with pytest.raises(helm.HelmError):
        render(values)
