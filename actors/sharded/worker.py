"""What can be asked of a model without a run around it; the same code for a whole model and for one rank's part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
import torch
from torch import Tensor

from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.sharded.export import write_checkpoint
from errata.actors.sharded.model import BlockMoments, ShardedEditableModel
from errata.actors.workers.model import load_for
from errata.editing.checkpoint.load import resolve_model
from errata.editing.covariance import MomentAccumulator
from errata.editing.delta import WeightDelta, apply_delta
from errata.editing.errors import ErrataError
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of
from errata.editing.model.engine import Answer, Continuation, LanguageEngine
from errata.editing.request import EditRequest
from errata.editing.values import TargetValue, ValueConfig, optimize_values
from errata.evaluation.perplexity import perplexity, windows_of


class ModelWorker:
    """Passes over a model and edits of it. Plain class; `ModelActor` is its shell."""

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self._engine = LanguageEngine(model)
        self._undo: list[Mapping[int, tuple[Tensor, Tensor]]] = []

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Answer]:
        """Greedy continuations."""
        encoded = [self.model.text.encode_prompt(prompt) for prompt in prompts]
        return self._engine.generate(encoded, max_new_tokens=max_new_tokens)

    def score(self, rows: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Teacher-forced scores of a target behind each prompt."""
        text = self.model.text
        return self._engine.score([(text.encode_prompt(p), text.encode_target(target)) for p, target in rows])

    def perplexity(self, text: str) -> float:
        """Perplexity of paragraphs."""
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        return perplexity(self._engine, windows_of(self.model.text, paragraphs)).value

    @torch.no_grad()
    def logits(self, prompt: str) -> Tensor:
        """Logits (T, V) at every position of a prompt, float32 on the CPU."""
        return self.model.logits(self._states(prompt, self.model.num_layers - 1)).float().cpu()

    @torch.no_grad()
    def hidden_states(self, prompt: str, layer: int) -> Tensor:
        """Output (T, d) of a layer at every position of a prompt, float32 on the CPU."""
        return self._states(prompt, layer).float().cpu()

    def _states(self, prompt: str, layer: int) -> Tensor:
        rows = self.model.rows([self.model.text.encode_prompt(prompt)])
        return self.model.run(self.model.embed(rows), 0, layer + 1, self.model.positional(rows.layout))[0]

    def keys(self, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int) -> Tensor:
        """Keys (I, m) of edits at a layer, float32 on the CPU."""
        return SubjectPass(self.model, requests, contexts).keys(layer).cpu()

    def second_moments(self, texts: Sequence[str], layers: Sequence[int]) -> tuple[dict[int, Tensor], int]:
        """Sums of key outer products by layer, float64 (I, I), over all tokens of the texts; and their number."""
        moments, tokens = self._moments(texts, layers)
        return {layer: moment.total().cpu() for layer, moment in moments.items()}, tokens

    def second_moment_rows(self, texts: Sequence[str], layers: Sequence[int]) -> dict[int, Tensor]:
        """This rank's block of rows (I / N, I) of the same sums; no rank sees the others' blocks."""
        moments, _ = self._moments(texts, layers)
        return {n: m.rows() if isinstance(m, BlockMoments) else m.total() for n, m in moments.items()}

    @torch.no_grad()
    def _moments(self, texts: Sequence[str], layers: Sequence[int]) -> tuple[dict[int, MomentAccumulator], int]:
        model, tokens = self.model, 0
        moments = {layer: model.moments(layer) for layer in layers}
        for text in texts:
            rows = model.rows([model.text.encode_prompt(text)])
            tokens += rows.ids.shape[1]
            with model.map_inputs(layers) as inputs:
                model.run(model.embed(rows), 0, max(map(layer_of, layers)) + 1, model.positional(rows.layout))
                for layer in layers:
                    moments[layer].add(inputs[layer][0])
        return moments, tokens

    def optimize_values(
        self, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str], config: ValueConfig
    ) -> list[TargetValue]:
        """Target values of edits at a layer."""
        return optimize_values(self.model, requests, layer=layer, contexts=contexts, config=config)

    def apply(self, delta: WeightDelta) -> None:
        """Add a change to the weights; of a divided model each rank changes its slice."""
        model = self.model
        if isinstance(model, ShardedEditableModel):
            self._undo.append(model.parts(tuple(delta.layers)))
            for layer, change in delta.layers.items():
                model.apply_change(layer, change)
            return
        self._undo.append({n: (model.weight(n), model.parameter(n).detach().clone()) for n in delta.layers})
        for layer, change in delta.layers.items():
            model.set_weight(layer, apply_delta(model.weight(layer), change))

    def undo(self) -> None:
        """Take the last change back, byte for byte.

        Raises:
            ErrataError: there is none.
        """
        if not self._undo:
            raise ErrataError("there is no change to take back")
        model, saved = self.model, self._undo.pop()
        if isinstance(model, ShardedEditableModel):
            model.set_parts(saved)
            return
        for layer, (master, _) in saved.items():
            model.set_weight(layer, master)

    def weights(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Float32 masters (O, I) of edited maps, whole, on the CPU."""
        self.model.check_layers(layers)
        return {layer: weight.cpu() for layer, weight in self.model.weights(layers).items()}

    def export(self, directory: str) -> None:
        """Write the model as it is now as a checkpoint; only rank 0 writes."""
        if not isinstance(self.model, ShardedEditableModel):
            raise ErrataError("only a divided model is exported from its ranks; `errata export` is for the others")
        target = Path(directory)
        write_checkpoint(self.model, target)
        if self.model.group.rank == 0:
            for path in sorted(resolve_model(self.model.name).iterdir()):
                if path.suffix in (".json", ".model", ".txt", ".jinja") and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, target / path.name)


@ray.remote
class ModelActor:
    """Shell of `ModelWorker`."""

    def __init__(self, spec: ModelSpec, role: RoleConfig) -> None:
        self._worker = ModelWorker(load_for(role, spec))

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Answer]:
        return self._worker.generate(prompts, max_new_tokens)

    def score(self, rows: Sequence[tuple[str, str]]) -> list[Continuation]:
        return self._worker.score(rows)

    def perplexity(self, text: str) -> float:
        return self._worker.perplexity(text)

    def logits(self, prompt: str) -> Tensor:
        return self._worker.logits(prompt)

    def hidden_states(self, prompt: str, layer: int) -> Tensor:
        return self._worker.hidden_states(prompt, layer)

    def keys(self, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int) -> Tensor:
        return self._worker.keys(requests, contexts, layer)

    def second_moments(self, texts: Sequence[str], layers: Sequence[int]) -> tuple[dict[int, Tensor], int]:
        return self._worker.second_moments(texts, layers)

    def optimize_values(
        self, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str], config: ValueConfig
    ) -> list[TargetValue]:
        return self._worker.optimize_values(requests, layer, contexts, config)

    def apply(self, delta: WeightDelta) -> None:
        self._worker.apply(delta)

    def undo(self) -> None:
        self._worker.undo()

    def weights(self, layers: Sequence[int]) -> dict[int, Tensor]:
        return self._worker.weights(layers)

    def export(self, directory: str) -> None:
        self._worker.export(directory)
