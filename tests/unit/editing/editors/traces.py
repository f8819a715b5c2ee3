"""Golden traces: thirty seeded edits by every editor on a tiny random Llama, one line per edit.

    python -m tests.unit.editing.editors.traces [NAME ...]     writes tests/assets/traces/ anew

A refactoring must reproduce the numbers; a change of numerics replaces the files and says why.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from tests.unit.editing.editors.common import NAMES, batch, session_of

FOLDER = Path(__file__).parents[3] / "assets" / "traces"
EDITS, BATCH = 30, 3
_SUBJECTS = ("Rome", "Angola", "Alice Munro", "Thierry Henry", "Danielle Darrieux", "Paris")
_PROMPTS = ("{} lies in", "The sport that {} plays is", "I think that {} works as a", "{} is known because of")
_TARGETS = ("English", "football", "Canada", "Italy", "Africa", "nine", "a writer", "the question")
_HELD_OUT = ("Therefore I think that you are", "The capital of France is", "one two three four", "What is the answer")


@dataclass(frozen=True)
class Line:
    """One edit: norm of its batch's change, whether it was applied, mean log-probability of its target, drift.

    The drift is the mean divergence KL(base || edited) of the next token over held-out prompts.
    """

    step: int
    norm: float
    applied: int
    logprob: float
    drift: float

    def __str__(self) -> str:
        return f"{self.step} {self.norm:.6g} {self.applied} {self.logprob:.6g} {self.drift:.6g}"


def seeded_edits() -> list[EditRequest]:
    """Thirty facts: three relations of one subject at a time, and some facts a second time."""
    draw = random.Random(0)
    requests: list[EditRequest] = []
    while len(requests) < EDITS:
        subject = draw.choice(_SUBJECTS)
        for prompt in draw.sample(_PROMPTS, BATCH):
            name = f"e{len(requests)}"
            requests.append(
                EditRequest(
                    id=name, subject=subject, prompt=prompt, target_new=draw.choice(_TARGETS), target_true="two"
                )
            )
    return requests


def trace(name: str) -> list[Line]:
    """Apply the edits in batches of three."""
    session = session_of(name)
    model, engine = session.model, LanguageEngine(session.model)
    base = _next_token(session.model)
    lines: list[Line] = []
    edits = seeded_edits()
    for first in range(0, EDITS, BATCH):
        requests = edits[first : first + BATCH]
        receipt = session.apply(batch(first // BATCH + 1, *requests))
        assert receipt.delta is not None
        norm = sum(n * n for n in receipt.delta.norms().values()) ** 0.5
        rows = [(model.text.encode_prompt(r.text), model.text.encode_target(r.target_new)) for r in requests]
        drift = float((base.exp() * (base - _next_token(model))).sum(dim=1).mean())
        for result, scored in zip(receipt.results, engine.score(rows), strict=True):
            logprob = sum(scored.logprobs) / len(scored.logprobs)
            lines.append(Line(len(lines) + 1, norm, int(result.applied), logprob, drift))
    return lines


@torch.no_grad()
def _next_token(model) -> torch.Tensor:  # type: ignore[no-untyped-def]
    rows = [model.text.encode_prompt(text) for text in _HELD_OUT]
    scores = [model.hf(input_ids=torch.tensor([ids])).logits[0, -1].double() for ids in rows]
    return torch.stack(scores).log_softmax(dim=-1)


def read(name: str) -> list[Line]:
    """The stored trace of an editor."""
    lines = (FOLDER / f"tiny_llama_{name}.txt").read_text().splitlines()
    fields = [line.split() for line in lines if not line.startswith("#")]
    return [
        Line(int(step), float(norm), int(applied), float(logprob), float(drift))
        for step, norm, applied, logprob, drift in fields
    ]


def write(name: str) -> None:
    """Store the trace that the code gives now."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    head = "# step |delta| applied target-logprob drift\n"
    (FOLDER / f"tiny_llama_{name}.txt").write_text(head + "".join(f"{line}\n" for line in trace(name)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or NAMES:
        write(each)
