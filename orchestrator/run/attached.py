"""What a configuration hangs onto a pipeline: the guard, the publication policy, a stream that goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from errata.orchestrator.config.guard import GuardConfig
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.stream import StreamConfig
from errata.orchestrator.guard.guard import Guard, GuardPauseError
from errata.orchestrator.guard.rules import read_guard
from errata.orchestrator.guard.watch import PoolWatch
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.policy import PublishPolicy
from errata.orchestrator.publish.publisher import publish_to_servers
from errata.orchestrator.publish.rollout import ServerResult
from errata.orchestrator.sources import Source

if TYPE_CHECKING:
    from errata.orchestrator.run.pipeline import Pipeline

Metrics = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Attached:
    """Guard and policy of one pipeline, in the order of its boundaries: what is published was judged before."""

    guard: Guard | None
    policy: PublishPolicy | None

    def start(self, *, resumed_by: str | None = None) -> None:
        """Once the pipeline has started.

        Args:
            resumed_by: who lets a stream go on that the guard has paused, if anybody does. A revert that was begun
                and not finished is finished all the same, and the stream stays paused for this once.
        """
        if self.guard is None:
            return
        if resumed_by is not None and not self.guard.unfinished:
            self.guard.resume(resumed_by)
        self.guard.start()

    def check(self) -> None:
        """Before every batch, on the thread that writes.

        Raises:
            GuardPauseError: the guard has paused the stream.
        """
        if self.guard is None:
            return
        self.guard.act()
        if self.guard.paused is not None:
            raise GuardPauseError(
                f"paused by the guard at {self.guard.paused}; what was committed is kept. `errata log` shows it, "
                "`errata revert` takes edits out, --resume goes on"
            )

    def finish(self) -> None:
        """The stream has ended: nothing is left under way."""
        if self.guard is not None:
            self.guard.finish()
        self.wait_published()

    def wait_published(self) -> None:
        """Return when the policy is publishing nothing; from any thread."""
        if self.policy is not None:
            self.policy.wait()

    def close(self) -> None:
        """Before the pipeline is closed."""
        if self.policy is not None:
            self.policy.close()
        if self.guard is not None:
            self.guard.close()


def attach(
    pipeline: Pipeline,
    guard: GuardConfig,
    publish: PublishConfig,
    run: Path,
    *,
    held_out: str | None,
    metrics: Metrics = lambda values, step: None,
    say: Callable[[str], None] = lambda line: None,
    may_publish: Callable[[], bool] = lambda: True,
) -> Attached:
    """Hang the guard and the publication policy onto the pipeline's commits, where they are wanted.

    Args:
        run: directory of the run.
        held_out: file of the text whose perplexity the guard watches.
        metrics: draws points of curves, by name, at a number of edits.
        say: one line for whoever watches.
        may_publish: asked by the publication policy, at a commit; no puts its publication off to the next.

    Raises:
        UserError: the guard's files cannot be read.
    """
    watching = attach_guard(pipeline, guard, held_out, metrics=metrics, say=say)

    def holds() -> bool:
        return may_publish() and (watching is None or watching.holds)

    return Attached(watching, attach_policy(pipeline, publish, run, holds=holds, say=say))


def open_source(stream: StreamConfig, journal: Journal) -> Source | None:
    """The stream of a configuration that goes on; None for one that is read once, or not at all.

    Raises:
        UserError: the file cannot be followed, or no Redis server or Kafka broker answers.
    """
    if stream.redis is not None:
        from errata.orchestrator.sources.redis_stream import RedisStream

        return RedisStream(stream.redis, schema=stream.schema_, target=stream.target)
    if stream.kafka is not None:
        from errata.orchestrator.sources.kafka_stream import KafkaStream

        return KafkaStream(stream.kafka, schema=stream.schema_, target=stream.target)
    if stream.follow:
        from errata.orchestrator.sources.jsonl_follow import open_followed

        return open_followed(Path(stream.path).expanduser(), journal, schema=stream.schema_, target=stream.target)
    return None


def attach_guard(
    pipeline: Pipeline,
    config: GuardConfig,
    held_out: str | None,
    *,
    metrics: Callable[[Mapping[str, float], int], None] = lambda values, step: None,
    say: Callable[[str], None] = lambda line: None,
) -> Guard | None:
    """The guard, watching a pipeline's commits; None where none is configured.

    Call `Guard.start` once the pipeline has started, look at `Guard.paused` before every batch, call `Guard.act` now
    and then where `GuardConfig.wait` is false, and close the guard before the pipeline.

    Raises:
        UserError: see `read_guard`.
    """
    if config.every is None:
        return None
    probes, text = read_guard(config, held_out)
    guard = Guard(
        config,
        probes,
        text,
        journal=pipeline.journal,
        watch=PoolWatch(pipeline.evaluators),
        weights=pipeline.editor.weights,
        revert=lambda ids, reason: pipeline.revert(ids, reason=reason, by="guard"),
        metrics=metrics,
        say=say,
    )
    pipeline.after_commit.append(guard.after_commit)
    return guard


def attach_policy(
    pipeline: Pipeline,
    config: PublishConfig,
    run: Path,
    *,
    holds: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = lambda line: None,
) -> PublishPolicy | None:
    """The policy of a configuration, at a pipeline's commits; None where none is configured.

    Attach it after the guard, so that the guard has judged a version before it is published; close it before the
    pipeline.
    """
    if config.every is None:
        return None
    journal, store = pipeline.journal, pipeline.store

    def publish(version: Version) -> Sequence[ServerResult]:
        return publish_to_servers(journal, store, version, config, run)

    policy = PublishPolicy(config, journal, publish, holds=holds, say=say)
    # not the version that was committed: the guard may have reverted it meanwhile
    pipeline.after_commit.append(lambda _: policy.after_commit(pipeline.head()))
    return policy
