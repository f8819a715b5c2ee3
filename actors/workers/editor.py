"""The editor of one process: an `EditSession` over a model that it loads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.model import load_for
from errata.editing.contexts import sample_groups
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.errors import ErrataError, in_words
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.reverting import HistoryItem, RevertOrder, revert
from errata.editing.session import EditReceipt, EditSession, Snapshot
from errata.editing.verify import VerifyConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContextSpec:
    """What a session is made with besides its editor: the context prefixes, given or sampled from the base model, and
    how it looks at its batches."""

    count: int
    length: int
    seed: int
    given: tuple[str, ...] | None = None
    further: tuple[tuple[int, int], ...] = ()
    """(count, length) of more prefixes."""
    verify: VerifyConfig | None = None


class EditorWorker:
    """An `EditSession` over a model loaded in this process. Plain class; `EditorActor` is its shell."""

    def __init__(
        self,
        spec: ModelSpec,
        role: RoleConfig,
        editor_config: Any,
        contexts: ContextSpec,
        model: EditableModel | None = None,
    ) -> None:
        """``model`` is the one of ``spec`` where it is loaded already."""
        self._model = model or load_for(role, spec)
        self._editor = make_editor(editor_config)
        self._model.check_layers(self._editor.layers)
        groups = ((contexts.count, contexts.length), *contexts.further)
        self.contexts = contexts.given or sample_groups(self._model, groups, seed=contexts.seed)
        self._verify = contexts.verify
        self._session: EditSession | None = None

    def start(self, covariance: KeyCovariance | None) -> None:
        """Begin the lifetime on its first covariance."""
        self._session = EditSession(self._model, self._editor, covariance, self.contexts, self._verify)

    def map_widths(self) -> dict[int, int]:
        """d_in of every edited map."""
        return {layer: self._model.width(layer) for layer in self._editor.mapped_layers}

    def session(self) -> EditSession:
        """The session; raises before ``start``."""
        if self._session is None:
            raise ErrataError("the editor has not been started with a covariance yet")
        return self._session

    def rehearse(self, requests: Sequence[EditRequest]) -> None:
        """Compute a batch and forget it, to see whether this process outlives that; `apply` meets what is raised."""
        try:
            self.session().rehearse(requests)
        except Exception as error:
            logger.info("a rehearsal raised %s", in_words(error))

    def replay(self, item: HistoryItem) -> None:
        """Take over one item of history."""
        if isinstance(item, KeyCovariance):
            self.session().swap_covariance(item)
        elif isinstance(item, Snapshot):
            self.session().resume(item)
        else:
            self.session().replay(item)

    def revert(self, order: RevertOrder, items: Iterable[HistoryItem]) -> EditReceipt:
        """Take edits out; ``items`` are the history as far as computing without them needs it."""
        return revert(self.session(), order, items)
