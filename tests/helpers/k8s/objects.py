"""Manifests as plain objects: building them offline, and lifting every pod template out as a Pod."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"
"""Of this environment, pinned in requirements/lock.txt; never the machine's."""

Object = dict[str, Any]
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.lru_cache(maxsize=64)
def _rendered(directory: Path) -> str:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(directory)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 0:
        raise AssertionError(f"kubectl kustomize {directory}: {done.stderr.strip()}")
    return done.stdout


def build(directory: Path) -> list[Object]:
    """Objects of a kustomization, fresh ones each time so that a test may change them."""
    return [document for document in yaml.load_all(_rendered(directory), Loader=_Loader) if document]


def name_of(thing: Object) -> str:
    """``Kind/name`` for messages."""
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Objects of these kinds."""
    return [thing for thing in objects if thing.get("kind") in kinds]


def find(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    (found,) = [thing for thing in of_kind(objects, kind) if thing["metadata"]["name"] == name]
    return found


@dataclass(frozen=True)
class Pod:
    """A pod template with where it comes from."""

    where: str
    template: Object
    owner: Object
    ray: bool = False
    claims: tuple[str, ...] = ()
    """Names of the owner's volumeClaimTemplates."""

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template.get("metadata", {}).get("labels") or {})

    @property
    def spec(self) -> Object:
        return dict(self.template.get("spec") or {})

    @property
    def containers(self) -> list[Object]:
        """Init containers too."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    def as_pod(self) -> Object:
        """What an API server would be given."""
        metadata = {"name": "lifted", **self.template.get("metadata", {})}
        spec = dict(self.spec)
        if self.claims:
            claims = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in self.claims]
            spec["volumes"] = [*spec.get("volumes", []), *claims]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def cluster_specs(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """(owner, specification) of every Ray cluster, a job's own ones included."""
    for thing in of_kind(objects, "RayCluster", "RayJob"):
        spec = thing.get("spec", {})
        if thing["kind"] == "RayCluster":
            yield thing, spec
        elif "rayClusterSpec" in spec:
            yield thing, spec["rayClusterSpec"]


def pods(objects: Sequence[Object]) -> list[Pod]:
    """Every pod template there is."""
    found: list[Pod] = []
    for thing in of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        claims = tuple(claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", []))
        found.append(Pod(name_of(thing), thing["spec"].get("template", {}), thing, claims=claims))
    for thing in of_kind(objects, "CronJob"):
        found.append(Pod(name_of(thing), thing["spec"]["jobTemplate"]["spec"].get("template", {}), thing))
    for thing, spec in cluster_specs(objects):
        found.append(Pod(f"{name_of(thing)} head", spec["headGroupSpec"].get("template", {}), thing, ray=True))
        for group in spec.get("workerGroupSpecs", []):
            where = f"{name_of(thing)} {group.get('groupName')}"
            found.append(Pod(where, group.get("template", {}), thing, ray=True))
    for thing in of_kind(objects, "RayJob"):
        if "submitterPodTemplate" in thing["spec"]:
            found.append(Pod(f"{name_of(thing)} submitter", thing["spec"]["submitterPodTemplate"], thing))
    return found


def matches(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        value, wanted = labels.get(rule["key"]), rule.get("values", [])
        answer = {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not answer:
            return False
    return True
