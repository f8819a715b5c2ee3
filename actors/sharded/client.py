"""A sharded model as one object: what an unsharded model offers, over ranks that may be lost and are made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.actors.clients import RevivingClient
from errata.actors.runtime import make_actor
from errata.actors.settings import ModelSpec, RayConfig, RoleConfig
from errata.actors.sharded.worker import ModelActor
from errata.editing.delta import WeightDelta
from errata.editing.errors import ErrataError
from errata.editing.model.engine import Answer, Continuation
from errata.editing.request import EditRequest
from errata.editing.values import TargetValue, ValueConfig

logger = logging.getLogger(__name__)


class ShardedModel(RevivingClient):
    """One model over the ranks of a group (or in one actor, without ``parallel``).

    The ranks are a cache of base and ``deltas``: when one is lost, all are ended, new ones load their slices, take the
    deltas over in their order, and the call is done again. Not thread-safe.
    """

    def __init__(
        self, config: RayConfig, spec: ModelSpec, role: RoleConfig, deltas: Sequence[WeightDelta] = ()
    ) -> None:
        """``deltas`` are those of the version to begin at."""
        self._deltas = list(deltas)
        super().__init__(config, f"a rank of {spec.name!r}", lambda: make_actor(ModelActor, role, spec, role))
        self._bring_up()

    @property
    def deltas(self) -> tuple[WeightDelta, ...]:
        """The changes that make up the version, in their order."""
        return tuple(self._deltas)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 12) -> list[Answer]:
        """Greedy continuations."""
        answers: list[Answer] = self._call(lambda a: a.generate.remote(list(prompts), max_new_tokens))
        return answers

    def score(self, rows: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Teacher-forced scores of a target behind each prompt."""
        continuations: list[Continuation] = self._call(lambda a: a.score.remote(list(rows)))
        return continuations

    def perplexity(self, text: str) -> float:
        """Perplexity of paragraphs, an empty line between them."""
        return float(self._call(lambda a: a.perplexity.remote(text)))

    def logits(self, prompt: str) -> Tensor:
        """Logits (T, V) at every position, float32."""
        rows: Tensor = self._call(lambda a: a.logits.remote(prompt))
        return rows

    def hidden_states(self, prompt: str, layer: int) -> Tensor:
        """Output (T, d) of a layer at every position, float32."""
        states: Tensor = self._call(lambda a: a.hidden_states.remote(prompt, layer))
        return states

    def keys(self, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int) -> Tensor:
        """Keys (I, m) of edits at a layer, float32."""
        columns: Tensor = self._call(lambda a: a.keys.remote(list(requests), tuple(contexts), layer))
        return columns

    def second_moments(self, texts: Sequence[str], layers: Sequence[int]) -> tuple[dict[int, Tensor], int]:
        """Sums of key outer products, float64 (I, I), by layer over all tokens of the texts; and their number."""
        sums: tuple[dict[int, Tensor], int] = self._call(lambda a: a.second_moments.remote(list(texts), tuple(layers)))
        return sums

    def optimize_values(
        self, requests: Sequence[EditRequest], *, layer: int, contexts: Sequence[str], config: ValueConfig
    ) -> list[TargetValue]:
        """Target values of edits at a layer."""
        values: list[TargetValue] = self._call(
            lambda a: a.optimize_values.remote(list(requests), layer, tuple(contexts), config)
        )
        return values

    def apply(self, delta: WeightDelta) -> None:
        """Add a change to the weights; it belongs to the version from here on."""
        self._change([*self._deltas, delta], lambda a: a.apply.remote(delta))

    def undo(self) -> None:
        """Take the last change back, byte for byte.

        Raises:
            ErrataError: there is none.
        """
        if not self._deltas:
            raise ErrataError("there is no change to take back")
        self._change(self._deltas[:-1], lambda a: a.undo.remote())

    def weights(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Float32 masters (O, I) of edited maps, whole."""
        parts: dict[int, Tensor] = self._call(lambda a: a.weights.remote(tuple(layers)))
        return parts

    def export(self, directory: Path) -> None:
        """Write the model as it is now as a checkpoint, on a file system that rank 0 sees."""
        self._call(lambda a: a.export.remote(str(directory)))

    def rebuild(self) -> None:
        """End every rank, start again, and take the deltas over."""
        self._renew()
        self._bring_up()

    # --- fault handling ---

    def _change(self, wanted: list[WeightDelta], ask: Callable[[Any], Any]) -> None:
        before, kept = self._revivals, self._deltas
        self._deltas = wanted

        def once() -> None:
            # ranks made again on the way have taken over what is wanted already
            if self._revivals == before:
                self._get(ask(self._actor))

        try:
            self._guarded(once)
        except BaseException:
            self._deltas = kept
            raise

    def _catch_up(self) -> None:
        for delta in self._deltas:
            self._get(self._actor.apply.remote(delta))
