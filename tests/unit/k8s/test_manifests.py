"""Every overlay and job passes every check, offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.helpers.k8s import schemas
from tests.helpers.k8s.objects import K8S, KUBECTL, build, cluster_specs, find, of_kind, pods
from tests.unit.k8s.conftest import JOBS, SERVICES, crds

CHECKS = (
    "core kinds",
    "pod templates",
    "images",
    "resources",
    "volumes",
    "pod security",
    "secrets",
    "probes",
    "single writer",
    "ray clusters",
    "ray jobs",
    "versions",
    "references",
    "services",
    "selectors",
    "scope",
    "rbac",
    "policies",
    "flows",
    "commands",
    "configurations",
    "metrics",
)
OF_THE_SERVICE = {"PersistentVolumeClaim", "ServiceAccount", "PriorityClass"}
"""What jobs use of the service that they are laid upon."""


def beneath(objects, name):
    """A job's objects, with what it finds in its namespace."""
    found = objects(name)
    if name in JOBS:
        service = [thing for thing in objects("overlays/cluster") if thing["kind"] in OF_THE_SERVICE]
        found += service
    return found


@pytest.mark.parametrize("name", [*SERVICES, *JOBS])
def test_every_check_passes(name, objects, checks):
    these = beneath(objects, name)
    bad = {check: problems for check in CHECKS if (problems := checks[check](these))}
    assert not bad, json.dumps(bad, indent=1)


@pytest.mark.parametrize("name", [*SERVICES, *JOBS])
def test_kinds_of_ray_fit_the_definitions_of_kuberay(name, objects, checks):
    if crds() is None:
        pytest.skip("KubeRay's definitions are not beside the checkout (../shared/data/crds)")
    assert checks["ray kinds"](objects(name)) == []


def test_the_validator_says_what_kubernetes_validate_says(objects):
    from kubernetes_validate import ValidationError, validate

    deployment = find(objects("base"), "Deployment", "errata-orchestrator")
    assert validate(deployment, schemas.NEWEST, strict=True) == schemas.NEWEST
    assert schemas.core_problems(deployment, schemas.NEWEST) == []
    deployment["spec"]["replica"] = 1
    with pytest.raises(ValidationError):
        validate(deployment, schemas.NEWEST, strict=True)
    assert len(schemas.core_problems(deployment, schemas.NEWEST)) == 1


def test_every_directory_with_a_kustomization_is_tested(objects):
    found = {str(p.parent.relative_to(K8S)) for p in K8S.rglob("kustomization.yaml")}
    used = {line for name in (*SERVICES, *JOBS) for line in _components(name)}
    assert found == {*SERVICES, *JOBS} | used


def _components(name):
    import yaml

    listed = yaml.safe_load((K8S / name / "kustomization.yaml").read_text()).get("components", [])
    return [str((K8S / name / one).resolve().relative_to(K8S)) for one in listed]


def test_the_topology_is_what_the_pages_promise(objects):
    cluster = find(objects("overlays/cluster"), "RayCluster", "errata")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "editor", "gpu"}
    assert cluster["autoscalerOptions"]["version"] == "v2" and cluster["gcsFaultToleranceOptions"]["redisAddress"]
    assert (groups["editor"]["minReplicas"], groups["editor"]["maxReplicas"]) == (1, 1)
    assert groups["gpu"]["maxReplicas"] > groups["gpu"]["minReplicas"] == 0
    for name in ("editor", "gpu"):
        assert groups[name]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    redis = find(objects("base"), "StatefulSet", "errata-redis")["spec"]["template"]["spec"]["containers"][0]
    assert "--appendonly yes" in redis["args"][0]


def test_the_local_overlay_asks_for_no_gpu_and_fits_a_small_machine(objects):
    from tests.helpers.k8s.pod_rules import quantity

    local = objects("overlays/local")
    running = [pod for pod in pods(local) if pod.owner["kind"] not in ("Job", "CronJob")]
    limits = [c["resources"] for pod in running for c in pod.spec["containers"]]
    assert not any("gpu" in key for part in limits for key in part["limits"])
    assert sum(quantity(part["requests"]["cpu"]) for part in limits) <= 7
    assert sum(quantity(part["requests"]["memory"]) for part in limits) <= 20 * 2**30


def test_a_server_takes_the_manifests(objects):
    kubeconfig = os.environ.get("ERRATA_TEST_KUBECONFIG")
    if not kubeconfig:
        pytest.skip("ERRATA_TEST_KUBECONFIG names no cluster to try the manifests on")
    base = [str(KUBECTL), "--kubeconfig", kubeconfig]
    # what is in a namespace cannot be tried before the namespace is there
    space = {"apiVersion": "v1", "kind": "List", "items": of_kind(objects("overlays/local"), "Namespace")}
    made = subprocess.run([*base, "apply", "-f", "-"], input=json.dumps(space), text=True, capture_output=True)
    assert made.returncode == 0, made.stderr
    tried = subprocess.run(
        [*base, "apply", "--server-side", "--dry-run=server", "-k", str(K8S / "overlays" / "local")],
        text=True,
        capture_output=True,
    )
    assert tried.returncode == 0, tried.stderr


@pytest.mark.parametrize("name", [*SERVICES, *JOBS])
def test_every_ray_wants_a_token_and_who_joins_one_has_it(name, objects):
    these = objects(name)
    for owner, spec in cluster_specs(these):
        assert spec["authOptions"] == {"mode": "token", "secretName": "errata-ray"}, owner["metadata"]["name"]
    for pod in pods(these):
        for container in pod.containers:
            given = {one["name"]: one for one in container.get("env", [])}
            if container["name"] == "orchestrator":
                assert given["RAY_AUTH_MODE"]["value"] == "token"
            if "RAY_AUTH_MODE" in given:
                source = given["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
                assert source == {"name": "errata-ray", "key": "auth_token"}, container["name"]


def test_what_everyone_sets_is_in_one_folder_and_reaches_every_pod(tmp_path):
    """The overlay to copy, copied: its settings, its image and its run, with the API under a host of one's own."""
    import yaml

    mine = tmp_path / "ours"
    shutil.copytree(K8S / "overlays" / "mine", mine)
    there = os.path.relpath(K8S, mine.resolve())
    kustomization = (mine / "kustomization.yaml").read_text().replace("../../", f"{there}/")
    tls = f"components:\n  - {there}/components/tls\n"
    kustomization = kustomization.replace("components:\n", tls).replace("registry.example.com", "registry.ours")
    (mine / "kustomization.yaml").write_text(kustomization)
    settings = yaml.safe_load((mine / "settings.yaml").read_text())
    values = {
        "storageClass": "fast",
        "sharedAccessMode": "ReadWriteOnce",
        "sharedSize": "7Gi",
        "stateSize": "9Gi",
        "pullSecret": "ours",
        "nodePool": "models",
        "tokensSecret": "our-tokens",
        "host": "facts.ours",
    }
    assert settings["data"].keys() == values.keys()
    settings["data"] = values
    (mine / "settings.yaml").write_text(yaml.safe_dump(settings))
    (mine / "run.yaml").write_text((mine / "run.yaml").read_text().replace("smollm2-135m-instruct", "ours/model"))
    built = build(mine)
    found = pods(built)
    assert len(found) >= 8
    for pod in found:
        assert pod.spec["nodeSelector"]["errata.io/pool"] == "models", pod.where
    images = {c["image"] for pod in found for c in pod.containers if "errata" in c["image"]}
    assert images == {"registry.ours/errata:0.1.0-cpu"}
    accounts = of_kind(built, "ServiceAccount")
    assert accounts and all(account["imagePullSecrets"] == [{"name": "ours"}] for account in accounts)
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in of_kind(built, "PersistentVolumeClaim")}
    assert all(claim["storageClassName"] == "fast" for claim in claims.values())
    shared, state = claims["errata-shared"], claims["errata-state"]
    assert shared["accessModes"] == ["ReadWriteOnce"] and shared["resources"]["requests"]["storage"] == "7Gi"
    assert state["resources"]["requests"]["storage"] == "9Gi"
    (ingress,) = of_kind(built, "Ingress")
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["facts.ours"]
    assert ingress["spec"]["tls"][0]["hosts"] == ["facts.ours"]
    text = json.dumps(built)
    assert "our-tokens" in text and "ours/model" in text
    assert not any(default in text for default in ("errata.example", "registry.example", "smollm2", '"errata-tokens"'))
