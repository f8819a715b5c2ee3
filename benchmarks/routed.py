"""The arms on facts that nothing was tuned on: unedited, edited, memory, edited + memory, and routed.

    python -m benchmarks.routed --model DIR [--records 200] [--first 600] [--editor alphaedit] [--json FILE]

Records of CounterFact from a place that no tuning has seen, written in batches, then asked about: the edit prompt, its
paraphrases and a few neighborhood prompts of each. Reliability, generalization_gen and locality of every arm, and the
paired differences of the routed arm to the others with 95 % intervals of the mean (normal, over records).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.measuring import one_thread, store, timed
from benchmarks.records import counterfact
from errata.actors.workers.evaluation import BoundRouter
from errata.editing.checkpoint.load import load_model
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, run_corpus_unit
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.evaluation.arms import ArmEvaluator, Evaluation
from errata.evaluation.caching import CachingEngine
from errata.evaluation.outcomes import ARMS, Arm, RecordResult, record_mean
from errata.evaluation.probes import questions_of
from errata.retrieval.embedder import SentenceEmbedder
from errata.retrieval.evidence import EvidenceFinder
from errata.retrieval.memory import FactMemory, MemoryEntry
from errata.retrieval.router import Answering, FittedRouter, RouterConfig, Routing
from errata.retrieval.router_fit import router_for
from errata.retrieval.scr import ScrConfig, SelectiveReasoner

FIGURES = {"reliability": "edit", "generalization_gen": "paraphrase", "locality": "neighborhood"}
BATCH = 10
SMOLLM2 = (
    '{"type": "alphaedit", "layers": [4, 5, 6, 7, 8], "values": '
    '{"lr": 0.5, "steps": 15, "clamp": 0.75, "weight_decay": 0.5, "kl_factor": 0.0625}}'
)
"""As in the quickstart."""


def few_neighbors(requests: Sequence[EditRequest], count: int) -> list[EditRequest]:
    """The records with their first neighborhood prompts only."""
    return [request.model_copy(update={"neighborhood": request.neighborhood[:count]}) for request in requests]


def covariance_of(model: EditableModel, layers: Sequence[int], text: str, documents: int) -> KeyCovariance:
    """Second moments of the keys over the first passages of a text."""
    config = CorpusConfig(path=text)
    unit = run_corpus_unit(model, 0, 0, CorpusReader(config).take(0, documents), layers, config)
    return KeyCovariance(unit.sums, unit.tokens, {"kind": "corpus", "text": config.name, "documents": documents})


def edit(
    model: EditableModel, requests: Sequence[EditRequest], settings: dict[str, Any], text: str, documents: int
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor], int]:
    """Unedited and edited maps by layer, and how many of the records were written; the model ends unedited."""
    config = REGISTRY[settings["type"]][0].model_validate(settings)
    editor = make_editor(config)
    base = {layer: weight.clone() for layer, weight in model.weights(editor.layers).items()}
    covariance = covariance_of(model, editor.layers, text, documents)
    session = EditSession(model, editor, covariance, sample_contexts(model, count=1, length=10, seed=0))
    applied = 0
    for number, at in enumerate(range(0, len(requests), BATCH), start=1):
        receipt = session.apply(EditBatch(sequence=number, requests=tuple(requests[at : at + BATCH])))
        applied += sum(result.applied for result in receipt.results)
    edited = {layer: weight.clone() for layer, weight in session.weights().items()}
    for layer, weight in base.items():
        model.set_weight(layer, weight)
    return base, edited, applied


def figures(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """The three generated figures of every arm."""
    return {
        arm: {name: metrics[name] or 0.0 for name in FIGURES}
        | {"mean": _mean_of(evaluation.records, arm).mean().item()}
        for arm, metrics in evaluation.metrics().items()
    }


def _mean_of(records: Sequence[RecordResult], arm: Arm) -> Any:
    """Per record the mean of its three figures."""
    rows = [
        [record_mean([record], arm, kind, lambda outcome: float(outcome.ok)) for kind in FIGURES.values()]  # type: ignore[arg-type]
        for record in records
    ]
    return np.asarray([[value for value in row if value is not None] for row in rows]).mean(axis=1)


def paired(records: Sequence[RecordResult], one: Arm, other: Arm) -> dict[str, float]:
    """Mean difference of two arms over records, with the half width of its 95 % interval."""
    difference = _mean_of(records, one) - _mean_of(records, other)
    return {"mean": float(difference.mean()), "half": float(1.96 * difference.std(ddof=1) / np.sqrt(len(difference)))}


def touched(evaluation: Evaluation) -> dict[str, float]:
    """Share of each kind of question for which a statement was chosen by the router."""
    counts: dict[str, list[int]] = {}
    for record in evaluation.records:
        for result in record.probes:
            counts.setdefault(result.probe.kind, []).append(result.arms["routed"].chosen is not None)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(counts.items())}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    model = load_model(options.model)
    records = counterfact(options.data, None)[options.first : options.first + options.records]
    requests = few_neighbors(records, options.neighbors)
    settings = json.loads(options.editor)
    write, (base, edited, applied) = timed(lambda: edit(model, requests, settings, options.text, options.documents))
    embedder = SentenceEmbedder("all-minilm-l6-v2")
    memory = FactMemory(embedder)
    memory.add([MemoryEntry.of(request, id=number + 1) for number, request in enumerate(requests)])
    questions = questions_of(requests)
    vectors = embedder.embed(questions)
    hits = dict(zip(questions, memory.search_vectors(vectors, 3), strict=True))
    fitted = FittedRouter.load(Path(options.router)) if options.router else router_for(RouterConfig(), memory)
    candidates = EvidenceFinder(memory).candidates(questions, vectors, 3)
    engine = CachingEngine(model)
    reasoner = SelectiveReasoner(engine, model.text, ScrConfig())
    router = BoundRouter(Routing(fitted, dict(zip(questions, candidates, strict=True))), reasoner, options.answer)
    evaluator = ArmEvaluator(model, reasoner, engine=engine, max_new_tokens=options.tokens)
    ask, evaluation = timed(
        lambda: evaluator.evaluate(
            requests, base=base, edited=edited, hits=hits, arms=ARMS, base_digest=model.digest, router=router
        )
    )
    others: tuple[Arm, ...] = ("edited", "memory", "edited_memory")
    outside = [r for record in evaluation.records for r in record.probes if not r.probe.in_scope]
    left = [r for r in outside if r.arms["routed"].chosen is None]
    return {
        "model": Path(options.model).name,
        "records": len(requests),
        "first": options.first,
        "applied": applied,
        "editor": settings,
        "router": fitted.digest,
        "answer": options.answer,
        "arms": figures(evaluation),
        "routed_minus": {arm: paired(evaluation.records, "routed", arm) for arm in others},
        "touched": touched(evaluation),
        "left_to_base": len(left),
        "left_and_equal": sum(r.arms["routed"].match_ratio == 1.0 for r in left),
        "cpu_seconds": {"write": write, "ask": ask},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default=None, help="counterfact.json")
    parser.add_argument("--text", required=True, help="passages for the covariance, JSONL with a field text")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--first", type=int, default=600)
    parser.add_argument("--neighbors", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--answer", default="edited_memory", choices=get_args(Answering))
    parser.add_argument("--router", default=None, help="a fitted router; the shipped one otherwise")
    parser.add_argument("--editor", default=SMOLLM2, help="JSON of the section editor")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    one_thread()
    result = measure(options)
    print(json.dumps(result, indent=1))
    if options.json is not None:
        store("routed", result, options.json)


if __name__ == "__main__":
    main()
