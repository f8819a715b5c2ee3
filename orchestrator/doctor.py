"""Whether a run or a service could work from here: versions, model, storage, cluster, Redis, MLflow.

Each check looks at one thing, within seconds, and changes nothing that stays.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from errata.editing.errors import UserError
from errata.editing.wording import counted

if TYPE_CHECKING:
    from errata.actors.nodes import NodeFacts
    from errata.actors.settings import RayConfig
    from errata.orchestrator.config.run import RunConfig

logger = logging.getLogger(__name__)

State = Literal["ok", "warning", "fail", "skip"]

NETWORK_SECONDS = 5.0
"""Longest wait for an answer of a server."""
SLOW_SYNC_SECONDS = 0.1
"""A commit waits for several of these."""
LEAST_FREE_BYTES = 2 << 30
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "lustre", "gluster", "afs", "beegfs")
"""SQLite's log wants memory shared between processes, which these do not give."""


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    check: str
    state: State
    said: str
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


Answer = tuple[State, str]


def examine(checks: Sequence[tuple[str, Callable[[], Answer]]]) -> Iterator[CheckResult]:
    """Do checks one by one; one that raises has failed."""
    for name, check in checks:
        began = time.perf_counter()
        try:
            state, said = check()
        except UserError as error:
            state, said = "fail", str(error)
        except Exception as error:  # a check that breaks must not hide the others
            logger.debug("check %s broke", name, exc_info=True)
            state, said = "fail", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        yield CheckResult(name, state, said, time.perf_counter() - began)


def checks_of(
    config: RunConfig | None, *, output: Path, redis_url: str | None = None
) -> list[tuple[str, Callable[[], Answer]]]:
    """The checks that make sense for a configuration; without one, those of this machine."""
    redis = redis_url or (config.stream.redis.url if config is not None and config.stream.redis is not None else None)
    checks: list[tuple[str, Callable[[], Answer]]] = [
        ("versions", versions),
        ("storage", lambda: storage(output)),
        ("redis", lambda: redis_answers(redis) if redis else ("skip", "none is used; --redis URL looks at one")),
    ]
    if config is None:
        return [*checks, ("gpu", local_gpus), ("model", _no_config), ("mlflow", _no_config), ("ray", _no_config)]
    return [
        *checks,
        ("model", lambda: model(config)),
        ("embedder", lambda: embedder(config)),
        ("mlflow", lambda: mlflow_answers(config.tracking.uri)),
        ("ray", lambda: cluster(config.ray, config.model_spec().ranks)),
        ("ray's token", lambda: ray_token(config.ray)),
        ("gpu", lambda: gpus(config.ray)),
    ]


def _no_config() -> Answer:
    return "skip", "give a configuration"


def versions() -> Answer:
    """Every direct dependency is within the range that this release asks for."""
    from packaging.requirements import Requirement

    wrong, shown = [], [f"python {sys.version.split()[0]}"]
    try:
        wanted = [Requirement(text) for text in requires("errata-llm") or []]
        shown.insert(0, f"errata {version('errata-llm')}")
    except PackageNotFoundError:
        return "fail", "errata-llm is not installed here"
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed}, wants {requirement.specifier}")
        if requirement.name in ("torch", "transformers", "ray", "mlflow"):
            shown.append(f"{requirement.name} {installed}")
    return ("fail", "; ".join(wrong)) if wrong else ("ok", ", ".join(shown))


def storage(output: Path) -> Answer:
    """Where the journal goes can be written and synchronized, is no network file system, and has room."""
    place = output
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        return "fail", f"{place} cannot be written"
    kind = file_system(place)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return "fail", f"{place} is on {kind}; the journal wants a local file system or a block device"
    seconds = _sync_seconds(place)
    free = shutil.disk_usage(place).free
    said = (
        f"{output}: {kind or 'unknown file system'}, {free / 2**30:.1f} GiB free, a synced write {1e3 * seconds:.1f} ms"
    )
    if free < LEAST_FREE_BYTES:
        return "fail", f"{said}; wants {LEAST_FREE_BYTES / 2**30:.0f} GiB"
    return ("warning", f"{said}; slow") if seconds > SLOW_SYNC_SECONDS else ("ok", said)


def file_system(place: Path, mounts: str | None = None) -> str:
    """Kind of file system that a path lies on, as Linux names it; empty where that is not known.

    Args:
        mounts: the table of mounts; that of this process by default.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        if not table.is_file():
            return ""
        mounts = table.read_text(encoding="utf-8", errors="replace")
    best, kind = "", ""
    resolved = str(place.resolve())
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        under = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if under and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _sync_seconds(place: Path) -> float:
    """Median of five synced writes of a page."""
    times = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(5):
            began = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[2]


def redis_answers(url: str) -> Answer:
    """The server answers, writes what it is told to a log, and throws nothing away when it is full."""
    import redis

    from errata.orchestrator.config.stream import PASSWORD

    client = redis.Redis.from_url(
        url,
        password=os.environ.get(PASSWORD) or None,
        socket_timeout=NETWORK_SECONDS,
        socket_connect_timeout=NETWORK_SECONDS,
    )
    try:
        client.ping()
        facts: Any = client.info()
        kept: Any = client.config_get("appendonly")
    except redis.RedisError as error:
        return "fail", f"{url}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    finally:
        client.close()
    said = f"{url}: Redis {facts.get('redis_version')}"
    if kept.get("appendonly") == "no":
        return "warning", f"{said} keeps no append-only file: what it holds does not survive it"
    if facts.get("maxmemory_policy", "noeviction") != "noeviction":
        return "warning", f"{said} throws keys away when it is full ({facts['maxmemory_policy']})"
    return "ok", said


def mlflow_answers(uri: str | None) -> Answer:
    """A tracking server answers; a database needs none."""
    if uri is None or not uri.startswith(("http://", "https://")):
        return "ok", f"no server: {uri or 'SQLite in the output directory'}"
    import httpx

    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=NETWORK_SECONDS)
    except httpx.HTTPError as error:
        return "fail", f"{uri}: {type(error).__name__}: {error}"
    if answer.status_code == 403:
        return "fail", f"{uri}: refuses this host's name; start it with --allowed-hosts"
    return ("ok", uri) if answer.status_code == 200 else ("fail", f"{uri}: answered {answer.status_code} to /health")


def model(config: RunConfig) -> Answer:
    """The model is there, its files are whole, and the editor's layers are in it."""
    from errata.editing.checkpoint.load import load_text, resolve_model
    from errata.editing.checkpoint.sound import check_files, check_numbers, check_tensors, told_of_tokens
    from errata.editing.checkpoint.stage import stage_root
    from errata.orchestrator.run.opening import check_layers

    directory = resolve_model(config.model.name)
    check_files(directory, config.model.name)
    check_layers(config, directory)
    size = weight_bytes(directory)
    said = f"{config.model.name}: {directory}, {size / 2**30:.2f} GiB of weights"
    rows = check_tensors(directory, config.model.name)
    check_numbers(directory, config.model.name)
    warnings: list[str] = []
    told_of_tokens(load_text(config.model.name)[0], rows, warnings.append)
    if warnings:
        return "warning", f"{said}; {warnings[0]}"
    root = stage_root()
    if root is None or directory.parent == root:
        return "ok", said
    free = shutil.disk_usage(root).free
    said = f"{said}, staged in {root} with {free / 2**30:.1f} GiB free"
    return ("ok", said) if free > size else ("warning", f"{said}: no room, so it is loaded from where it is")


def weight_bytes(directory: Path) -> int:
    """Bytes of a checkpoint's weights; the header of each file is read.

    Raises:
        UserError: there are none, or a file is cut off.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"model directory {str(directory)!r} holds no *.safetensors")
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or cut off: {error}") from error
    return sum(path.stat().st_size for path in files)


def embedder(config: RunConfig) -> Answer:
    """The memory's embedder is there."""
    from errata.retrieval.embedder import check_embedder

    check_embedder(config.memory.embedder)
    return "ok", config.memory.embedder.type


def local_gpus() -> Answer:
    """GPUs that torch sees in this process."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [f"{torch.cuda.get_device_name(i)}" for i in range(count)]
    return ("ok", ", ".join(names)) if names else ("skip", f"none here (torch {torch.__version__})")


def cluster(config: RayConfig, ranks: int = 1) -> Answer:
    """The cluster is reached and every actor would have a place, on its nodes of now."""
    if config.address == "local":
        cores = os.cpu_count() or 1
        said = f"local: started with the run; {cores} CPUs here, its actors want {config.local_cpus(ranks):g}"
        return ("ok", said) if cores >= config.local_cpus(ranks) else ("warning", said)
    from errata.actors.nodes import node_facts, unplaceable

    nodes = node_facts(config)
    cpus, gpu_count = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    said = f"{config.address}: {counted(len(nodes), 'node')}, {cpus:g} CPUs, {gpu_count:g} GPUs"
    missing = unplaceable(config, nodes, ranks)
    # an autoscaler may bring what is not there yet
    return ("warning", f"{said}; no place now for {', '.join(missing)}") if missing else ("ok", said)


def ray_token(config: RayConfig, environment: Mapping[str, str] | None = None) -> Answer:
    """Whoever reaches Ray's ports without a token runs code as its user: there is one, or one will be made."""
    given = os.environ if environment is None else environment
    mode = given.get("RAY_AUTH_MODE", "")
    if config.address == "local":
        if mode and mode != "token":
            return "warning", f"RAY_AUTH_MODE is {mode!r}: everybody on this machine may run code as this user"
        return "ok", "made with each run; Ray listens to this machine only"
    home = given.get("HOME")
    kept = Path(home, ".ray", "auth_token") if home else None
    held = given.get("RAY_AUTH_TOKEN") or given.get("RAY_AUTH_TOKEN_PATH") or (kept is not None and kept.is_file())
    if mode != "token":
        return "warning", f"{config.address} is joined without one; set RAY_AUTH_MODE=token on all its nodes and here"
    return ("ok", "given") if held else ("fail", "RAY_AUTH_MODE is token, and RAY_AUTH_TOKEN is not set")


def gpus(config: RayConfig) -> Answer:
    """Where a role computes on a GPU, there are some."""
    wanting = [role for role, count in config.counts().items() if count and getattr(config, role).device != "cpu"]
    if not wanting:
        return "skip", "every role computes on the CPU"
    if config.address == "local":
        state, said = local_gpus()
        return ("ok", said) if state == "ok" else ("fail", f"{', '.join(wanting)} want one; {said}")
    from errata.actors.nodes import node_facts

    nodes: list[NodeFacts] = [node for node in node_facts(config) if node.gpus]
    if not nodes:
        return "warning", f"{', '.join(wanting)} want one; the cluster has none now"
    kinds = sorted({node.labels.get("ray.io/accelerator-type", "GPU") for node in nodes})
    return "ok", f"{sum(node.gpus for node in nodes):g} on {counted(len(nodes), 'node')}: {', '.join(kinds)}"
