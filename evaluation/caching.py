"""An engine that remembers: the unedited model answers the same question the same way every time."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from errata.editing.model.engine import Answer, Chosen, Continuation, LanguageEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from errata.editing.model.adapter import EditableModel

Row = tuple[Sequence[int], Sequence[int]]


def _ids_digest(ids: Sequence[int]) -> bytes:
    digest = blake2b(array("q", ids).tobytes(), digest_size=16)
    if isinstance(ids, Chosen):
        digest.update(b"with" + array("q", ids.owners).tobytes())
    return digest.digest()


class CachingEngine(LanguageEngine):
    """A `LanguageEngine` that keeps results under a digest of the weights they were computed with.

    Nothing is kept or looked up unless a digest is set with `weights`: an engine cannot see a weight
    change. Whatever runs through this engine is served: scores of probes as well as a chooser's scores of
    statements.
    """

    def __init__(self, model: EditableModel, *, batch_tokens: int = 4096, max_entries: int = 50_000) -> None:
        super().__init__(model, batch_tokens=batch_tokens)
        self.max_entries = max_entries
        self.hits = 0
        self.misses = 0
        self._digest: str | None = None
        self._kept: OrderedDict[tuple[object, ...], tuple[Continuation, Answer]] = OrderedDict()

    @contextmanager
    def weights(self, digest: str | None) -> Iterator[None]:
        """Within the context results belong to the weights of this digest; None: nothing is remembered."""
        before, self._digest = self._digest, digest
        try:
            yield
        finally:
            self._digest = before

    def score(self, rows: Sequence[Row]) -> list[Continuation]:
        """As `LanguageEngine.score`, from memory where it is known."""
        return [scored for scored, _ in self._recall(rows, 0, False)]

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 12, stop_at_newline: bool = True
    ) -> list[Answer]:
        """As `LanguageEngine.generate`, from memory where it is known."""
        return [answer for _, answer in self._recall([(p, ()) for p in prompts], max_new_tokens, stop_at_newline)]

    def score_and_generate(
        self, rows: Sequence[Row], *, max_new_tokens: int = 12, stop_at_newline: bool = True
    ) -> list[tuple[Continuation, Answer]]:
        """As `LanguageEngine.score_and_generate`, from memory where it is known."""
        return self._recall(rows, max_new_tokens, stop_at_newline)

    def _recall(
        self, rows: Sequence[Row], max_new_tokens: int, stop_at_newline: bool
    ) -> list[tuple[Continuation, Answer]]:
        if self._digest is None:
            return super().score_and_generate(rows, max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline)
        settings = (self._digest, max_new_tokens, stop_at_newline)
        keys = [(*settings, _ids_digest(prompt), _ids_digest(continuation)) for prompt, continuation in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        self.hits += len(rows) - len(missing)
        self.misses += len(missing)
        fresh: dict[tuple[object, ...], tuple[Continuation, Answer]] = {}
        if missing:
            results = super().score_and_generate(
                list(missing.values()), max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline
            )
            fresh = dict(zip(missing, results, strict=True))
        # answers are collected before anything is dropped: one call may be larger than the whole store
        recalled = [fresh[key] if key in fresh else self._kept[key] for key in keys]
        for key, result in zip(keys, recalled, strict=True):
            self._kept[key] = result
            self._kept.move_to_end(key)
        while len(self._kept) > self.max_entries:
            self._kept.popitem(last=False)
        return recalled
