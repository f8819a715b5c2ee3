"""KubeRay's own rules between fields, which an API server does not know: it would take the object, and nothing runs."""

from __future__ import annotations

from collections.abc import Sequence

from tests.helpers.k8s.objects import Object, cluster_specs, name_of, of_kind

LONGEST_CLUSTER, LONGEST_JOB = 53, 47
BEHIND_PASSWORD = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD")
"""Variables that contradict gcsFaultToleranceOptions."""


def check_ray_clusters(objects: Sequence[Object]) -> list[str]:
    """Names, replicas, groups, fault tolerance and the autoscaler's version agree."""
    bad = []
    for owner, spec in cluster_specs(objects):
        where = name_of(owner)
        if len(owner["metadata"]["name"]) > (LONGEST_CLUSTER if owner["kind"] == "RayCluster" else LONGEST_JOB):
            bad.append(f"{where}: the name is too long")
        names = [group.get("groupName") for group in spec.get("workerGroupSpecs", [])]
        if len(set(names)) < len(names):
            bad.append(f"{where}: two groups of one name: {names}")
        scaled = bool(spec.get("enableInTreeAutoscaling"))
        second = scaled and spec.get("autoscalerOptions", {}).get("version") == "v2"
        if scaled and not second:
            bad.append(f"{where}: labels of actors are understood by the autoscaler v2 only")
        for group in spec.get("workerGroupSpecs", []):
            bad += [f"{where} {group.get('groupName')}: {problem}" for problem in _group_problems(group, second)]
        bad += [f"{where} head: {problem}" for problem in _head_problems(spec, second)]
    return bad


def _group_problems(group: Object, autoscaler_v2: bool) -> list[str]:
    bad = []
    least, now, most = (
        group.get(key, default) for key, default in (("minReplicas", 0), ("replicas", 0), ("maxReplicas", 2**31 - 1))
    )
    if not 0 <= least <= now <= most:
        bad.append(f"replicas {now} are not within {least}..{most}")
    start = group.get("rayStartParams", {})
    if "labels" in start or ("resources" in start and "resources" in group):
        bad.append("labels and resources belong to the group, not into rayStartParams")
    if "num-gpus" in start:
        bad.append("num-gpus is taken from the container's limits")
    spec = group.get("template", {}).get("spec", {})
    if autoscaler_v2 and spec.get("restartPolicy") != "Never":
        bad.append("the autoscaler v2 wants restartPolicy Never")
    if "idleTimeoutSeconds" in group and not autoscaler_v2:
        bad.append("idleTimeoutSeconds wants the autoscaler v2")
    first = (spec.get("containers") or [{}])[0].get("name")
    if first != "ray-worker":
        bad.append(f"Ray's container comes first, not {first}")
    if group.get("suspend") and autoscaler_v2:
        bad.append("an autoscaled group cannot be suspended")
    return bad


def _head_problems(spec: Object, autoscaler_v2: bool) -> list[str]:
    bad = []
    head = spec["headGroupSpec"]
    pod = head.get("template", {}).get("spec", {})
    container = (pod.get("containers") or [{}])[0]
    if container.get("name") != "ray-head":
        bad.append(f"Ray's container comes first, not {container.get('name')}")
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        bad.append('work could be placed on the head: rayStartParams num-cpus is not "0"')
    if autoscaler_v2 and pod.get("restartPolicy") != "Never":
        bad.append("the autoscaler v2 wants restartPolicy Never")
    if "gcsFaultToleranceOptions" in spec:
        names = {entry["name"] for entry in container.get("env", [])}
        bad += [f"{name} contradicts gcsFaultToleranceOptions" for name in BEHIND_PASSWORD if name in names]
        if "redis-password" in head.get("rayStartParams", {}):
            bad.append("redis-password contradicts gcsFaultToleranceOptions")
        if not spec["gcsFaultToleranceOptions"].get("redisAddress"):
            bad.append("no address of Redis")
    return bad


def check_ray_jobs(objects: Sequence[Object]) -> list[str]:
    """A job has a command and an end, and its cluster goes with it."""
    bad = []
    for job in of_kind(objects, "RayJob"):
        spec, where = job["spec"], name_of(job)
        ends = spec.get("shutdownAfterJobFinishes") is True
        if not spec.get("entrypoint", "").strip():
            bad.append(f"{where}: no entrypoint")
        if spec.get("ttlSecondsAfterFinished", 0) and not ends:
            bad.append(f"{where}: ttlSecondsAfterFinished wants shutdownAfterJobFinishes")
        if spec.get("suspend") and not ends:
            bad.append(f"{where}: suspend wants shutdownAfterJobFinishes")
        if not ends:
            bad.append(f"{where}: its cluster would stay")
        if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
            bad.append(f"{where}: wants one of clusterSelector and rayClusterSpec")
        if spec.get("clusterSelector") and (spec.get("suspend") or spec.get("backoffLimit")):
            bad.append(f"{where}: a cluster that is only used is neither suspended nor made again")
        if spec.get("backoffLimit", 0) < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
            bad.append(f"{where}: backoffLimit and activeDeadlineSeconds are positive")
        if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {}) and not spec.get("suspend"):
            bad.append(f"{where}: a queued job begins suspended")
    return bad


def check_versions(objects: Sequence[Object], ray: str) -> list[str]:
    """``rayVersion`` is the release that the image has."""
    return [
        f"{name_of(owner)}: rayVersion {spec.get('rayVersion')}, the image has {ray}"
        for owner, spec in cluster_specs(objects)
        if spec.get("rayVersion") != ray
    ]
