"""Evaluation of many facts on four arms against asking one question at a time, without padding, by the library.

    python -m benchmarks.evaluation_throughput                    # 100 facts of the shipped stream, SmolLM2
    python -m benchmarks.evaluation_throughput --records 20 --sample 2

One at a time means: the library's own forward pass for the scores, its own ``generate`` for the answers, and a choice
of the memory for every question by itself. That takes long, so it is done for some of the facts and counted per fact.
Before anything is compared in time, every answer of those facts is compared: a fast wrong answer is no result. Ratios
travel between machines, times do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from benchmarks.measuring import context, one_thread, store, timed
from benchmarks.records import LAYERS, ROOT, smollm2
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.model.text import TextCodec
from errata.editing.request import EditRequest
from errata.evaluation.arms import ArmEvaluator, Evaluation
from errata.evaluation.caching import CachingEngine
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.outcomes import MEMORY_ARMS, Arm
from errata.evaluation.probes import probes_of, questions_of
from errata.retrieval.embedder import HashEmbedderConfig, build_embedder
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.scr import SelectiveReasoner

MOST_TOKENS = 6
CHANGE = 0.02
"""Size of a random change of the edited maps, relative to them: enough that the edited arm answers differently."""

Reply = tuple[str, float | None]
"""An answer, and the share of its expected tokens that are the argmax."""


def facts(path: Path, count: int) -> list[EditRequest]:
    """The first facts of a stream."""
    return [record.request for record in open_dataset(path, limit=count) if isinstance(record, ValidRecord)]


def some_edit(model: EditableModel, layers: Sequence[int], seed: int = 0) -> dict[int, Tensor]:
    """Edited maps by layer. What they say does not matter for the time, only that they are not the base's."""
    generator = torch.Generator().manual_seed(seed)
    edited = {}
    for layer in layers:
        weight = model.weight(layer)
        noise = torch.randn(weight.shape, generator=generator)
        edited[layer] = weight + CHANGE * weight.norm() / noise.norm() * noise
    return edited


def found_for(requests: Sequence[EditRequest], k: int = 3) -> dict[str, list[Hit]]:
    """What the memory finds for every question; not part of what is timed, it is the same for both ways."""
    memory = FactMemory(build_embedder(HashEmbedderConfig()), IndexConfig())
    memory.add([MemoryEntry.of(request, number) for number, request in enumerate(requests)])
    questions = questions_of(requests)
    return dict(zip(questions, memory.search(questions, k), strict=True))


def after(text: TextCodec, prompt: Sequence[int], target: str) -> list[int]:
    """Tokens of a target behind a prompt: after white space, as a chat template ends in, without a leading space."""
    tail = text.decode(prompt[-1:])
    if tail and not tail[-1].isspace():
        return text.encode_target(target)
    return text.encode_prompt(target.strip())[len(text.bos) :]


ASKED: tuple[Arm, ...] = ("base", "edited", "memory", "edited_memory")
"""Arms that put a question to the model; ``routed`` takes over the answer of one of these."""


class OneByOne:
    """Every question of every arm by itself, with the library's own passes."""

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self.reasoner = SelectiveReasoner(LanguageEngine(model), model.text)

    def _at_newline(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor(["\n" in self.model.text.decode([row[-1]]) for row in ids.tolist()])

    @torch.no_grad()
    def ask(self, prompt: Sequence[int], target: Sequence[int]) -> Reply:
        """The answer to one prompt, and how many of the target's tokens the model would say."""
        ids = torch.tensor([list(prompt)])
        made = self.model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            eos_token_id=sorted(self.model.text.eos_ids),
            pad_token_id=min(self.model.text.eos_ids),
            stopping_criteria=StoppingCriteriaList([self._at_newline]),
        )[0, len(prompt) :].tolist()
        ends = [n for n, token in enumerate(made) if token in self.model.text.eos_ids]
        text = self.model.text.decode(made[: ends[0]] if ends else made).partition("\n")[0].strip()
        if not target:
            return text, None
        logits = self.model.hf(input_ids=torch.tensor([[*prompt, *target]]), use_cache=False).logits[0]
        said = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        return text, sum(a == b for a, b in zip(said, target, strict=True)) / len(target)

    def evaluate(
        self,
        requests: Sequence[EditRequest],
        base: Mapping[int, Tensor],
        edited: Mapping[int, Tensor],
        hits: Mapping[str, Sequence[Hit]],
    ) -> dict[tuple[str, str, Arm], Reply]:
        """By edit, question and arm."""
        text = self.model.text
        replies: dict[tuple[str, str, Arm], Reply] = {}
        for weights, arms in ((base, ("base", "memory")), (edited, ("edited", "edited_memory"))):
            with self.model.patched(sorted(base)):
                self.model.set_weights(weights)
                for request in requests:
                    for probe in probes_of(request):
                        for arm in ASKED:
                            if arm not in arms:
                                continue
                            target = text.encode_target(probe.teacher) if probe.teacher else []
                            prompt = text.encode_prompt(probe.prompt)
                            if arm in MEMORY_ARMS:
                                choice = self.reasoner.choose([probe.prompt], [list(hits[probe.prompt])])[0]
                                prompt = self.reasoner.prompt_ids(probe.prompt, choice)
                                if probe.teacher and choice.hit is not None:
                                    target = after(text, prompt, probe.teacher)
                            replies[request.id, probe.prompt, arm] = self.ask(prompt, target)
        return replies


def answered(evaluation: Evaluation) -> dict[tuple[str, str, Arm], Reply]:
    """By edit, question and arm, what an evaluation found."""
    return {
        (record.request_id, result.probe.prompt, arm): (outcome.answer.strip(), outcome.accuracy)
        for record in evaluation.records
        for result in record.probes
        for arm, outcome in result.arms.items()
    }


def measure(
    model: EditableModel, requests: Sequence[EditRequest], sample: int, layers: Sequence[int] = LAYERS
) -> dict[str, Any]:
    """CPU seconds per fact of both ways, and their ratio.

    Raises:
        AssertionError: an answer differs; the message has the first one.
    """
    base = {layer: model.weight(layer).clone() for layer in layers}
    edited, hits = some_edit(model, layers), found_for(requests)

    def together(some: Sequence[EditRequest]) -> Evaluation:
        engine = CachingEngine(model)  # a new one: nothing is remembered from before
        evaluator = ArmEvaluator(
            model, SelectiveReasoner(engine, model.text), engine=engine, max_new_tokens=MOST_TOKENS
        )
        return evaluator.evaluate(some, base=base, edited=edited, hits=hits, arms=ASKED)

    few = [requests[number * len(requests) // sample] for number in range(sample)]
    slow, replies = timed(lambda: OneByOne(model).evaluate(few, base, edited, hits))
    ours = answered(together(few))
    for key, reply in replies.items():
        assert ours[key] == reply, f"{key}: {ours[key]} in a batch, {reply} by itself"
    fast, evaluation = timed(lambda: together(requests))
    return {
        "facts": len(requests),
        "questions": sum(len(record.probes) for record in evaluation.records) * len(ASKED),
        "asked_one_by_one": len(replies),
        "seconds_per_fact": fast / len(requests),
        "one_by_one_seconds_per_fact": slow / len(few),
        "ratio": slow / len(few) / (fast / len(requests)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100, help="facts to evaluate")
    parser.add_argument("--sample", type=int, default=3, help="of those, how many are also asked one by one")
    parser.add_argument("--stream", type=Path, default=ROOT / "configs" / "streams" / "quickstart.jsonl")
    parser.add_argument("--json", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    one_thread()
    result = measure(smollm2(), facts(options.stream, options.records), min(options.sample, options.records))
    print(
        "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
        )
    )
    if options.json:
        store("evaluation_throughput", {**result, "context": context()})


if __name__ == "__main__":
    main()
