"""A version to the servers of a configuration, from a run's journal and files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from errata.editing.errors import UserError
from errata.orchestrator.config.publish import PublishConfig, server_url
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.adapter import folder_of, make_adapter, sweep_adapters
from errata.orchestrator.publish.questions import choose_questions
from errata.orchestrator.publish.rollout import EVENT, Rollout, ServerResult, last_served
from errata.orchestrator.publish.vllm import VllmServer


def publish_to_servers(
    journal: Journal,
    store: ArtifactStore,
    version: Version,
    config: PublishConfig,
    run: Path,
    *,
    model: str | None = None,
) -> list[ServerResult]:
    """Export the version, roll the servers of ``config.to``, and delete adapters that no server needs any more.

    Args:
        journal: open for writing; every step is an event in it.
        run: directory of the run.
        model: where the run's base model is, if not where its configuration says.

    Raises:
        UserError: no server is named, or the version cannot be had as an adapter; no server was spoken to.
        DamagedFileError: a delta of the version is damaged or gone.
    """
    if not config.to:
        raise UserError("there is no server to publish to: give --to vllm=URL or publish.to")
    adapter = make_adapter(journal, store, version, config, run, model=model)
    questions = choose_questions(journal, version, config.sample)
    if not questions.edited:
        raise UserError(f"v{version.sequence} holds no edited fact that a server could be asked")
    last = last_served(journal, config.served_name).get
    rollout = Rollout(version, adapter, questions, config, last, lambda data: journal.record_event(EVENT, data))
    with ExitStack() as stack:
        servers = [
            stack.enter_context(VllmServer(server_url(item), timeout=config.timeout_seconds)) for item in config.to
        ]
        results = rollout.run(servers)
    _sweep(journal, config, run, adapter.path.name)
    return results


def _sweep(journal: Journal, config: PublishConfig, run: Path, newest: str) -> None:
    """A server reads an adapter again when it needs room, or is restarted: what any of them may serve stays."""
    names = {str(event.data["name"]) for event in journal.events(EVENT) if "server" in event.data}
    paths = {path for name in names for path in last_served(journal, name).values() if path is not None}
    sweep_adapters(folder_of(config, run), {newest, *(PurePosixPath(path).name for path in paths)})
