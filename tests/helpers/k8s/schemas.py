"""Strict schemas: Kubernetes' own kinds on two releases, Ray's from KubeRay's definitions."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

from tests.helpers.k8s.objects import Object, name_of, pods

OLDEST, NEWEST = "1.29", "1.37"
"""Releases of Kubernetes that the manifests are checked on; docs/kubernetes.md names them."""
RAY_KINDS = {"RayCluster", "RayJob"}
ELSEWHERE = ("monitoring.coreos.com/", "kueue.x-k8s.io/")
"""Groups of operators whose schemas are not at hand."""


@functools.lru_cache(maxsize=8)
def _folder(release: str) -> Any:
    return resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{release}.0-local-strict"


@functools.lru_cache(maxsize=8)
def _registry(release: str) -> Any:
    definitions = json.loads((_folder(release) / "_definitions.json").read_text())
    return Resource.from_contents(definitions) @ Registry()


@functools.lru_cache(maxsize=256)
def _validator(release: str, kind: str, api_version: str) -> Any:
    group, _, version = api_version.rpartition("/")
    file = f"{kind.lower()}-{group.split('.')[0] + '-' if group else ''}{version}.json"
    path = _folder(release) / file
    if not path.is_file():
        return None
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=_registry(release))


_seen: dict[tuple[str, str], list[str]] = {}
"""Answers by release and object: overlays share most of their objects, mutations nearly all."""


def core_problems(thing: Object, release: str) -> list[str]:
    """What Kubernetes of a release would refuse, or silently drop, of an object of its own kinds."""
    key = (release, json.dumps(thing, sort_keys=True))
    if key not in _seen:
        validator = _validator(release, thing.get("kind", ""), thing.get("apiVersion", ""))
        if validator is None:
            _seen[key] = [f"{name_of(thing)}: {thing.get('apiVersion')} is unknown to Kubernetes {release}"]
        else:
            _seen[key] = [f"{name_of(thing)} ({release}): {_said(error)}" for error in validator.iter_errors(thing)]
    return _seen[key]


def check_core_kinds(objects: Sequence[Object]) -> list[str]:
    """Objects of Kubernetes' own kinds fit the strict schemas of the oldest and the newest release."""
    own = [t for t in objects if t.get("kind") not in RAY_KINDS and not t.get("apiVersion", "").startswith(ELSEWHERE)]
    return [problem for thing in own for release in (OLDEST, NEWEST) for problem in core_problems(thing, release)]


def check_pod_templates(objects: Sequence[Object]) -> list[str]:
    """Every pod template would be taken as a Pod; an API server does not look into those of a RayCluster."""
    bad = []
    for pod in pods(objects):
        lifted = pod.as_pod()
        for release in (OLDEST, NEWEST):
            bad += [f"{pod.where}: {problem}" for problem in core_problems(lifted, release)]
        bad += [f"{pod.where}: no container" for _ in [0] if not pod.spec.get("containers")]
    return bad


def strict(schema: Object) -> Object:
    """An OpenAPI schema of a definition as a closed JSON schema.

    A required entry that has a default is not required: the API server fills it in before it looks.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-") and key != "format"}
    if "properties" in made:
        made["properties"] = {key: strict(value) for key, value in made["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(made["additionalProperties"])
    if isinstance(made.get("items"), dict):
        made["items"] = strict(made["items"])
    if "required" in made:
        known = schema.get("properties", {})
        made["required"] = [key for key in made["required"] if "default" not in known.get(key, {})]
    return made


@functools.lru_cache(maxsize=8)
def _ray_validator(directory: Path, kind: str) -> Any:
    path = directory / f"ray.io_{kind.lower()}s.v1.json.gz"
    definition = json.loads(gzip.decompress(path.read_bytes()))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    made = strict(schema)
    made["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(made)


def check_ray_kinds(objects: Sequence[Object], definitions: Path) -> list[str]:
    """Objects of Ray's kinds fit KubeRay's definitions, strictly."""
    bad = []
    for thing in objects:
        if thing.get("kind") in RAY_KINDS:
            errors = _ray_validator(definitions, thing["kind"]).iter_errors(thing)
            bad += [f"{name_of(thing)}: {_said(error)}" for error in errors]
    return bad


def _said(error: Any) -> str:
    return f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
