"""From a configuration to a run that is driven to its end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.attached import attach
from errata.orchestrator.run.described import TABLE, write_fact_table
from errata.orchestrator.run.loop import Ending, RunLoop
from errata.orchestrator.run.opening import OpenRun, check_run, open_run, termination_as_interrupt
from errata.orchestrator.run.outputs import write_outputs


def run_experiment(config: RunConfig, output: Path, *, resume: bool, display: Display) -> None:
    """Run to the end, or go on with a run that was interrupted.

    Raises:
        UserError: something the user can put right; nothing was written then.
        KeyboardInterrupt: interrupted; what was committed is kept and ``resume`` goes on from there.
    """
    checked = check_run(config, output, resume=resume, needs_stream=True)
    with (
        termination_as_interrupt(),
        open_run(checked, display, completed="FINISHED", patience=60.0) as run,
    ):
        loop = make_loop(run, display)
        try:
            loop.run()
        finally:
            loop.close()


def make_loop(run: OpenRun, display: Display) -> RunLoop:
    """The loop of an open run, with everything it drives."""
    config, started_at = run.config, datetime.now(UTC)
    pipeline = make_pipeline(
        config, run.journal, run.store, run.cluster, tracker=run.tracker, display=display, final_follows=True
    )
    attached = attach(
        pipeline,
        config.guard,
        config.publish,
        run.output,
        held_out=config.evaluation.held_out,
        metrics=run.tracker.log_metrics,
        say=display.say,
    )

    def write(ending: Ending) -> None:
        write_outputs(
            config,
            run.journal,
            run.output,
            model_digest=run.model_digest,
            final=ending.final,
            rows=ending.rows,
            base_perplexity=ending.base_perplexity,
            base_perplexities=ending.base_perplexities,
            started_at=started_at,
            wall_seconds=ending.wall_seconds,
            covariance_seconds=ending.covariance_seconds,
            evaluation_seconds=ending.evaluation_seconds,
        )
        for name in ("summary.json", "report.html", "resolved.yaml", "facts.jsonl"):
            run.tracker.log_artifact(run.output / name)
        table = write_fact_table(run.output)
        if table is not None:
            run.tracker.log_table(table, TABLE)

    return RunLoop(pipeline, attached, run.source, run.intake, write, evaluation=config.evaluation, display=display)
