"""What MLflow's page says of a run: parameters that describe the experiment, tags, data, the table of facts."""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.estimation.corpus import HUB
from errata.editing.wording import model_title
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.config.stream import StreamConfig
from errata.orchestrator.report.summary import FactRecord, read_facts
from errata.orchestrator.tracking.tracker import TrackedData, flatten

TABLE: Final = "facts.json"
MOST_FACTS: Final = 2_000
"""Rows of the table: the page shows so many well; ``facts.jsonl`` beside it has them all."""

_ALWAYS: Final = (
    "seed",
    "model.name",
    "model.dtype",
    "editor.",
    "contexts.count",
    "stream.limit",
    "batching.size",
    "covariance.source",
    "covariance.tokens",
    "refresh.every",
    "evaluation.arms",
    "evaluation.max_new_tokens",
)
"""Parameters by which runs are told apart, also where they have their defaults; a dot at the end: all of it."""

_ELSEWHERE: Final = ("name", "evaluation.held_out", "evaluation.texts", "evaluation.latency_questions", "stream.path")
"""Never: a tag or a data set says it, or it is a place on this machine."""


_NEEDED: Final = ("source", "tokens", "sequences", "corpus", "mixture")
"""Settings of the covariance without which there is none."""


def parameters(config: RunConfig) -> dict[str, str]:
    """What decides the results, by dotted names: `_ALWAYS`, and of the rest what is not as it is by default.

    ``resolved.yaml``, an artifact of the run, has every setting.
    """
    chosen = flatten(config.identity())
    least: dict[str, Any] = {
        "model": {"name": config.model.name},
        "editor": config.editor.model_dump(mode="json"),
        "stream": {},
        "covariance": {
            key: value for key, value in config.covariance.model_dump(mode="json").items() if key in _NEEDED and value
        },
    }
    usual = flatten(RunConfig.model_validate(least).identity())
    return {
        key: value
        for key, value in chosen.items()
        if not _among(key, _ELSEWHERE) and (_among(key, _ALWAYS) or usual.get(key) != value)
    }


def _among(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(name if name.endswith(".") else f"{name}.") for name in names)


def tags(config: RunConfig, output: Path, *, model_digest: str, release: str) -> dict[str, str]:
    """Tags of the MLflow run: those of MLflow's own columns, those of the configuration, and what it rests on."""
    stream = _place(config.stream)
    said = f"{config.editor.type} on {model_title(config.model.name)}" + (f", edits from `{stream}`" if stream else "")
    about = "\n\n".join(part for part in (config.tracking.description, said, f"Files: `{output.absolute()}`") if part)
    found = {
        "mlflow.source.name": f"errata {' '.join(sys.argv[1:2])}".strip(),
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": about,
        "errata.version": release,
        "errata.base": model_digest,
        "errata.config": config.digest,
        **config.tracking.tags,
    }
    with contextlib.suppress(KeyError, OSError):  # a container's user without a name
        found["mlflow.user"] = getpass.getuser()
    if config.tracking.parent is not None:
        found["mlflow.parentRunId"] = config.tracking.parent
    return found


def stream_data(config: StreamConfig, digests: Iterable[str]) -> TrackedData | None:
    """The stream as a data set; None where edits come by HTTP only.

    Args:
        digests: of the records that are read, in their order; of a stream without an end there are none.
    """
    place = _place(config)
    if place is None:
        return None
    known = list(digests)
    kind = "redis" if config.redis is not None else "kafka" if config.kafka is not None else "local"
    if config.path.startswith(HUB):
        kind = "hub"
    return TrackedData(
        name=Path(place).stem if kind == "local" else place,
        digest=digest_json(known or [place]),
        source_type=kind,
        source={"uri": place, "skip": config.skip, "limit": config.limit},
        profile={"records": len(known)} if known else {},
        context="edits",
    )


def _place(config: StreamConfig) -> str | None:
    if config.redis is not None:
        return f"{config.redis.url}/{config.redis.stream}"
    if config.kafka is not None:
        return f"{config.kafka.servers}/{config.kafka.topic}"
    return config.path or None


def write_fact_table(output: Path) -> Path | None:
    """Write the table of facts beside ``facts.jsonl``: a row a fact, with each arm's answer; None without facts."""
    try:
        facts = [fact for fact, _ in zip(read_facts(output / "facts.jsonl"), range(MOST_FACTS), strict=False)]
    except UserError:
        return None
    if not facts:
        return None
    path = output / TABLE
    path.write_text(json.dumps(fact_table(facts), ensure_ascii=False), encoding="utf-8")
    return path


def fact_table(facts: Iterable[FactRecord]) -> dict[str, list[Any]]:
    """Columns by name: the fact, and each arm's answer to the edit's own prompt and whether that is right."""
    rows: list[Mapping[str, Any]] = []
    for fact in facts:
        row: dict[str, Any] = {
            "id": fact.id,
            "prompt": fact.prompt,
            "target": fact.target_new,
            "before": fact.target_true or "",
            "batch": fact.sequence,
        }
        own = next((probe for probe in fact.probes if probe.kind == "edit"), None)
        for arm, answer in (own.arms if own is not None else {}).items():
            row[f"{arm}: answer"] = answer.answer or ""
            row[f"{arm}: right"] = answer.right
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}
