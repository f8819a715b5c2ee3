"""The adapter of a version: written once, within the rank that servers take, or refused with the ways out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from errata.editing.errors import UserError
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.history.export import VERSION_FILE, edition, write_adapter
from errata.orchestrator.history.rebuild import open_base
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import Version

ADAPTERS: Final = "adapters"
_NAME: Final = re.compile(r"v\d+-[0-9a-f]{12}-r(?:\d+|all)")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version as a server loads it."""

    path: Path
    on_server: str
    """The same place as the servers see it."""
    rank: int
    exact: bool
    error: float
    """Largest relative error of a layer's change."""


def folder_of(config: PublishConfig, run: Path) -> Path:
    """Where a run's adapters lie."""
    return Path(config.adapters).expanduser().absolute() if config.adapters else (run / ADAPTERS).absolute()


def make_adapter(
    journal: JournalReader,
    store: ArtifactStore,
    version: Version,
    config: PublishConfig,
    run: Path,
    *,
    model: str | None = None,
) -> Adapter:
    """Write the adapter of a version, or take the one that is there.

    Args:
        run: directory of the run.
        model: where the run's base model is, if not where its configuration says.

    Raises:
        UserError: the version changes nothing, or keeping to the rank would cut off too much.
        DamagedFileError: a delta of the version is damaged or gone.
    """
    rank = "all" if config.max_rank is None else str(config.max_rank)
    path = folder_of(config, run) / f"v{version.sequence}-{version.digest[:12]}-r{rank}"
    if not (path / VERSION_FILE).is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = open_base(journal, model)
        write_adapter(edition(journal, store, checkpoint, version), checkpoint, path, rank=config.max_rank)
    card = json.loads((path / VERSION_FILE).read_text(encoding="utf-8"))
    error = max(card["relative_error"].values(), default=0.0)
    if not card["exact"] and error > config.max_error:
        shutil.rmtree(path)
        raise UserError(
            f"v{version.sequence} does not fit into rank {config.max_rank}: {error:.3g} of the change would be cut off "
            f"(allowed: {config.max_error:g}). Start the servers with a larger --max-lora-rank and give it as "
            f"--max-rank, allow a larger --max-error, or serve a new base: errata checkout v{version.sequence} "
            "--output DIR"
        )
    on_server = str(path)
    if config.adapters_on_server:
        on_server = str(PurePosixPath(config.adapters_on_server) / path.name)
    return Adapter(path, on_server, card["rank"], card["exact"], error)


def sweep_adapters(folder: Path, keep: Collection[str]) -> list[Path]:
    """Delete adapters whose directory names are not in ``keep``; nothing else is touched. Returns what is gone."""
    gone = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if _NAME.fullmatch(path.name) and path.name not in keep:
            shutil.rmtree(path)
            gone.append(path)
    return gone
