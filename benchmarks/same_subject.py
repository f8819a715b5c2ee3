"""Several facts about one subject at once: RoSE, its ablations, MEMIT-Merge and MEMIT, on statements and instructions.

    python -m benchmarks.same_subject [--subjects 40] [--templates 4]        # SmolLM2, the shipped same_subject stream

The facts of a subject are one update. *Alone*: every update is made in the unedited model and asked about. *In
sequence*: the updates follow each other, and after 5, 10, 20 and 40 of them all facts so far are asked about (RoSE,
table 1, figures 6 and 20, in small). A fact is asked for as the statement it was written in, in another statement, and
as a question to the chat model through its template. A right answer, generated greedily, contains the new object;
locality is the share of statements about people that are never edited which are continued as before.

Values are optimized once where methods share them: RoSE with RoSE without IGA, MEMIT-Merge with RoSE without HKI.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import context, one_thread, store, timed
from benchmarks.records import LAYERS, ROOT, smollm2
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import apply_delta
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.editors.closed_form.memit_merge import MemitMerge, MemitMergeConfig, MergeValues, by_subject
from errata.editing.editors.closed_form.rose import TEMPLATES, Rose, RoseConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from errata.editing.values import ValueConfig
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.matching import contains

STREAM = ROOT / "configs" / "streams" / "same_subject.jsonl"
INSTRUCTION = "Answer the question in a few words, without an explanation.\nQuestion: {}"
SEQUENCES = (5, 10, 20, 40)
FORMS = ("statement", "other statement", "instruction", "locality")
LONGEST = 8
"""Tokens of an answer."""

Scores = dict[str, list[float]]


def editors(layers: tuple[int, ...], steps: int, templates: int, cov_weight: float) -> dict[str, LocateEditor]:
    """The methods by name, with like settings of the value optimization."""
    # statements, a question and an instruction, however many are wanted
    forms = tuple(TEMPLATES[i * len(TEMPLATES) // templates] for i in range(templates))
    plain, merged = ValueConfig(steps=steps), MergeValues(steps=steps)
    common: dict[str, Any] = {"layers": layers, "cov_weight": cov_weight, "past_keys": False}
    rose: dict[str, Any] = {**common, "values": merged, "templates": forms}
    return {
        "MEMIT": Memit(MemitConfig(**common, values=plain)),
        "MEMIT-Merge": MemitMerge(MemitMergeConfig(**common, values=merged)),
        "RoSE": Rose(RoseConfig(**rose)),
        "RoSE without IGA": Rose(RoseConfig(**rose, iga=False)),
        "RoSE without HKI": Rose(RoseConfig(**rose, hki=False)),
    }


SHARED = {"RoSE without IGA": "RoSE", "RoSE without HKI": "MEMIT-Merge"}
"""Whose values a method has too, on the same weights."""


def answers(
    engine: LanguageEngine, requests: Sequence[EditRequest], unedited: Mapping[str, str] | None
) -> tuple[Scores, dict[str, str]]:
    """Right or not by form, one figure a fact, on the weights as they are; and how statements about others go on.

    Args:
        unedited: those continuations by the unedited model; None where this is it.
    """
    text = engine.model.text
    rows: list[list[int]] = []
    for request in requests:
        question = INSTRUCTION.format(request.portability[0].prompt)
        rows += [
            text.encode_prompt(request.text),
            text.encode_prompt(request.paraphrases[0]),
            text.encode_chat([{"role": "user", "content": question}]),
            text.encode_prompt(request.neighborhood[0].prompt),
        ]
    said = [answer.text for answer in engine.generate(rows, max_new_tokens=LONGEST)]
    scores: Scores = {form: [] for form in FORMS}
    others: dict[str, str] = {}
    for place, request in enumerate(requests):
        own = said[4 * place : 4 * place + 4]
        for form, answer in zip(FORMS[:3], own, strict=False):
            scores[form].append(float(contains(answer, [request.target_new])))
        prompt = request.neighborhood[0].prompt
        others[prompt] = own[3]
        scores["locality"].append(float(unedited is None or unedited[prompt] == own[3]))
    return scores, others


def write(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    targets: Tensor,
    state: LifelongState,
    contexts: Sequence[str],
) -> None:
    """One update into the model's live weights."""
    changes, _ = editor.write(model, requests, targets, state, contexts)
    for layer, change in changes.items():
        model.set_weight(layer, apply_delta(model.weight(layer), change))


def targets_of(
    model: EditableModel, editor: LocateEditor, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> Tensor:
    """Target states (m, d) of one update on the weights as they are."""
    return torch.stack([value.state for value in editor.find_values(model, requests, contexts, None)])


def alone(
    model: EditableModel,
    methods: Mapping[str, LocateEditor],
    updates: Sequence[Sequence[EditRequest]],
    states: Mapping[str, LifelongState],
    contexts: Sequence[str],
    unedited: Mapping[str, str],
) -> dict[str, Scores]:
    """Every update in the unedited model, by method."""
    engine = LanguageEngine(model)
    by_method: dict[str, Scores] = {name: {form: [] for form in FORMS} for name in methods}
    for requests in updates:
        values: dict[str, Tensor] = {}
        for name, editor in methods.items():
            source = SHARED.get(name, name)
            if source not in values:
                values[source] = targets_of(model, methods[source], requests, contexts)
            with model.patched(editor.layers):
                write(model, editor, requests, values[source], states[name], contexts)
                for form, scores in answers(engine, requests, unedited)[0].items():
                    by_method[name][form] += scores
    return by_method


def in_sequence(
    model: EditableModel,
    editor: LocateEditor,
    updates: Sequence[Sequence[EditRequest]],
    state: LifelongState,
    contexts: Sequence[str],
    unedited: Mapping[str, str],
) -> dict[int, dict[str, float]]:
    """Mean scores of all facts so far, after each of the lengths that the updates reach."""
    engine = LanguageEngine(model)
    shares: dict[int, dict[str, float]] = {}
    with model.patched(editor.layers):
        for count, requests in enumerate(updates, start=1):
            write(model, editor, requests, targets_of(model, editor, requests, contexts), state, contexts)
            if count in SEQUENCES:
                facts = [request for update in updates[:count] for request in update]
                shares[count] = means(answers(engine, facts, unedited)[0])
    return shares


def means(scores: Scores) -> dict[str, float]:
    """Per form the share of facts."""
    return {form: sum(values) / len(values) for form, values in scores.items()}


def self_generated(model: EditableModel, layers: Sequence[int], tokens: int) -> KeyCovariance:
    """Second moments of what the model says after random tokens, as in the quickstart."""
    config = SelfGenerationConfig(max_new_tokens=64, sequences_per_unit=64, slots=64)
    sums: dict[int, Tensor] = {}
    count = number = 0
    while count < tokens:
        unit = run_unit(model, unit_of(number, seed=0, sequences=config.sequences_per_unit), layers, config)
        sums = {layer: value + sums.get(layer, 0) for layer, value in unit.sums.items()}
        count, number = count + unit.tokens, number + 1
    return KeyCovariance(sums, count, {"kind": "self_generated", "units": number})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stream", type=Path, default=STREAM)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--templates", type=int, default=4, choices=range(1, len(TEMPLATES) + 1), metavar="1..8")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cov-weight", type=float, default=1500.0)
    parser.add_argument("--tokens", type=int, default=7500, help="of the covariance")
    parser.add_argument("--sequences", nargs="*", default=["MEMIT", "MEMIT-Merge", "RoSE"], help="methods in sequence")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = smollm2()
    requests = [r.request for r in open_dataset(options.stream) if isinstance(r, ValidRecord)]
    updates = [[requests[i] for i in group] for group in by_subject(requests)][: options.subjects]
    facts = [request for update in updates for request in update]
    contexts = sample_contexts(model, count=1, length=10, seed=0)
    covariance = self_generated(model, LAYERS, options.tokens)
    methods = editors(LAYERS, options.steps, options.templates, options.cov_weight)
    states = {name: editor.new_state(model, covariance) for name, editor in methods.items()}
    base, unedited = answers(LanguageEngine(model), facts, None)
    result: dict[str, Any] = {
        "context": context(model=model.name),
        "settings": {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"},
        "facts": len(facts),
        "unedited": means(base),
    }
    print("unedited", result["unedited"], flush=True)
    seconds, by_method = timed(lambda: alone(model, methods, updates, states, contexts, unedited))
    result["alone"] = {name: means(scores) for name, scores in by_method.items()}
    result["alone_seconds"] = seconds
    for name, row in result["alone"].items():
        print(f"alone {name}: {row}", flush=True)
    result["in_sequence"] = {}
    print(store("same_subject", result, options.json), flush=True)
    for name in options.sequences:
        result["in_sequence"][name] = in_sequence(model, methods[name], updates, states[name], contexts, unedited)
        for count, row in result["in_sequence"][name].items():
            print(f"{count} in sequence {name}: {row}", flush=True)
        print(store("same_subject", result, options.json), flush=True)


if __name__ == "__main__":
    main()
