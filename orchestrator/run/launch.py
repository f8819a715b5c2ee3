"""From a configuration to a running loop: checks first, then the directory, then everything else.

Whatever the user can have got wrong is found before a file is written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from errata.actors.cluster import Cluster
from errata.editing.checkpoint.load import checkpoint_digest, resolve_model
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.guard.rules import read_guard
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.journal.intake import Admission, Intake
from errata.orchestrator.measuring.measurer import check_evaluation
from errata.orchestrator.progress import Display
from errata.orchestrator.run.attached import open_source
from errata.orchestrator.run.loop import RunLoop
from errata.orchestrator.run.opening import (
    check_layers,
    check_output,
    for_model,
    open_journal,
    read_records,
    take_in_records,
    termination_as_interrupt,
)
from errata.orchestrator.tracking.tracker import Tracker
from errata.retrieval.embedder import check_embedder

logger = logging.getLogger(__name__)


def run_experiment(config: RunConfig, output: Path, *, resume: bool, display: Display) -> None:
    """Run to the end, or go on with a run that was interrupted.

    Raises:
        UserError: something the user can put right; nothing was written then.
        KeyboardInterrupt: interrupted; what was committed is kept and ``resume`` goes on from there.
    """
    directory = resolve_model(config.model.name)
    check_layers(config, directory)
    config = for_model(config, directory)
    check_embedder(config.memory.embedder)
    check_evaluation(config.evaluation)
    read_guard(config.guard, config.evaluation.held_out)
    records = read_records(config)
    admission = Admission.of(config.model.name, context_tokens=config.contexts.length if config.contexts.count else 0)
    check_output(config, output, resume=resume)
    model_digest = checkpoint_digest(directory)
    with termination_as_interrupt(), open_journal(config, output, model_digest) as journal:
        store = open_store(output)
        store.sweep()
        intake = Intake(journal, admission)
        take_in_records(intake, records, display)
        source = open_source(config.stream, journal)
        (output / "resolved.yaml").write_text(config.to_yaml(), encoding="utf-8")
        tracker = Tracker(
            output,
            run_key=journal.meta.run_id,
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=config.name,
            tags=None if config.tracking.parent is None else {"mlflow.parentRunId": config.tracking.parent},
        )
        tracker.log_params(config.dump())
        status: Any = "FAILED"
        try:
            with Cluster(config.ray, config.model_spec(model_digest)) as cluster:
                loop = RunLoop(
                    config,
                    journal,
                    store,
                    cluster,
                    output=output,
                    model_digest=model_digest,
                    tracker=tracker,
                    display=display,
                    source=source,
                    intake=intake,
                )
                try:
                    loop.run()
                finally:
                    loop.close()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if not tracker.close(timeout=60.0, status=status):
                display.say("tracking: the store did not take everything; the rest is kept and sent on --resume")
