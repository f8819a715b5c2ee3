"""What became of a batch, read from the model itself: whether it says the new facts, and what else moved.

An edit has *landed* when every token of its target is the likeliest one after the bare prompt, on the weights as they
are served. Anything else is *weak*. Beside that stand the probability of the target, the sampled contexts in which it
holds, and, where the method has target values, how far the subject's state went along the way it was to go.

Letters: m edits, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.errors import ErrataError
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine, with_pieces
from errata.editing.request import EditRequest
from errata.editing.texts import read_text

PROBES = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "Two plus two equals",
    "The first month of the year is",
    "The sun rises in the",
    "A dog is a kind of",
    "The largest planet in the solar system is",
    "William Shakespeare wrote",
    "The color of the sky is",
    "She opened the door and",
    "In order to bake a cake, you need",
    "The train was late because",
    "My favorite food is",
    "Once upon a time, there was a",
    "To be or not to be, that is the",
    "The Second World War ended in",
    "Photosynthesis is the process by which",
    "def add(a, b):\n    return",
    "The chemical symbol for gold is",
    "He plays the guitar in a",
    "The official language of Brazil is",
    "The Great Wall is located in",
    "On Monday morning, the children went to",
)
"""What is asked before and after a batch where a service gives no prompts of its own: next to nothing in common with
any edit, and in no edit's neighborhood."""


class VerifyConfig(Closed):
    """The look at every batch before it is committed, and what follows from it."""

    enabled: bool = True
    """Read from the model what became of each edit; false commits without a look."""
    corrections: int = Field(2, ge=0)
    """Further writes of a batch, each part of the same commit, while edits in it are weak; 0 for none."""
    on_weak: Literal["keep", "retry", "refuse"] = "keep"
    """An edit that stays weak is kept as such, tried once more in a batch of its own, or refused (``not_landed``)."""
    max_damage: float | None = Field(None, ge=0, le=1)
    """Share of the held probes whose likeliest next token a batch may change; a batch above it is cut until the edits
    at fault stand alone, and they are refused (``damage``). Null for no bound."""
    probes: Path | None = None
    """A text file with a held probe in every line; null for the shipped ones."""


class DamageError(ErrataError):
    """A batch changes more of the held probes' answers than it may."""

    def __init__(self, moved: float, allowed: float) -> None:
        super().__init__("damage")
        self.moved, self.allowed = moved, allowed


@dataclass(frozen=True)
class Outcome:
    """What the model says of one edit."""

    p_target: float
    """Probability of the whole target after the bare prompt."""
    argmax: tuple[bool, ...]
    """For every token of the target, whether it is the likeliest there, the ones before it given."""
    contexts: tuple[int, int]
    """In how many of the sampled contexts all of them are, and how many there are."""
    reached: float | None = None
    """Share of the wanted change of the last edited layer that was reached, along its direction."""
    cosine: float | None = None
    """Between the wanted change and the reached one."""

    @property
    def landed(self) -> bool:
        """Whether every token of the target is the argmax after the bare prompt."""
        return all(self.argmax)

    def figures(self) -> dict[str, Any]:
        """As plain data."""
        figures: dict[str, Any] = {
            "p_target": self.p_target,
            "argmax": [sum(self.argmax), len(self.argmax)],
            "contexts": list(self.contexts),
        }
        known = {"reached": self.reached, "cosine": self.cosine}
        return figures | {name: value for name, value in known.items() if value is not None}


class Check:
    """Reads the outcomes of one batch from the weights that the model has at the time."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        pieces_for: Callable[[EditRequest], Sequence[int]] | None = None,
    ) -> None:
        """``contexts`` are those of the edit, the empty one first; ``pieces_for`` chooses what a request's question is
        answered with, where edits are retrieved."""
        self._model, self._requests, self._contexts = model, requests, contexts
        self._engine = LanguageEngine(model)
        self._rows = []
        for request in requests:
            target = model.text.encode_target(request.target_new)
            for context in contexts:
                prompt, _ = model.text.encode_with_subject(context, request.prompt, request.subject)
                owners = () if pieces_for is None else pieces_for(request)
                self._rows.append((with_pieces(prompt, owners), target))
        self._way: _Way | None = None

    def aim(self, targets: Tensor, layers: Sequence[int], measures: Literal["state", "outputs"]) -> None:
        """Note where the subjects are now and where they are to go; the weights are those before the batch."""
        self._way = _Way(self._model, self._requests, targets, layers, measures)

    def outcomes(self) -> list[Outcome]:
        """One for each request, on the weights as they are."""
        scored = self._engine.score(self._rows)
        reached = [(None, None)] * len(self._requests) if self._way is None else self._way.reached()
        outcomes = []
        for number, (share, cosine) in enumerate(reached):
            bare, *others = scored[number * len(self._contexts) : (number + 1) * len(self._contexts)]
            holds = sum(all(other.hits) for other in others)
            chance = math.exp(sum(bare.logprobs))
            outcomes.append(Outcome(chance, tuple(bare.hits), (holds, len(others)), share, cosine))
        return outcomes


class _Way:
    """From where the subjects of a batch were to where they should go, in the bare prompt."""

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        targets: Tensor,
        layers: Sequence[int],
        measures: Literal["state", "outputs"],
    ) -> None:
        self._model, self._requests = model, requests
        self._layer, self._outputs = layers[-1], measures == "outputs"
        self._before = self._now()
        if targets.ndim == 2:
            goal = targets.float().to(model.device)
        elif self._outputs:
            goal = targets[:, -1].float().to(model.device)
        else:
            goal = states_with(model, requests, targets, layers)
        self._wanted = goal - self._before

    def _now(self) -> Tensor:
        states, mapped = SubjectPass(self._model, self._requests, ("",)).states(self._layer)
        return (mapped if self._outputs else states).T

    def reached(self) -> list[tuple[float, float]]:
        """(Share, cosine) of each edit."""
        moved, wanted = self._now() - self._before, self._wanted
        along = (moved * wanted).sum(dim=1)
        share = along / wanted.square().sum(dim=1).clamp_min(1e-30)
        cosine = along / (moved.norm(dim=1) * wanted.norm(dim=1)).clamp_min(1e-30)
        return list(zip(share.tolist(), cosine.tolist(), strict=True))


@torch.no_grad()
def states_with(
    model: EditableModel, requests: Sequence[EditRequest], targets: Tensor, layers: Sequence[int]
) -> Tensor:
    """States (m, d) of the last of ``layers`` at the subjects, if the maps there put out ``targets`` (m, n, d)."""
    sequences = []
    for request in requests:
        tokens, subject = model.text.encode_for_edit("", request.prompt, request.subject)
        sequences.append(tokens[: subject + 1])
    rows = model.rows(sequences)
    number, last = torch.arange(len(requests), device=model.device), rows.lengths - 1
    where = torch.zeros(*rows.ids.shape, 1, dtype=torch.bool, device=model.device)
    where[number, last] = True
    outputs = targets.to(model.device)
    with model.overwritten({layer: outputs[:, place][:, None] for place, layer in enumerate(layers)}, where):
        hidden = model.run(model.embed(rows), 0, layers[-1] + 1, model.positional(rows.layout))
    return hidden[number, last].float()


class HeldProbes:
    """Prompts whose answers a batch should leave alone; what they are is known for the weights asked last."""

    def __init__(self, model: EditableModel, prompts: Sequence[str]) -> None:
        self._engine = LanguageEngine(model)
        self._prompts = [model.text.encode_prompt(prompt) for prompt in prompts]

    def ask(self) -> tuple[int, ...]:
        """The likeliest next token of every prompt, on the weights as they are; -1 where the text ends."""
        answers = self._engine.generate(self._prompts, max_new_tokens=1)
        return tuple(answer.ids[0] if answer.ids else -1 for answer in answers)


def moved_share(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of the answers that differ."""
    return sum(a != b for a, b in zip(before, after, strict=True)) / len(before) if before else 0.0


def held_prompts(config: VerifyConfig) -> tuple[str, ...]:
    """The held probes of a configuration.

    Raises:
        ErrataError: the file holds none.
    """
    if config.probes is None:
        return PROBES
    lines = tuple(line.strip() for line in read_text(config.probes, "verify.probes").split("\n") if line.strip())
    if not lines:
        raise ErrataError(f"verify.probes {str(config.probes)!r} holds no prompt; write one in every line")
    return lines


def in_short(figures: Mapping[str, Any]) -> str:
    """Figures of an outcome in one line."""
    parts = []
    if "argmax" in figures:
        parts.append("{} of {} target tokens are the likeliest".format(*figures["argmax"]))
    if "p_target" in figures:
        parts.append(f"P(target) {figures['p_target']:.2g}")
    if "reached" in figures:
        parts.append(f"{figures['reached']:.2f} of the change reached")
    return ", ".join(parts)
