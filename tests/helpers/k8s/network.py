"""Network policies: their form, and what they come to, worked out as a cluster would."""

from __future__ import annotations

from collections.abc import Sequence

from tests.helpers.k8s.objects import Object, Pod, find, matches, name_of, of_kind, pods

OUTSIDE = {
    "kube-system": {"k8s-app": "kube-dns"},
    "kuberay-system": {"app.kubernetes.io/name": "kuberay-operator"},
    "monitoring": {"app.kubernetes.io/name": "prometheus"},
    "ingress-nginx": {"app.kubernetes.io/name": "ingress-nginx"},
}
"""Pods of other namespaces that policies may name."""
CLIENT_LABELS = ({"errata.io/api": "client"}, {"errata.io/vllm": "client"})
"""Labels that users put on pods of their own."""
FOR_ALL = {"deny-all", "dns"}
WITHOUT_PEER = {"ray-head"}
"""May lead to any address: that of the API server is not known here."""


def check_policies(objects: Sequence[Object]) -> list[str]:
    """Each policy takes pods that exist, names both ends, and ports that are there."""
    bad, templates = [], pods(objects)
    for policy in of_kind(objects, "NetworkPolicy"):
        where, spec = name_of(policy), policy["spec"]
        name = policy["metadata"]["name"]
        if not spec.get("podSelector") and name not in FOR_ALL:
            bad.append(f"{where}: for every pod")
        chosen = [pod for pod in templates if matches(spec.get("podSelector"), pod.labels)]
        if not chosen:
            bad.append(f"{where}: selects no pod")
        for side, peers in (("ingress", "from"), ("egress", "to")):
            if side in spec and side.capitalize() not in spec.get("policyTypes", []):
                bad.append(f"{where}: {side} is not among its types")
            for rule in spec.get(side, []):
                if not rule.get(peers) and not (side == "egress" and name in WITHOUT_PEER and rule.get("ports")):
                    bad.append(f"{where}: {side} without {peers!r}")
                for peer in rule.get(peers, []):
                    bad += [f"{where}: {problem}" for problem in _peer_problems(peer, templates)]
                bad += [f"{where}: {problem}" for problem in _port_problems(side, rule, chosen, templates)]
    return bad


def _peer_problems(peer: Object, templates: Sequence[Pod]) -> list[str]:
    if "ipBlock" in peer:
        return [] if peer["ipBlock"].get("except") else [f"{peer['ipBlock']}: without an exception"]
    if not peer.get("podSelector"):
        return [f"whole namespaces: {peer}"]
    if "namespaceSelector" in peer:
        space = (peer["namespaceSelector"].get("matchLabels") or {}).get("kubernetes.io/metadata.name")
        if space is None:
            return (
                [] if any(matches(peer["podSelector"], labels) for labels in CLIENT_LABELS) else [f"anywhere: {peer}"]
            )
        return [] if matches(peer["podSelector"], OUTSIDE.get(space, {})) else [f"nobody is {peer}"]
    known = any(matches(peer["podSelector"], pod.labels) for pod in templates)
    known = known or any(matches(peer["podSelector"], labels) for labels in CLIENT_LABELS)
    return [] if known else [f"no pod is {peer['podSelector']}"]


def _port_problems(side: str, rule: Object, chosen: Sequence[Pod], templates: Sequence[Pod]) -> list[str]:
    ends = list(chosen)
    if side == "egress":
        inside = [peer for peer in rule.get("to", []) if "podSelector" in peer and "namespaceSelector" not in peer]
        ends = [pod for pod in templates for peer in inside if matches(peer["podSelector"], pod.labels)]
    if not ends:
        return []
    open_ports = {port["containerPort"] for pod in ends for c in pod.containers for port in c.get("ports", [])}
    wanted = {port["port"] for port in rule.get("ports", [])}
    return [f"nothing listens on {port}" for port in sorted(wanted - open_ports)]


def reaches(objects: Sequence[Object], source: Pod, target: Pod, port: int) -> bool:
    """Whether the policies let ``source`` open a connection to ``target``, both in the namespace."""
    policies = of_kind(objects, "NetworkPolicy")
    return _lets(policies, "egress", "to", source, target, port) and _lets(
        policies, "ingress", "from", target, source, port
    )


def _lets(policies: Sequence[Object], side: str, peers: str, pod: Pod, other: Pod, port: int) -> bool:
    mine = [
        policy["spec"]
        for policy in policies
        if matches(policy["spec"].get("podSelector", {}), pod.labels)
        and side.capitalize() in policy["spec"]["policyTypes"]
    ]
    if not mine:
        return True
    for spec in mine:
        for rule in spec.get(side, []):
            ports = [entry["port"] for entry in rule.get("ports", [])]
            if ports and port not in ports:
                continue
            if not rule.get(peers):
                return True
            for peer in rule[peers]:
                space = peer.get("namespaceSelector", {}).get("matchLabels")
                here = "ipBlock" not in peer and not space
                if here and matches(peer.get("podSelector", {}), other.labels):
                    return True
    return False


NEEDED = (
    ("orchestrator", "ray-head", 6379),
    ("ray-head", "orchestrator", 40001),  # processes of Ray choose their ports
    ("orchestrator", "ray-editor", 40001),
    ("ray-cpu", "ray-editor", 40001),
    ("orchestrator", "mlflow", 5000),
    ("orchestrator", "redis", 6379),
    ("ray-head", "redis", 6379),
    ("orchestrator", "vllm", 8000),
    ("mlflow", "postgres", 5432),
    ("submitter", "ray-head", 8265),
)
FORBIDDEN = (
    ("ray-cpu", "mlflow", 5000),
    ("ray-cpu", "redis", 6379),
    ("ray-editor", "redis", 6379),
    ("vllm", "redis", 6379),
    ("vllm", "orchestrator", 8080),
    ("mlflow", "orchestrator", 8080),
    ("redis", "mlflow", 5000),
    ("maintenance", "redis", 6379),
    ("maintenance", "orchestrator", 8080),
    ("fetch", "redis", 6379),
    ("ray-cpu", "postgres", 5432),
    ("orchestrator", "postgres", 5432),
)


def check_flows(objects: Sequence[Object]) -> list[str]:
    """What must reach what does, and what has no business with each other does not."""
    if not of_kind(objects, "Namespace"):  # a job is laid upon a service that is there
        return []
    denied = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if find(objects, "NetworkPolicy", "deny-all")["spec"] != denied:
        return ["deny-all does not deny all"]
    templates, bad = pods(objects), []
    for flows, wanted in ((NEEDED, True), (FORBIDDEN, False)):
        for source, target, port in flows:
            for one in _of(templates, source):
                for other in _of(templates, target):
                    if reaches(objects, one, other, port) is not wanted:
                        bad.append(f"{source} -> {target}:{port} is {'refused' if wanted else 'open'}")
    return bad


def _of(templates: Sequence[Pod], role: str) -> list[Pod]:
    return [
        pod
        for pod in templates
        if role in (pod.labels.get("app.kubernetes.io/component"), pod.labels.get("app.kubernetes.io/name"))
    ]
