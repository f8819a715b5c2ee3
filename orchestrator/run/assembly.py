"""The one place where the configuration of a run is cut into the sections that its components take."""

from __future__ import annotations

from errata.actors.parts import Parts
from errata.actors.workers.editor import ContextSpec
from errata.actors.workers.evaluation import EvaluationSettings
from errata.editing.editors import make_editor
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.covariance.schedule import Refreshing
from errata.orchestrator.history.receipts import memory_entries
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.measuring.measurer import JUDGMENTS, Measurer
from errata.orchestrator.measuring.timeline import Timeline
from errata.orchestrator.progress import Display
from errata.orchestrator.publish.sampling import LiveSampling
from errata.orchestrator.run.pipeline import Past, Pipeline, PipelineParts
from errata.orchestrator.tracking.tracker import NullTracker, Tracker


def make_pipeline(
    config: RunConfig,
    journal: Journal,
    store: ArtifactStore,
    cluster: Parts,
    *,
    tracker: Tracker | NullTracker,
    display: Display,
    final_follows: bool = False,
) -> Pipeline:
    """Everything that a run is made of, on the parts that a cluster (or this process) makes; nothing is started yet.

    Args:
        final_follows: when nothing waits any more, the owner evaluates everything, the timeline's facts too.
    """
    layers = list(make_editor(config.editor).mapped_layers)
    display.say(f"model {config.model.name}, editor {config.editor.type}, layers {layers}")
    past = Past(journal, store)
    estimator = cluster.estimator()
    editor = cluster.editor(
        config.editor,
        ContextSpec(
            config.contexts.count,
            config.contexts.length,
            config.seed,
            further=config.contexts.further,
            verify=config.verify,
        ),
        past,
    )
    memory = cluster.memory(
        config.memory.embedder,
        config.memory.index,
        lambda: memory_entries(journal, config.memory.statement),
        kept_in=(store.root / "memory").absolute(),
        router=config.router,
    )
    evaluators = cluster.evaluators(
        EvaluationSettings(
            config.memory.scr,
            config.evaluation.arms,
            config.evaluation.max_new_tokens,
            config.evaluation.stop_at_newline,
            config.evaluation.reasoning,
            config.router.answer,
        )
    )
    measurer = Measurer(
        evaluators,
        memory,
        config.evaluation,
        config.memory,
        journal.base().digest,
        judgments=store.root / JUDGMENTS,
    )
    timeline = Timeline(
        config.evaluation,
        journal,
        measurer,
        editor.weights,
        tracker=tracker,
        display=display,
        whole=final_follows and not config.stream.endless,
    )
    refreshing = Refreshing(
        config.covariance,
        config.refresh,
        journal,
        store,
        editor,
        LiveSampling(estimator, config.publish, journal, store),
        method=config.editor,
        dtype=config.model.dtype,
        asap=config.schedule == "asap",
        tracker=tracker,
        display=display,
    )
    return Pipeline(
        journal,
        store,
        PipelineParts(editor, memory, evaluators, measurer, timeline, refreshing, past),
        method=config.editor,
        batching=config.batching,
        snapshots=config.snapshots,
        statement=config.memory.statement,
        every=config.evaluation.every,
        tracker=tracker,
        display=display,
        final_follows=final_follows,
        retries=config.verify.on_weak == "retry",
        repair=config.repair,
        seed=config.seed,
    )
