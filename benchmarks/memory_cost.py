"""What the external memory costs a question, by statements considered (k) and by statements held.

    python -m benchmarks.memory_cost                     # k of 1, 3, 5, 10; 100, 1 000 and 100 000 statements
    python -m benchmarks.memory_cost --sizes 100 --top 3 --alone 2

After tables 44 to 46 of "Revisiting", with SmolLM2 and the shipped stream. CPU seconds are of questions asked alone,
one after another, split into embedding, searching, choosing and answering; beside them stands the same question without
a memory. How well it works is measured on more questions in a batch. The statements beyond the stream's own are other
data: sentences about made-up people, embedded up to ``EMBEDDED`` of them; beyond that vectors are drawn around those,
because what a search costs depends on their number alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import context, median, one_thread, store, timed
from benchmarks.memory_search import Vectors
from benchmarks.records import ROOT, smollm2
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from errata.evaluation.caching import CachingEngine
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.judge import Case, ContainsJudge
from errata.evaluation.probes import probes_of
from errata.retrieval.embedder import Embedder, SentenceEmbedderConfig, build_embedder, unit_rows
from errata.retrieval.index import IndexConfig
from errata.retrieval.memory import FactMemory, Hit, MemoryEntry
from errata.retrieval.scr import ScrConfig, SelectiveReasoner, retrieve

MOST_TOKENS = 6
SEARCHES = 10
EMBEDDED = 4000
SPREAD = 0.5
"""Norm of what is added to a unit vector to draw another one around it."""
FIRST = ("Ada", "Bela", "Cyril", "Dana", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kofi", "Lena", "Milo",
         "Nora", "Otto", "Priya", "Quentin", "Rosa", "Sven", "Tala")  # fmt: skip
LAST = ("Abara", "Bergmann", "Castell", "Dorn", "Eklund", "Fontane", "Garrido", "Holub", "Ishida", "Jurado", "Kessler",
        "Lindqvist", "Moreau", "Novak", "Okafor", "Petrov", "Quist", "Rahimi", "Santos", "Tanaka")  # fmt: skip
ABOUT = (
    "{} was born in the city of Lyon.", "The mother tongue of {} is Danish.", "{} plays the position of goalkeeper.",
    "{} is a citizen of Peru.", "The field in which {} works is chemistry.", "{} worked for the company Siemens.",
    "The instrument {} plays is the cello.", "{} died in the city of Oslo.", "The religion of {} is Buddhism.",
    "{} studied at the University of Padua.",
)  # fmt: skip


def others(count: int, first_id: int) -> list[MemoryEntry]:
    """Statements about people who do not exist, no two about one fact."""
    statements = []
    for number in range(count):
        rest, template = divmod(number, len(ABOUT))
        rest, first = divmod(rest, len(FIRST))
        turn, last = divmod(rest, len(LAST))
        name = f"{FIRST[first]} {LAST[last]}" + (f" {turn + 1}" if turn else "")
        statement = ABOUT[template].format(name)
        statements.append(MemoryEntry(id=first_id + number, request_id="", subject=name, fact_key=statement,
                                 statement=statement))  # fmt: skip
    return statements


def vectors_of(entries: Sequence[MemoryEntry], embedder: Embedder, seed: int = 0) -> Vectors:
    """Embeddings of the first ``EMBEDDED`` statements, and vectors drawn around them for the rest."""
    real = embedder.embed([entry.statement for entry in entries[:EMBEDDED]])
    rng = np.random.default_rng(seed)
    blocks = [real]
    for start in range(len(real), len(entries), 10_000):
        rows = np.arange(start, min(start + 10_000, len(entries))) % len(real)
        noise = rng.standard_normal((len(rows), real.shape[1]), dtype=np.float32)
        blocks.append(unit_rows(real[rows] + SPREAD * unit_rows(noise)))
    return np.concatenate(blocks)


def _searches(memory: FactMemory, vectors: Vectors, k: int) -> list[list[Hit]]:
    """The same search several times: one is far shorter than what stands around it."""
    return [memory.search_vectors(vectors, k)[0] for _ in range(SEARCHES)][:1]


def seconds_alone(
    reasoner: SelectiveReasoner, memory: FactMemory, questions: Sequence[str], k: int
) -> dict[str, float]:
    """Median CPU seconds a question of each stage, every question asked alone after one that does not count."""
    stages: dict[str, list[float]] = {"embed": [], "search": [], "choose": [], "answer": []}
    for turn, question in enumerate([questions[0], *questions]):
        embed, vectors = timed(partial(memory.embedder.embed, [question]))
        search, hits = timed(partial(_searches, memory, vectors, k))
        choose, choices = timed(partial(reasoner.choose, [question], hits))
        prompt = reasoner.prompt_ids(question, choices[0])
        answer, _ = timed(partial(reasoner.engine.generate, [prompt], max_new_tokens=MOST_TOKENS))
        if turn:
            for name, seconds in zip(stages, (embed, search / SEARCHES, choose, answer), strict=True):
                stages[name].append(seconds)
    found_seconds = {name: median(values) for name, values in stages.items()}
    return {**found_seconds, "total": median([sum(parts) for parts in zip(*stages.values(), strict=True)])}


def seconds_plain(engine: LanguageEngine, questions: Sequence[str]) -> float:
    """The same questions without a memory."""
    prompts = [engine.model.text.encode_prompt(question) for question in [questions[0], *questions]]
    times = [timed(partial(engine.generate, [prompt], max_new_tokens=MOST_TOKENS))[0] for prompt in prompts]
    return median(times[1:])


def quality(reasoner: SelectiveReasoner, memory: FactMemory, requests: Sequence[EditRequest], k: int) -> dict[str, Any]:
    """How often the right statement is chosen and the new target said, and what the questions hold in tokens."""
    probes = [(number, probe) for number, request in enumerate(requests) for probe in probes_of(request)]
    questions = [probe.prompt for _, probe in probes]
    hits = retrieve(memory, questions, k)
    choices = reasoner.choose(questions, hits.hits)
    prompts = [reasoner.prompt_ids(q, c) for q, c in zip(questions, choices, strict=True)]
    answers = reasoner.engine.generate(prompts, max_new_tokens=MOST_TOKENS)
    judge = ContainsJudge()
    said = judge.judge(
        [Case(p.prompt, answer.text, p.expected) for (_, p), answer in zip(probes, answers, strict=True)]
    )
    shares: dict[str, list[float]] = {}
    for (number, probe), choice, ok in zip(probes, choices, said, strict=True):
        if probe.in_scope:
            shares.setdefault(probe.kind, []).append(float(ok))
            shares.setdefault(f"{probe.kind}_right_statement", []).append(
                float(choice.hit is not None and choice.hit.id == number)
            )
        else:
            shares.setdefault("out_of_scope_none_chosen", []).append(float(choice.hit is None))
    informed = [len(p) for p, c in zip(prompts, choices, strict=True) if c.hit is not None]
    return {
        "questions": len(questions),
        **{name: sum(values) / len(values) for name, values in shares.items()},
        "tokens_with_statement": sum(informed) / max(1, len(informed)),
        "tokens_plain": sum(len(reasoner.text.encode_prompt(q)) for q in questions) / len(questions),
    }


def measure(
    model: EditableModel,
    embedder: Embedder,
    requests: Sequence[EditRequest],
    sizes: Sequence[int],
    tops: Sequence[int],
    *,
    alone: int,
    asked: int,
) -> dict[str, Any]:
    """Every size and every k."""
    plain, caching = LanguageEngine(model), CachingEngine(model)
    own = [MemoryEntry.of(request, number) for number, request in enumerate(requests)]
    fill = others(max(0, max(sizes) - len(own)), len(own))
    own_vectors, fill_vectors = embedder.embed([entry.statement for entry in own]), vectors_of(fill, embedder)
    some = requests[:: max(1, len(requests) // alone)][:alone]
    # in turns an edit's prompt and a paraphrase: a question for which nothing is chosen costs less
    kinds = ("edit", "paraphrase")
    questions = [
        next(p.prompt for p in probes_of(request) if p.kind == kinds[number % 2]) for number, request in enumerate(some)
    ]
    rows = []
    for size in sizes:
        # the stream's own facts are always there; a memory smaller than them holds the first of them
        entries, more = own[:size], fill[: max(0, size - len(own))]
        memory = FactMemory(embedder, IndexConfig())
        memory.add([*entries, *more], np.concatenate([own_vectors[: len(entries)], fill_vectors[: len(more)]]))
        for k in tops:
            scr = ScrConfig(k=k)
            row: dict[str, Any] = {"statements": size, "k": k}
            row |= seconds_alone(SelectiveReasoner(plain, model.text, scr), memory, questions, k)
            with caching.weights(model.digest):  # most questions have the same candidates whatever k is
                row |= quality(SelectiveReasoner(caching, model.text, scr), memory, requests[:asked], k)
            row["index_and_vectors_mib"] = size * embedder.dim * (2 + 4) / 2**20
            rows.append(row)
            print("  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items()), flush=True)
    return {"plain_seconds": seconds_plain(plain, questions), "questions_alone": len(questions), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 100_000], help="statements held")
    parser.add_argument("--top", type=int, nargs="+", default=[1, 3, 5, 10], help="statements considered")
    parser.add_argument("--alone", type=int, default=4, help="questions asked one after another")
    parser.add_argument("--facts", type=int, default=10, help="facts whose questions are asked in a batch")
    parser.add_argument("--stream", type=Path, default=ROOT / "configs" / "streams" / "quickstart.jsonl")
    parser.add_argument("--json", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    one_thread()
    requests = [r.request for r in open_dataset(options.stream, limit=100) if isinstance(r, ValidRecord)]
    embedder = build_embedder(SentenceEmbedderConfig())
    result = measure(
        smollm2(), embedder, requests, options.sizes, options.top, alone=options.alone, asked=options.facts
    )
    print(f"the same questions without a memory: {result['plain_seconds']:.3f} s")
    if options.json:
        store("memory_cost", {**result, "context": context()})


if __name__ == "__main__":
    main()
