"""A run's editor in this process, for commands that change a run which nobody is running: no measurements, and no Ray
unless the model is spread over several processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from errata.actors.parts import EditorPart
from errata.actors.workers.editor import ContextSpec, EditorWorker
from errata.editing.checkpoint.load import checkpoint_digest
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.errors import UserError
from errata.editing.reverting import HistoryItem, RevertOrder
from errata.editing.session import EditReceipt, Snapshot
from errata.orchestrator.config.loading import check_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.rebuild import base_directory
from errata.orchestrator.history.receipts import history, memory_entry, open_store
from errata.orchestrator.history.snapshots import newest_snapshot, store_snapshot
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import RequestRow, Version
from errata.orchestrator.run.reverting import commit_revert, plan_revert


class LocalEditor:
    """An editor brought to the head of a journal; it calls the same plain class as the editor's actor."""

    def __init__(
        self,
        worker: EditorWorker,
        items: Iterable[HistoryItem],
        each: Callable[[LocalEditor], None] = lambda editor: None,
    ) -> None:
        """``each`` is called after every item but the first."""
        self._worker = worker
        remaining = iter(items)
        first = next(remaining, None)
        worker.start(first if isinstance(first, KeyCovariance) else None)
        if first is not None and not isinstance(first, KeyCovariance):
            worker.replay(first)
        for item in remaining:
            # before a covariance that takes over, which belongs to the next commit
            each(self)
            worker.replay(item)

    @property
    def sequence(self) -> int:
        """Number of the commit that it stands at."""
        return self._worker.session().sequence

    def revert(self, order: RevertOrder, items: Callable[[], Iterable[HistoryItem]]) -> EditReceipt:
        """Take edits out."""
        return self._worker.revert(order, items())

    def keys_wanted(self, fact_keys: Sequence[str]) -> tuple[str, ...]:
        """Requests whose keys must be told if these facts leave."""
        return self._worker.session().keys_wanted(fact_keys)

    def norms(self) -> dict[int, float]:
        """Frobenius norms of the edited matrices."""
        return self._worker.session().norms()

    def snapshot(self) -> Snapshot:
        """The editor as it stands."""
        return self._worker.session().snapshot()


class OfflineRun:
    """A run that is opened to be changed. Close it, or use it in a ``with`` block.

    Raises:
        UserError: the run is being written by another process, or its base model is not there or another one.
    """

    def __init__(self, run: Path, *, model: str | None = None) -> None:
        self.journal = Journal.open(run / JOURNAL_FILE)
        self._stack = ExitStack()
        self._stack.callback(self.journal.close)
        try:
            self.store: ArtifactStore = open_store(run)
            self.store.sweep()
            self._config: RunConfig = check_config(self.journal.meta.config, run / JOURNAL_FILE)
            directory = base_directory(self.journal, model)
            digest = checkpoint_digest(directory)
            if digest != self.journal.meta.base_digest:
                raise UserError(
                    f"model {str(directory)!r} has digest {digest[:12]}, the run was begun on "
                    f"{self.journal.meta.base_digest[:12]}; give the right one with --model"
                )
            self._spec = self._config.model_spec(digest).model_copy(update={"name": str(directory)})
        except BaseException:
            self._stack.close()
            raise

    def check_revert(self, request_ids: Sequence[str]) -> None:
        """Raise UserError where `revert` would, before a model is loaded; nothing is changed."""
        plan_revert(self.journal, self.store, request_ids, commutes=make_editor(self._config.editor).commutes)

    def statements(self, rows: Iterable[RequestRow]) -> list[str]:
        """How the memory words requests; one that never was valid is passed over."""
        worded = []
        for row in rows:
            with suppress(ValueError):
                worded.append(memory_entry(row, self._config.memory.statement).statement)
        return worded

    def snapshots_at(self, sequences: Sequence[int]) -> dict[int, str]:
        """Store the editor as it was at some versions; returns the snapshots' digests by version number."""
        stored: dict[int, str] = {}
        first = newest_snapshot(self.journal, self.store, before=min(sequences) + 1)
        items = history(self.journal, self.store, since=None if first is None else first[1], upto=max(sequences))

        def kept(editor: LocalEditor) -> None:
            sequence = editor.sequence
            if sequence in sequences and sequence not in stored:
                version = self.journal.version(sequence)
                stored[sequence] = store_snapshot(self.journal, self.store, editor.snapshot(), version)

        editor = self._local(items, each=kept)
        kept(editor)
        return stored

    def revert(
        self,
        request_ids: Iterable[str],
        *,
        reason: str = "",
        by: str | None = None,
        kind: Literal["revert", "erase"] = "revert",
    ) -> Version:
        """Take applied requests out of the weights, in one commit; the memory is filled from the journal when needed.

        Raises:
            UserError: a request is unknown, or is not in the weights; nothing has changed then.
        """
        names, head = list(request_ids), self.journal.head()
        # what is refused is refused before a model is loaded
        commutes = make_editor(self._config.editor).commutes
        plan_revert(self.journal, self.store, names, commutes=commutes)
        return commit_revert(
            self.journal,
            self.store,
            self._editor(),
            names,
            commutes=commutes,
            contexts=head.contexts,
            reason=reason,
            by=by,
            kind=kind,
        )[0]

    def snapshot(self) -> tuple[Version, str]:
        """Store the editor at the head; returns the version and the snapshot's digest.

        Raises:
            UserError: nothing was edited yet.
        """
        head = self.journal.head()
        if head.sequence == 0:
            raise UserError("snapshot: nothing was edited yet; there is nothing to keep")
        return head, store_snapshot(self.journal, self.store, self._editor().snapshot(), head)

    def close(self) -> None:
        """Give the journal back, and what the model was spread over."""
        self._stack.close()

    def __enter__(self) -> OfflineRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _local(self, items: Iterable[HistoryItem], each: Callable[[LocalEditor], None]) -> LocalEditor:
        if self._spec.parallel is not None:
            raise UserError(
                "compact: older versions of a model that is spread over processes cannot be snapshotted here"
            )
        return LocalEditor(self._worker(), items, each)

    def _worker(self) -> EditorWorker:
        return EditorWorker(self._spec, self._config.ray.editor, self._config.editor, self._contexts())

    def _contexts(self) -> ContextSpec:
        head = self.journal.head()
        if head.contexts is None:
            raise UserError("the run's newest commit names no context prefixes; nothing can be computed again")
        contexts: list[Any] = json.loads(self.store.get("contexts", head.contexts).read_text(encoding="utf-8"))
        given = self._config.contexts
        return ContextSpec(given.count, given.length, self._config.seed, tuple(contexts), verify=self._config.verify)

    def _editor(self) -> LocalEditor | EditorPart:
        newest = newest_snapshot(self.journal, self.store)
        since = None if newest is None else newest[1]
        if self._spec.parallel is None:
            return LocalEditor(self._worker(), history(self.journal, self.store, since=since))
        # of the run's actors only the editor is made, so that room for all of them need not be there
        from errata.actors.cluster import Cluster

        ray = self._config.ray.model_copy(update={"reserve": False})
        cluster = self._stack.enter_context(Cluster(ray, self._spec))
        editor = cluster.editor(
            self._config.editor, self._contexts(), lambda: history(self.journal, self.store, since=since)
        )
        editor.restore()
        return editor
