"""Whatever is named exists: configuration, claims, accounts, services, labels; and nothing is in the wrong place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.helpers.k8s.objects import Object, cluster_specs, matches, name_of, of_kind, pods

SECRETS = {
    "errata-ray": {"auth_token"},
    "errata-redis": {"password"},
    "errata-tokens": {"tokens", "metrics"},
    "errata-postgres": {"password", "uri"},
    "errata-vllm": {"token"},
    "errata-hub": {"token"},
    "errata-tls": {"tls.crt", "tls.key"},
}
"""Secrets that the operator makes by hand, with their keys; docs/kubernetes.md has the commands."""
CLUSTER_WIDE = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor", "ClusterRole", "ClusterRoleBinding"}
NAMESPACE = "errata"


def walk(value: Any) -> Iterator[Object]:
    """Every mapping within."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def names(objects: Sequence[Object], kind: str) -> set[str]:
    """Names of a kind."""
    return {thing["metadata"]["name"] for thing in of_kind(objects, kind)}


def check_references(objects: Sequence[Object]) -> list[str]:
    """ConfigMaps with their keys, Secrets with theirs, claims, accounts, priorities."""
    maps = {thing["metadata"]["name"]: set(thing.get("data", {})) for thing in of_kind(objects, "ConfigMap")}
    claims, accounts = names(objects, "PersistentVolumeClaim"), names(objects, "ServiceAccount")
    priorities = names(objects, "PriorityClass")
    bad = []
    for pod in pods(objects):
        spec = pod.spec
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                bad += _missing(pod.where, "ConfigMap", volume["configMap"], "name", maps)
            if "secret" in volume:
                bad += _missing(pod.where, "Secret", volume["secret"], "secretName", SECRETS)
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                bad.append(f"{pod.where}: claim {claim} does not exist")
        for inner in walk(pod.template):
            if "secretKeyRef" in inner:
                bad += _missing_key(pod.where, "Secret", inner["secretKeyRef"], SECRETS)
            if "configMapKeyRef" in inner:
                bad += _missing_key(pod.where, "ConfigMap", inner["configMapKeyRef"], maps)
        if (account := spec.get("serviceAccountName")) not in accounts:
            bad.append(f"{pod.where}: account {account} does not exist")
        priority = spec.get("priorityClassName")
        if priority is not None and priority not in priorities:
            bad.append(f"{pod.where}: priority {priority} does not exist")
    for owner, spec in cluster_specs(objects):
        for inner in walk(spec.get("gcsFaultToleranceOptions", {})):
            if "secretKeyRef" in inner:
                bad += _missing_key(name_of(owner), "Secret", inner["secretKeyRef"], SECRETS)
    for monitor in of_kind(objects, "ServiceMonitor"):
        for inner in walk(monitor["spec"]):
            if "credentials" in inner:
                bad += _missing_key(name_of(monitor), "Secret", inner["credentials"], SECRETS)
    return bad


def _missing(where: str, kind: str, source: Object, key: str, known: dict[str, set[str]]) -> list[str]:
    name = source.get(key, "")
    if name not in known:
        return [f"{where}: {kind} {name} does not exist"]
    wanted = {item["key"] for item in source.get("items", [])}
    return [f"{where}: {kind} {name} has no key {lost}" for lost in sorted(wanted - known[name])]


def _missing_key(where: str, kind: str, reference: Object, known: dict[str, set[str]]) -> list[str]:
    name, key = reference.get("name", ""), reference.get("key", "")
    if name not in known:
        return [f"{where}: {kind} {name} does not exist"]
    return [] if key in known[name] else [f"{where}: {kind} {name} has no key {key}"]


def service_addresses(objects: Sequence[Object]) -> dict[str, set[int]]:
    """Host names within the namespace and their ports; a RayCluster's head service is made by KubeRay."""
    found = {
        thing["metadata"]["name"]: {port["port"] for port in thing["spec"].get("ports", [])}
        for thing in of_kind(objects, "Service")
    }
    for cluster in of_kind(objects, "RayCluster"):
        found[f"{cluster['metadata']['name']}-head-svc"] = {6379, 8265, 10001, 8080}
    return found


def check_services(objects: Sequence[Object]) -> list[str]:
    """Services lead to ports of pods that exist; addresses in the environment and ingresses name services that do."""
    bad, templates = [], pods(objects)
    for service in of_kind(objects, "Service"):
        where, selector = name_of(service), {"matchLabels": service["spec"].get("selector", {})}
        chosen = [pod for pod in templates if matches(selector, pod.labels)]
        if not chosen or not service["spec"].get("selector"):
            bad.append(f"{where}: selects no pod")
        if len({pod.where for pod in chosen}) > 1:
            bad.append(f"{where}: selects several kinds of pods: {[pod.where for pod in chosen]}")
        for pod in chosen:
            ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
            known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in known:
                    bad.append(f"{where}: {pod.where} has no port {port.get('targetPort', port['port'])}")
    known_services = service_addresses(objects)
    for ingress in of_kind(objects, "Ingress"):
        for inner in walk(ingress["spec"]):
            backend = inner.get("service", {})
            if "name" in backend:
                bad += _backend_problems(name_of(ingress), backend, objects)
            if "secretName" in inner and inner["secretName"] not in SECRETS:
                bad.append(f"{name_of(ingress)}: Secret {inner['secretName']} does not exist")
    for owner in of_kind(objects, "StatefulSet"):
        if owner["spec"].get("serviceName") not in known_services:
            bad.append(f"{name_of(owner)}: service {owner['spec'].get('serviceName')} does not exist")
    for where, address in _addresses(objects):
        host, _, port = address.rpartition(":")
        if host not in known_services or int(port) not in known_services[host]:
            bad.append(f"{where}: {address} is no service's address")
    return bad


def _backend_problems(where: str, backend: Object, objects: Sequence[Object]) -> list[str]:
    for service in of_kind(objects, "Service"):
        if service["metadata"]["name"] == backend["name"]:
            ports = service["spec"]["ports"]
            wanted = backend.get("port", {})
            if wanted.get("name") in {p.get("name") for p in ports} or wanted.get("number") in {
                p["port"] for p in ports
            }:
                return []
            return [f"{where}: service {backend['name']} has no port {wanted}"]
    return [f"{where}: service {backend['name']} does not exist"]


def _addresses(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    for owner, spec in cluster_specs(objects):
        address = spec.get("gcsFaultToleranceOptions", {}).get("redisAddress")
        if address:
            yield name_of(owner), address.removeprefix("redis://")
    for pod in pods(objects):
        for container in pod.containers:
            for entry in container.get("env", []):
                if entry["name"] == "ERRATA_RAY_HEAD":
                    yield pod.where, entry["value"]


def check_selectors(objects: Sequence[Object]) -> list[str]:
    """Selectors of workloads, disruption budgets and monitors take what they are meant for."""
    bad, templates = [], pods(objects)
    for owner in of_kind(objects, "Deployment", "StatefulSet"):
        labels = owner["spec"]["template"]["metadata"].get("labels", {})
        if not matches(owner["spec"]["selector"], labels):
            bad.append(f"{name_of(owner)}: does not select its own pods")
        others = [p for p in templates if p.owner is not owner and matches(owner["spec"]["selector"], p.labels)]
        bad += [f"{name_of(owner)}: selects {pod.where} too" for pod in others]
    for budget in of_kind(objects, "PodDisruptionBudget"):
        chosen = [pod for pod in templates if matches(budget["spec"].get("selector"), pod.labels)]
        if not chosen:
            bad.append(f"{name_of(budget)}: selects no pod")
        for pod in chosen:
            least = budget["spec"].get("minAvailable")
            if pod.ray and not isinstance(least, int):
                bad.append(f"{name_of(budget)}: pods of a RayCluster want a whole number in minAvailable")
            if isinstance(least, int) and least > _replicas(pod.owner, pod.labels):
                bad.append(f"{name_of(budget)}: {pod.where} has fewer than {least} pods")
    services = [thing["metadata"].get("labels", {}) for thing in of_kind(objects, "Service")]
    for monitor in of_kind(objects, "ServiceMonitor"):
        if not any(matches(monitor["spec"]["selector"], labels) for labels in services):
            bad.append(f"{name_of(monitor)}: selects no service")
    for monitor in of_kind(objects, "PodMonitor"):
        chosen = [pod for pod in templates if matches(monitor["spec"]["selector"], pod.labels)]
        wanted = {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
        for pod in chosen:
            ports = {port.get("name") for container in pod.containers for port in container.get("ports", [])}
            bad += [f"{name_of(monitor)}: {pod.where} has no port {port}" for port in sorted(wanted - ports)]
        if not chosen:
            bad.append(f"{name_of(monitor)}: selects no pod")
    return bad


def _replicas(owner: Object, labels: dict[str, str]) -> int:
    if owner["kind"] != "RayCluster":
        return int(owner["spec"].get("replicas", 1))
    for group in owner["spec"].get("workerGroupSpecs", []):
        if group["template"]["metadata"].get("labels", {}) == labels:
            return int(group.get("minReplicas", 0))
    return 1


def check_scope(objects: Sequence[Object]) -> list[str]:
    """All of it in one namespace, nothing cluster-wide in any; no name twice."""
    bad, seen = [], set()
    for thing in objects:
        space = thing["metadata"].get("namespace")
        if thing["kind"] in CLUSTER_WIDE:
            if space is not None:
                bad.append(f"{name_of(thing)}: of no namespace, has {space}")
        elif space != NAMESPACE:
            bad.append(f"{name_of(thing)}: in namespace {space}")
        if name_of(thing) in seen:
            bad.append(f"{name_of(thing)}: twice")
        seen.add(name_of(thing))
    return bad


def check_rbac(objects: Sequence[Object]) -> list[str]:
    """No wildcards, no rights over Secrets or beyond the namespace, roles that exist."""
    bad = [f"{name_of(t)}: rights beyond the namespace" for t in of_kind(objects, "ClusterRole", "ClusterRoleBinding")]
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            told = {*rule.get("apiGroups", []), *rule["resources"], *rule["verbs"]}
            if "*" in told or "secrets" in told or "pods/exec" in told:
                bad.append(f"{name_of(role)}: too much: {sorted(told)}")
    for binding in of_kind(objects, "RoleBinding"):
        if binding["roleRef"]["name"] not in names(objects, "Role"):
            bad.append(f"{name_of(binding)}: role {binding['roleRef']['name']} does not exist")
    return bad
