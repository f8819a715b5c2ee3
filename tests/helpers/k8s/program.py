"""What manifests say to the program: commands, configurations, metrics."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.helpers.k8s.objects import Object, cluster_specs, name_of, of_kind, pods
from tests.helpers.k8s.pod_rules import quantity
from tests.helpers.k8s.references import service_addresses

WRAPPERS = (["tini", "--", "on-ray"], ["tini", "--"])
METRIC = re.compile(r"\b(errata_[a-z_]+)\b")
ENDINGS = ("_bucket", "_sum", "_count")
CONFIGURATION = "/etc/errata/"


def commands(objects: Sequence[Object]) -> Iterator[tuple[str, list[str], list[Object]]]:
    """(where, words after ``errata``, the container's mounts) of every call of the program."""
    for pod in pods(objects):
        for container in pod.containers:
            words = [*container.get("command", []), *container.get("args", [])]
            for wrapper in WRAPPERS:
                if words[: len(wrapper)] == wrapper:
                    words = words[len(wrapper) :]
                    break
            if words[:1] == ["errata"]:
                yield f"{pod.where} {container['name']}", words[1:], container.get("volumeMounts", [])
    for job in of_kind(objects, "RayJob"):
        words = shlex.split(job["spec"].get("entrypoint", ""))
        if words[:1] == ["errata"]:
            head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            yield name_of(job), words[1:], head.get("volumeMounts", [])


def check_commands(objects: Sequence[Object], program: Any) -> list[str]:
    """Every call is one that the program's own parser takes; files it names lie in what is mounted.

    ``program`` is the click command of the command line.
    """
    import click

    bad, told = [], list(commands(objects))
    for where, words, mounts in told:
        command, rest = program, list(words)
        try:
            while hasattr(command, "commands"):
                name = rest.pop(0)
                if name not in command.commands:
                    raise click.UsageError(f"no command {name!r}")
                command = command.commands[name]
            command.make_context(command.name, rest)
        except Exception as error:  # typer may bring a click of its own, with errors of its own
            if not hasattr(error, "format_message"):
                raise
            bad.append(f"{where}: errata {' '.join(words)}: {error.format_message()}")
        places = [(mount["mountPath"], bool(mount.get("readOnly"))) for mount in mounts]
        for word in words:
            if word.startswith("/") and not any(word == p or word.startswith(f"{p}/") for p, _ in places):
                bad.append(f"{where}: {word} is in nothing that is mounted")
    bad += _unknown_files(objects, told)
    return bad


def _unknown_files(objects: Sequence[Object], told: Sequence[tuple[str, list[str], Any]]) -> list[str]:
    """Configuration files that a command names and no ConfigMap holds."""
    held = {key for thing in of_kind(objects, "ConfigMap") for key in thing.get("data", {})}
    named = [(where, word) for where, words, _ in told for word in words if word.startswith(CONFIGURATION)]
    return [f"{where}: {word} is in no ConfigMap" for where, word in named if word[len(CONFIGURATION) :] not in held]


def configurations(objects: Sequence[Object]) -> Iterator[tuple[str, str, Object]]:
    """(where, file, plain data) of every configuration in a ConfigMap."""
    for thing in of_kind(objects, "ConfigMap"):
        for file, text in thing.get("data", {}).items():
            if file.endswith(".yaml"):
                yield name_of(thing), file, yaml.safe_load(text)


def check_configurations(objects: Sequence[Object], scratch: Path) -> list[str]:
    """Configurations load with the real class, and what they ask of the cluster is there."""
    from errata.editing.errors import UserError
    from errata.orchestrator.config.loading import load_config
    from errata.orchestrator.experiments.config import load_sweep

    bad = []
    for where, file, data in configurations(objects):
        path = scratch / file
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        try:
            found = load_sweep(str(path), [], []).cells[0].config if "axes" in data else load_config(str(path))
        except UserError as error:
            bad.append(f"{where}: {error}")
            continue
        bad += [f"{where}: {problem}" for problem in _placement_problems(found.ray, objects)]
        bad += [f"{where}: {problem}" for problem in _address_problems(found, objects)]
        bad += [f"{where}: {problem}" for problem in _publication_problems(found, objects)]
    return bad


def _address_problems(config: Any, objects: Sequence[Object]) -> list[str]:
    if not of_kind(objects, "Service"):  # a job is laid upon a service that is there
        return []
    known, bad = service_addresses(objects), []
    addresses = [config.tracking.uri, *(server.removeprefix("vllm=") for server in config.publish.to)]
    for address in filter(None, addresses):
        parts = urlsplit(address)
        if parts.hostname not in known or parts.port not in known[parts.hostname]:
            bad.append(f"{address} is no service's address")
    return bad


def _publication_problems(config: Any, objects: Sequence[Object]) -> list[str]:
    """Whether versions reach each vLLM server that is there: without being asked, in a form that it takes."""
    bad, publish = [], config.publish
    told = {urlsplit(server.removeprefix("vllm=")).hostname for server in publish.to}
    for pod in pods(objects):
        for container in pod.containers:
            if container.get("command", [])[:2] != ["vllm", "serve"]:
                continue
            options = dict(word.removeprefix("--").partition("=")[::2] for word in container["args"][1:])
            mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            adapters = publish.adapters_on_server or publish.adapters
            said = {
                "publish.to does not name it": pod.owner["metadata"]["name"] in told,
                "publish.every is not set": publish.every is not None,
                f"it serves {container['args'][0]}, not {config.model.name}": container["args"][0] == config.model.name,
                "it takes no adapters": "enable-lora" in options,
                f"publish.max_rank {publish.max_rank} is more than it takes": (publish.max_rank or 10**9)
                <= int(options.get("max-lora-rank", 16)),
                f"publish.adapters {adapters} is in nothing that it mounts": adapters is not None
                and any(adapters.startswith(f"{place}/") for place in mounts),
            }
            bad += [f"{pod.where}: {problem}" for problem, holds in said.items() if not holds]
    return bad


def _placement_problems(ray: Any, objects: Sequence[Object]) -> list[str]:
    """Whether each role's actors fit on the nodes that their labels name, at the clusters' largest."""
    bad = []
    if ray.address != "auto":
        bad.append(f"ray.address {ray.address!r}: on a cluster the node in the pod is joined: auto")
    for owner, spec in cluster_specs(objects):
        free: list[tuple[dict[str, str], float, float]] = []
        for group in spec.get("workerGroupSpecs", []):
            limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
            size = quantity(limits.get("cpu", 0)), quantity(limits.get("nvidia.com/gpu", 0))
            free += [(group.get("labels", {}), *size)] * min(group.get("maxReplicas", 0), 64)
        for role, count in {**ray.counts(), "generation": ray.most_generation_workers}.items():
            asked = getattr(ray, role)
            if count and asked.device != "cpu" and not asked.num_gpus:
                bad.append(f"ray.{role}: device {asked.device} without a GPU")
            for _ in range(count):
                for place, (labels, cpus, gpus) in enumerate(free):
                    fits = cpus >= asked.num_cpus and gpus >= asked.num_gpus
                    if fits and all(labels.get(key) == value for key, value in asked.labels.items()):
                        free[place] = labels, cpus - asked.num_cpus, gpus - asked.num_gpus
                        break
                else:
                    bad.append(f"ray.{role}: {name_of(owner)} has no place for all {count}")
                    break
    return bad


def check_metrics(objects: Sequence[Object], known: frozenset[str], runbook: str) -> list[str]:
    """Dashboards and alerts use metrics that exist; an alert names a heading of the runbook."""
    bad = []
    told = [
        (f"{name_of(thing)} {rule['alert']}", rule["expr"])
        for thing in of_kind(objects, "PrometheusRule")
        for group in thing["spec"]["groups"]
        for rule in group["rules"]
    ]
    for thing in of_kind(objects, "ConfigMap"):
        for file, text in thing.get("data", {}).items():
            if file.endswith(".json"):
                panels = json.loads(text)["panels"]
                told += [(f"{file} {panel['title']}", t["expr"]) for panel in panels for t in panel["targets"]]
    for where, expression in told:
        for name in METRIC.findall(expression):
            plain = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)
            if plain not in known and name not in known:
                bad.append(f"{where}: there is no metric {name}")
    headings = set(re.findall(r"^#+ (.+)$", runbook, re.MULTILINE))
    for thing in of_kind(objects, "PrometheusRule"):
        for group in thing["spec"]["groups"]:
            for rule in group["rules"]:
                heading = rule.get("annotations", {}).get("runbook", "").rpartition(", ")[2]
                if heading not in headings:
                    bad.append(f"{rule['alert']}: the runbook has no heading {heading!r}")
    return bad
