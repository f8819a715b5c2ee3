"""What is asked of every pod: an image, limits, a mount for each volume, the security of `restricted`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from tests.helpers.k8s.objects import Object, Pod, cluster_specs, find, name_of, of_kind, pods

SECRETIVE = re.compile(r"PASSWORD|TOKEN|SECRET|API_KEY|CREDENTIAL")
NOT_SECRET = {"ERRATA_TOKENS_FILE"}
OWN_IMAGE = "errata"
ALLOWED_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "downwardAPI"}
STATE = "errata-state"


def split_image(image: str) -> tuple[str, str]:
    """Name without registry path, and tag; an empty tag where there is none."""
    name, _, tag = image.rpartition("/")[2].partition(":")
    return name, tag


def check_images(objects: Sequence[Object]) -> list[str]:
    """Every container names an image with a fixed tag, and Errata's own is the same everywhere."""
    bad, own = [], set()
    for pod in pods(objects):
        for container in pod.containers:
            where, image = f"{pod.where} {container.get('name')}", container.get("image")
            if not image:
                bad.append(f"{where}: no image")
                continue
            name, tag = split_image(image)
            if "@sha256:" not in image and (not tag or tag == "latest"):
                bad.append(f"{where}: image {image} has no fixed tag")
            if name == OWN_IMAGE:
                own.add(image)
    if len(own) > 1:
        bad.append(f"several images of Errata: {sorted(own)}")
    return bad


def check_resources(objects: Sequence[Object]) -> list[str]:
    """Requests and limits of CPU and memory, no request above its limit; memory is not overcommitted."""
    bad = []
    for pod in pods(objects):
        for container in pod.containers:
            where, resources = f"{pod.where} {container.get('name')}", container.get("resources", {})
            for kind in ("cpu", "memory"):
                request, limit = (resources.get(part, {}).get(kind) for part in ("requests", "limits"))
                if request is None or limit is None:
                    bad.append(f"{where}: no {kind} request or limit")
                elif quantity(request) > quantity(limit):
                    bad.append(f"{where}: {kind} request {request} above its limit {limit}")
                elif kind == "memory" and quantity(request) != quantity(limit):
                    bad.append(f"{where}: memory request {request} is not its limit {limit}")
    for owner, spec in cluster_specs(objects):
        if spec.get("enableInTreeAutoscaling") and not spec.get("autoscalerOptions", {}).get("resources"):
            bad.append(f"{name_of(owner)}: the autoscaler has no resources")
    return bad


def quantity(value: str | float) -> float:
    """A Kubernetes quantity as a number."""
    parts = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti|k|M|G|T)?", str(value))
    if parts is None:
        raise ValueError(f"no quantity: {value!r}")
    unit = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(parts[1]) * unit.get(parts[2] or "", 1)


def check_volumes(objects: Sequence[Object]) -> list[str]:
    """Every mount has its volume, every volume is mounted, no two mounts in one place."""
    bad = []
    for pod in pods(objects):
        volumes = [volume["name"] for volume in pod.as_pod()["spec"].get("volumes", [])]
        mounts = [(c.get("name"), m) for c in pod.containers for m in c.get("volumeMounts", [])]
        for container, mount in mounts:
            if mount["name"] not in volumes:
                bad.append(f"{pod.where} {container}: mount {mount['name']} has no volume")
        bad += [f"{pod.where}: volume {v} is not mounted" for v in volumes if v not in {m["name"] for _, m in mounts}]
        if len(set(volumes)) < len(volumes):
            bad.append(f"{pod.where}: two volumes of one name: {volumes}")
        for container in pod.containers:
            places = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            if len(set(places)) < len(places):
                bad.append(f"{pod.where} {container.get('name')}: two mounts in one place: {places}")
    return bad


def check_pod_security(objects: Sequence[Object]) -> list[str]:
    """The profile `restricted`, a read-only root, no token of the API server but for the head's autoscaler."""
    bad = []
    for pod in pods(objects):
        spec, context = pod.spec, pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            bad.append(f"{pod.where}: runAsNonRoot and a user other than 0 are wanted")
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            bad.append(f"{pod.where}: no seccomp profile")
        bad += [f"{pod.where}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
        for volume in spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            if not kinds <= ALLOWED_VOLUMES:
                bad.append(f"{pod.where}: volume {volume['name']} of kind {sorted(kinds)}")
        for container in pod.containers:
            bad += [
                f"{pod.where} {container.get('name')}: {problem}"
                for problem in _context_problems(container.get("securityContext", {}))
            ]
            bad += [f"{pod.where}: hostPort" for port in container.get("ports", []) if port.get("hostPort")]
        if spec.get("automountServiceAccountToken") is not False and not _is_autoscaled_head(pod):
            bad.append(f"{pod.where}: mounts a token of the API server")
    for owner, spec in cluster_specs(objects):
        if spec.get("enableInTreeAutoscaling"):
            found = _context_problems(spec.get("autoscalerOptions", {}).get("securityContext", {}))
            bad += [f"{name_of(owner)} autoscaler: {problem}" for problem in found]
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            bad.append(f"{name_of(account)}: mounts its token into every pod")
    for space in of_kind(objects, "Namespace"):
        if space["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            bad.append(f"{name_of(space)}: restricted is not enforced")
    return bad


def _context_problems(context: Object) -> list[str]:
    bad = []
    if context.get("allowPrivilegeEscalation") is not False:
        bad.append("allowPrivilegeEscalation is not false")
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        bad.append("capabilities are not dropped")
    if context.get("readOnlyRootFilesystem") is not True:
        bad.append("the root file system can be written")
    if context.get("privileged") or context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        bad.append("privileged or root")
    return bad


def _is_autoscaled_head(pod: Pod) -> bool:
    return pod.where.endswith(" head") and bool(pod.owner["spec"].get("enableInTreeAutoscaling"))


def check_secrets(objects: Sequence[Object]) -> list[str]:
    """No Secret is in the manifests, and nothing that sounds like one is written out."""
    bad = [f"{name_of(thing)}: a Secret in the manifests" for thing in of_kind(objects, "Secret")]
    for pod in pods(objects):
        for container in pod.containers:
            for entry in container.get("env", []):
                name = entry["name"]
                if (
                    SECRETIVE.search(name)
                    and name not in NOT_SECRET
                    and "secretKeyRef" not in entry.get("valueFrom", {})
                ):
                    bad.append(f"{pod.where} {container.get('name')}: {name} is written out")
    for owner, spec in cluster_specs(objects):
        if "value" in spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}):
            bad.append(f"{name_of(owner)}: the password of Redis is written out")
    return bad


def check_probes(objects: Sequence[Object]) -> list[str]:
    """The orchestrator has its three probes; KubeRay brings those of Ray's containers, which must have none."""
    bad = []
    for pod in pods(objects):
        for container in pod.containers:
            has = {kind for kind in ("startupProbe", "livenessProbe", "readinessProbe") if kind in container}
            if pod.ray and has:
                bad.append(f"{pod.where}: {sorted(has)} on a container of Ray")
            if pod.labels.get("app.kubernetes.io/component") == "orchestrator" and len(has) < 3:
                bad.append(f"{pod.where}: only {sorted(has)}")
            ports = {port["name"] for port in container.get("ports", []) if "name" in port}
            for kind in has:
                port = container[kind].get("httpGet", {}).get("port")
                if isinstance(port, str) and port not in ports:
                    bad.append(f"{pod.where} {kind}: port {port} does not exist")
    return bad


def check_single_writer(objects: Sequence[Object]) -> list[str]:
    """One orchestrator at a time; whoever else opens the journal does so on its node, or while it is away."""
    deployments = of_kind(objects, "Deployment")
    writers = [d for d in deployments if d["metadata"]["name"] == "errata-orchestrator"]
    bad = []
    for writer in writers:
        if writer["spec"].get("replicas") != 1 or writer["spec"].get("strategy", {}).get("type") != "Recreate":
            bad.append(f"{name_of(writer)}: wants one replica and Recreate")
        if find(objects, "PersistentVolumeClaim", STATE)["spec"]["accessModes"] != ["ReadWriteOnce"]:
            bad.append(f"{STATE}: SQLite's log wants a block device, ReadWriteOnce")
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        bad.append(f"{name_of(scaler)}: nothing here scales by itself but Ray")
    for pod in pods(objects):
        claims = {v.get("persistentVolumeClaim", {}).get("claimName") for v in pod.spec.get("volumes", [])}
        if STATE not in claims or pod.owner in writers or pod.owner["metadata"]["name"] == "errata-migrate":
            continue
        terms = (
            pod.spec.get("affinity", {})
            .get("podAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        beside = [t for t in terms if t.get("topologyKey") == "kubernetes.io/hostname"]
        labels = chain.from_iterable(t["labelSelector"]["matchLabels"].items() for t in beside)
        if ("app.kubernetes.io/component", "orchestrator") not in labels:
            bad.append(f"{pod.where}: mounts {STATE} away from the orchestrator")
    return bad
