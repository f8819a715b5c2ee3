"""Facts in six scripts (Latin, Chinese, Japanese, Arabic, Hindi, Thai) through edit, memory and evaluation.

    python -m benchmarks.six_scripts MODEL [--tokens N] [--method NAME] [--corrections N] [--each N] [--json FILE]

The facts are those of ``configs/streams/six_scripts.jsonl``, two of each script with a paraphrase and a question about
another subject. They are written as one batch by the model's shipped settings with a covariance of its own
generations, and enter the memory; then the four arms answer. docs/results.md has the table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import errata
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.orchestrator.config.loading import read_composed
from errata.orchestrator.config.presets import configs_root, find_config

FIGURES = ("efficacy", "reliability", "generalization_gen", "locality", "locality_true")
ARMS = ("base", "edited", "memory", "edited_memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--method", default="alphaedit")
    parser.add_argument("--corrections", type=int, default=1)
    parser.add_argument("--preset", default="models/qwen2.5-coder-0.5b", help="Shipped settings of the model.")
    parser.add_argument("--each", type=int, default=2, help="Facts of each script.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    records = open_dataset(configs_root() / "streams/six_scripts.jsonl")
    facts = [record.request for record in records if isinstance(record, ValidRecord)]
    facts = [fact for fact in facts if int(fact.id.partition("-")[2]) <= given.each]
    preset = read_composed(find_config(given.preset))
    started = time.perf_counter()
    editor = errata.Editor.from_pretrained(
        given.model,
        method=given.method,
        settings={
            "editor": preset["editor"],
            "contexts": {"count": 1, "length": 10},
            "covariance": {"tokens": given.tokens, "sequences_per_unit": 32, "slots": 32},
            "batching": {"size": len(facts)},
            "memory": {"embedder": {"type": "hash"}},
            "verify": {"corrections": given.corrections},
            "evaluation": {"max_new_tokens": 8, "held_out": None},
        },
        threads=1,
        progress=False,
    )
    print(f"covariance after {time.perf_counter() - started:.0f} s", flush=True)
    results = editor.edit(facts)
    print(f"edits after {time.perf_counter() - started:.0f} s", flush=True)
    for fact, result in zip(facts, results, strict=True):
        print(f"{fact.id:12} {result.outcome} {result.reason or ''} {json.dumps(dict(result.figures), default=str)}")
    table = {}
    for script in dict.fromkeys(fact.id.partition("-")[0] for fact in facts):
        own = [fact for fact in facts if fact.id.startswith(script)]
        table[script] = editor.evaluate(own, arms=ARMS)
        for arm in ARMS:
            said = editor.ask([fact.text for fact in own], arm=arm, max_new_tokens=8)
            row = " ".join(f"{name} {table[script][arm][name]}" for name in FIGURES)
            print(f"{script:9} {arm:14} {row}  {said}", flush=True)
    outcomes = {fact.id: result.outcome for fact, result in zip(facts, results, strict=True)}
    print(f"done after {time.perf_counter() - started:.0f} s")
    if given.json is not None:
        given.json.write_text(json.dumps({"outcomes": outcomes, "table": table}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
