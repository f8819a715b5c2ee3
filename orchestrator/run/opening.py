"""Opening a run, for `errata run` and `errata serve` alike: checks first, then the directory, then everything else."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from errata.actors.parts import Parts
from errata.actors.sharded.layout import check_parallel
from errata.editing.checkpoint.load import checkpoint_digest, read_model_config, resolve_model
from errata.editing.checkpoint.sound import check_checkpoint, check_numbers, told_of_tokens
from errata.editing.digest import digest_json
from errata.editing.editors import make_editor
from errata.editing.errors import UserError
from errata.editing.extras import check_installed
from errata.editing.model.decoder import layer_of
from errata.editing.request import EditRequest
from errata.orchestrator.config.run import RunConfig, identity_of
from errata.orchestrator.guard.rules import read_guard
from errata.orchestrator.history.receipts import open_for_writing
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.intake import Admission, Intake
from errata.orchestrator.journal.remote_artifacts import check_place
from errata.orchestrator.journal.rows import JournalMeta, payload_digest
from errata.orchestrator.measuring.measurer import check_evaluation
from errata.orchestrator.progress import Display
from errata.orchestrator.run.attached import open_source
from errata.orchestrator.run.described import parameters, stream_data, tags
from errata.orchestrator.run.outputs import errata_version
from errata.orchestrator.run.places import check_output_place, check_ray_places
from errata.orchestrator.sources import Source
from errata.orchestrator.sources.base import TakesRequests
from errata.orchestrator.sources.streams import StreamRecord, open_stream
from errata.orchestrator.tracking.tracker import Tracker
from errata.retrieval.embedder import check_embedder

Status = Literal["FINISHED", "KILLED", "FAILED"]
"""What MLflow calls the end of a run."""


def read_records(config: RunConfig) -> list[StreamRecord]:
    """Every record of a stream that is read once; none of one that goes on."""
    if config.stream.endless:
        return []
    if not config.stream.path:
        raise UserError("stream.path is empty: a run needs a file of updates, stream.redis or stream.kafka")
    records = list(
        open_stream(
            config.stream.path,
            config.stream.schema_,
            target=config.stream.target,
            limit=config.stream.limit,
            skip=config.stream.skip,
            probes=config.stream.probes,
            portability=config.stream.portability,
        )
    )
    if not any(record.request for record in records):
        raise UserError(f"stream {config.stream.path!r}: no record fits; the first: {records[0].problem}")
    return records


def check_layers(config: RunConfig, directory: Path) -> None:
    """Raise UserError unless the editor's layers exist in the model."""
    model = read_model_config(directory, config.model.name)
    if config.model.parallel is not None:
        check_parallel(model, config.model.parallel, config.model.name)
    for layer in map(layer_of, make_editor(config.editor).layers):
        if not 0 <= layer < model.num_hidden_layers:
            raise UserError(
                f"editor.layers: layer {layer} does not exist in {config.model.name!r}; "
                f"allowed: 0..{model.num_hidden_layers - 1}"
            )


def for_model(config: RunConfig, directory: Path) -> RunConfig:
    """The configuration with what it leaves to the model settled: how words are sampled from its vocabulary."""
    words = int(read_model_config(directory, config.model.name).vocab_size)
    return config.model_copy(update={"covariance": config.covariance.for_vocabulary(words)})


def check_output(config: RunConfig, output: Path, *, resume: bool) -> None:
    """Raise UserError unless a run may begin, or go on, in the directory."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output {str(output)!r} is a file; give a directory")
    exists = Journal.exists(output / JOURNAL_FILE)
    if not exists:
        if output.is_dir() and any(output.iterdir()) and not (output / JOURNAL_FILE).exists():
            raise UserError(f"output directory {str(output)!r} is not empty and holds no run; give another one")
        if resume and not output.exists():
            raise UserError(f"--resume: there is no run in {str(output)!r}")
        return
    if not resume:
        raise UserError(f"output directory {str(output)!r} holds a run; add --resume to go on with it, or give another")
    with Journal.open(output / JOURNAL_FILE, read_only=True) as journal:
        kept = identity_of(journal.meta.config)
    if kept != config.identity():
        key = _first_difference(kept, config.identity())
        raise UserError(f"--resume: the run in {str(output)!r} was begun with another configuration: {key}")


def _first_difference(old: Any, new: Any, at: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    return f"{at} was {old!r}, is now {new!r}"


def open_journal(config: RunConfig, output: Path, model_digest: str) -> Journal:
    """The journal of a run, opened for writing, or a new one.

    Raises:
        UserError: the run was begun on another model, or another process writes its journal.
    """
    path = output / JOURNAL_FILE
    if Journal.exists(path):
        journal = Journal.open(path)
        if journal.meta.base_digest != model_digest:
            journal.close()
            raise UserError(
                f"--resume: model {config.model.name!r} has digest {model_digest[:12]}, the run was begun on "
                f"{journal.meta.base_digest[:12]}"
            )
        return journal
    editor = digest_json(
        {"editor": config.dump()["editor"], "contexts": config.dump()["contexts"], "seed": config.seed}
    )
    _make_directory(output, config.directory_mode)
    return Journal.create(
        path,
        JournalMeta(
            run_id=uuid.uuid4().hex,
            base_digest=model_digest,
            editor_digest=editor,
            config=config.dump(),
            errata_version=errata_version(),
        ),
    )


def _make_directory(output: Path, mode: str) -> None:
    """The directory of a new run; what is there already keeps the mode that somebody gave it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists():
        output.mkdir()
        output.chmod(int(mode, 8))  # the process's mask would take from what mkdir is told


def take_in_records(intake: TakesRequests, records: list[StreamRecord], display: Display) -> None:
    """Accept the stream; from here nothing is lost. Doing it again on resume changes nothing."""
    good = [record for record in records if record.request is not None]
    accepted = intake.accept([record.request for record in good if record.request is not None])
    refused = [(r.position, answer.refused) for r, answer in zip(good, accepted, strict=True) if answer.refused]
    refused += [(record.position, record.problem) for record in records if record.problem is not None]
    for position, reason in refused:
        intake.reject(position, reason)
        display.warn(f"{position}: {reason}")


@dataclass(frozen=True)
class Checked:
    """A configuration in which nothing was found that would keep its run from beginning; nothing is written yet."""

    config: RunConfig
    """As given, with what it leaves to the model settled."""
    output: Path
    model_digest: str
    records: list[StreamRecord]
    """Of a stream that is read once."""
    admission: Admission
    """What the model can take in."""
    warnings: tuple[str, ...] = ()
    """What is no mistake and should be known."""


@dataclass(frozen=True)
class OpenRun:
    """A run that can be driven: what it is written to, and where its parts are made."""

    config: RunConfig
    output: Path
    model_digest: str
    journal: Journal
    intake: Intake
    """What accepts requests for the journal."""
    admission: Admission
    store: ArtifactStore
    source: Source | None
    """The stream, where it goes on."""
    tracker: Tracker
    cluster: Parts


def check_run(config: RunConfig, output: Path, *, resume: bool | None, needs_stream: bool) -> Checked:
    """Find whatever the user can have got wrong, before a file is written.

    Args:
        resume: go on with the run that is in ``output``, or begin one there; None for whichever it is.
        needs_stream: a stream must be configured.

    Raises:
        UserError: something the user can put right.
    """
    check_installed("ray", *(["mlflow"] if config.tracking.uri is not None else []))
    check_output_place(output)
    check_ray_places(config.ray)
    if config.artifacts is not None:
        check_place(config.artifacts)
    directory = resolve_model(config.model.name)
    check_layers(config, directory)
    rows = check_checkpoint(directory, config.model.name)
    config = for_model(config, directory)
    check_embedder(config.memory.embedder)
    check_evaluation(config.evaluation)
    read_guard(config.guard, config.evaluation.held_out)
    has_stream = needs_stream or config.stream.path or config.stream.endless
    records = read_records(config) if has_stream else []
    groups = ((config.contexts.count, config.contexts.length), *config.contexts.further)
    context_tokens = max((length for count, length in groups if count), default=0)
    admission = Admission.of(config.model.name, context_tokens=context_tokens)
    check_output(config, output, resume=Journal.exists(output / JOURNAL_FILE) if resume is None else resume)
    digest = checkpoint_digest(directory)
    check_numbers(directory, config.model.name, digest=digest)
    warnings: list[str] = []
    told_of_tokens(admission.text, rows, warnings.append)
    return Checked(config, output, digest, records, admission, tuple(warnings))


@contextmanager
def open_run(checked: Checked, display: Display, *, completed: Status, patience: float) -> Iterator[OpenRun]:
    """Journal, files, stream, tracking and cluster of a run, given back in the opposite order.

    Args:
        completed: what the tracking store is told of a run that was left without an error.
        patience: seconds that the tracking store may take for what it has not been sent yet.

    Raises:
        UserError: the journal is another run's or in use, the stream or the cluster cannot be reached.
    """
    from errata.actors.cluster import Cluster

    config, output = checked.config, checked.output
    for warning in checked.warnings:
        display.warn(warning)
    with open_journal(config, output, checked.model_digest) as journal:
        store = open_for_writing(output, config.artifacts)
        intake = Intake(journal, checked.admission)
        take_in_records(intake, checked.records, display)
        source = open_source(config.stream, journal)
        (output / "resolved.yaml").write_text(config.to_yaml(), encoding="utf-8")
        tracker = Tracker(
            output,
            run_key=journal.meta.run_id,
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=config.name,
            tags=tags(config, output, model_digest=checked.model_digest, release=errata_version()),
            system_seconds=config.tracking.system_seconds,
        )
        tracker.log_params(parameters(config))
        tracker.log_artifact(output / "resolved.yaml")
        data = stream_data(config.stream, _digests(checked.records))
        if data is not None:
            tracker.log_input(data)
        status: Status = "FAILED"
        try:
            with Cluster(config.ray, config.model_spec(checked.model_digest)) as cluster:
                yield OpenRun(
                    config=config,
                    output=output,
                    model_digest=checked.model_digest,
                    journal=journal,
                    intake=intake,
                    admission=checked.admission,
                    store=store,
                    source=source,
                    tracker=tracker,
                    cluster=cluster,
                )
            status = completed
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            display.begin("sending what is left to the tracking store")
            if not tracker.close(timeout=patience, status=status):
                display.say("tracking: the store did not take everything; the rest is kept and sent on --resume")


def _digests(records: list[StreamRecord]) -> list[str]:
    return [
        record.position
        if record.request is None
        else payload_digest(record.request)
        if isinstance(record.request, EditRequest)
        else digest_json(record.request.model_dump(mode="json"))
        for record in records
    ]


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: cleanly, with what is done kept."""

    def handler(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
