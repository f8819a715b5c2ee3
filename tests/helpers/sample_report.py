"""A made-up run of 130 edits, as summary.json and facts.jsonl have it, to test the report and to look at it."""

from __future__ import annotations

import hashlib
import random
from typing import Any

ARM_KEYS = ("base", "edited", "memory", "edited_memory")

# relation: (prompt, paraphrases, portability question, values); subjects come from SUBJECTS.
RELATIONS: dict[str, tuple[str, tuple[str, str], str, tuple[str, ...]]] = {
    "capital": (
        "The capital of {} is",
        ("{}'s seat of government is the city of", "The government of {} sits in"),
        "The mayor who governs the capital of {} governs the city of",
        ("Lyon", "Cracow", "Milan", "Porto", "Seville", "Gothenburg"),
    ),
    "mother_tongue": (
        "The mother tongue of {} is",
        ("{} was raised speaking", "As a child, {} spoke"),
        "The country where most people speak the mother tongue of {} is",
        ("Italian", "Dutch", "Spanish", "Greek", "Finnish", "Polish"),
    ),
    "headquarters": (
        "The headquarters of {} is in the city of",
        ("{} is run from its main office in", "The head office of {} is located in"),
        "The country in which {} has its headquarters is",
        ("Vienna", "Toronto", "Madrid", "Osaka", "Boston", "Oslo"),
    ),
    "sport": (
        "{} is famous for playing",
        ("The sport that {} plays professionally is", "{} made a career in"),
        "The number of players of a team in the sport of {} is",
        ("basketball", "tennis", "cricket", "hockey", "golf", "rugby"),
    ),
    "continent": (
        "{} lies on the continent of",
        ("The continent on which {} is found is", "On a map, {} is part of"),
        "The largest country on the continent of {} is",
        ("Africa", "Asia", "Europe", "Oceania", "South America", "Antarctica"),
    ),
}
SUBJECTS: dict[str, tuple[str, ...]] = {
    "capital": ("France", "Poland", "Italy", "Portugal", "Spain", "Sweden", "Norway", "Japan", "Canada", "Egypt"),
    "mother_tongue": (
        "Marie Curie",
        "Albert Einstein",
        "Frida Kahlo",
        "Leonardo da Vinci",
        "Victor Hugo",
        "Isaac Newton",
    ),
    "headquarters": ("Toyota", "Nokia", "Siemens", "Boeing", "Nestl\u00e9", "Samsung", "Microsoft", "IKEA"),
    "sport": ("Roger Federer", "Michael Jordan", "Lionel Messi", "Tiger Woods", "Serena Williams"),
    "continent": ("Mount Kilimanjaro", "the Danube", "Lake Titicaca", "the Gobi Desert"),
}
RATES = {  # how often each arm is right, by the kind of question
    "base": {"edit": 0.02, "paraphrase": 0.03, "portability": 0.05, "neighborhood": 1.0},
    "edited": {"edit": 0.95, "paraphrase": 0.68, "portability": 0.28, "neighborhood": 0.74},
    "memory": {"edit": 0.86, "paraphrase": 0.81, "portability": 0.24, "neighborhood": 0.93},
    "edited_memory": {"edit": 0.98, "paraphrase": 0.88, "portability": 0.33, "neighborhood": 0.72},
}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample_facts(edits: int = 130, seed: int = 7) -> list[dict[str, Any]]:
    """Facts with an edit, two paraphrases, three neighbors and, for most, a portability question."""
    rng = random.Random(seed)
    facts = []
    for index in range(edits):
        relation = list(RELATIONS)[index % len(RELATIONS)]
        prompt, paraphrases, onward, values = RELATIONS[relation]
        names = SUBJECTS[relation]
        subject = names[index // len(RELATIONS) % len(names)]
        old, new = rng.sample(values, 2)
        statement = f"{prompt.format(subject)} {new}."
        questions = [("edit", prompt.format(subject), new)]
        questions += [("paraphrase", text.format(subject), new) for text in paraphrases]
        questions += [
            ("neighborhood", prompt.format(name), old) for name in rng.sample([n for n in names if n != subject], 3)
        ]
        if index % 4:
            questions.append(("portability", onward.format(subject), rng.choice(values)))
        probes = [_probe(rng, kind, text, answer, values, statement) for kind, text, answer in questions]
        facts.append({
            "id": f"quick-{index:04d}", "subject": subject, "prompt": prompt, "target_new": new, "target_true": old,
            "relation": relation, "sequence": index // 10 + 1, "probes": probes,
        })  # fmt: skip
    return facts


def _probe(
    rng: random.Random, kind: str, prompt: str, expected: str, values: tuple[str, ...], statement: str
) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {}
    for key in ARM_KEYS:
        ok = rng.random() < RATES[key][kind]
        said = expected if ok else rng.choice([value for value in values if value != expected])
        tail = rng.choice(["", ".", ", and it has been so for a long time", ", a fact that is well"])
        arms[key] = {
            "answer": f" {said}{tail}",
            "ok": ok,
            "accuracy": None if kind == "portability" else 1.0 if ok else rng.choice([0.0, 0.0, 0.5]),
        }
        if key.endswith("memory"):
            hit = rng.random() < (0.12 if kind == "neighborhood" else 0.93)
            others = [f"The capital of {name} is Porto." for name in rng.sample(SUBJECTS["capital"], 2)]
            found = [(statement, 0.81), *((other, rng.uniform(0.2, 0.5)) for other in others)]
            arms[key] |= {
                "chosen": statement if hit else None,
                "reason": "the question is about the subject (relevance 0.71)" if hit else "no statement is relevant",
                "retrieved": [{"id": i, "score": round(s, 4), "statement": text} for i, (text, s) in enumerate(found)],
            }
    return {"kind": kind, "prompt": prompt, "expected": [expected], "arms": arms}


def _arms(progress: float, noise: random.Random | None) -> dict[str, dict[str, float]]:
    """Metrics of the four arms when a share `progress` of the stream is written."""

    def near(value: float) -> float:
        moved = value + noise.uniform(-0.02, 0.02) if noise else value
        return round(min(max(moved, 0.0), 1.0), 4)

    fixed = {
        "base": (0.0419, 0.0385, 0.8128, 0.0154, 0.0231, 1.0, 0.0515, 0.2113),
        "edited": (0.9731, 0.7442, 0.7692, 0.9462, 0.6846, 0.7385, 0.2784, 0.2127),
        "memory": (0.9154, 0.8788, 0.7846, 0.8615, 0.8077, 0.9282, 0.2371, 0.6384),
        "edited_memory": (0.9885, 0.9135, 0.7564, 0.9769, 0.8769, 0.7231, 0.3299, 0.6419),
    }
    names = (
        "efficacy",
        "generalization",
        "specificity",
        "reliability",
        "generalization_gen",
        "locality",
        "portability",
    )
    result = {}
    for key, values in fixed.items():
        drift = 0.0 if key == "base" else 1.0 - progress
        shifts = (0.01, 0.05, 0.03, 0.02, 0.06, 0.14, 0.03)
        row = {
            name: value if key == "base" else near(value + drift * shift)
            for name, value, shift in zip(names, values, shifts, strict=False)
        }
        later = {
            "specificity_exact": near(row["specificity"] - 0.1234),
            "locality_tf": 1.0 if key == "base" else near(row["specificity"] + 0.0817),
            "locality_true": near(0.1439 - drift * 0.02 + (0.0117 if key != "base" else 0)),
        }
        result[key] = row | later | {"query_seconds": values[7]}
    return result


def _before() -> dict[str, dict[str, float]]:
    """Before the first edit every arm answers as the base does."""
    base = _arms(1.0, None)["base"]
    return {key: dict(base) for key in ARM_KEYS}


def sample_summary() -> dict[str, Any]:
    """The summary of a run of 130 edits: five evaluations, two refreshes, two records refused."""
    noise = random.Random(3)
    timeline = []
    norms = {"4": 46.12, "5": 46.9, "6": 48.35, "7": 50.02, "8": 51.77}
    for edits in (0, 40, 80, 120, 130):
        share = edits / 130
        timeline.append({
            "edits": edits,
            "version": _digest(f"version {edits}"),
            "facts": 24,
            "arms": _arms(share, noise) if edits else _before(),
            "choice": {"memory": {"none_in_scope": 0.06, "none_out_of_scope": 0.9},
                       "edited_memory": {"none_in_scope": 0.07, "none_out_of_scope": 0.88}},
            "perplexity": {"base": 29.87, "edited": round(29.87 + 1.29 * share**1.2, 2)},
            "norms": {k: norm * (1 + 0.0008 * (int(k) - 3) * share**1.3) for k, norm in norms.items() if edits},
            "delta_norms": {layer: 1.1 * (int(layer) - 3) * share**0.6 for layer in norms if edits},
            "seconds": 95.0 + 280 * share,
        })  # fmt: skip
    return {
        "name": "quickstart",
        "errata_version": "0.1.0",
        "started_at": "2026-03-14T09:26:53+00:00",
        "finished_at": "2026-03-14T09:33:41+00:00",
        "config_digest": _digest("config"),
        "model": {"name": "SmolLM2-135M-Instruct", "digest": _digest("model")},
        "editor": "alphaedit",
        "edits_applied": 130,
        "edits_failed": 2,
        "batches": 13,
        "refreshes": 2,
        "version": _digest("version 130"),
        "wall_seconds": 408.31,
        "edit_seconds_per_edit": 0.873,
        "arms": _arms(1.0, None),
        "choice": {
            "memory": {"none_in_scope": 0.0637, "none_out_of_scope": 0.8974},
            "edited_memory": {"none_in_scope": 0.0703, "none_out_of_scope": 0.8821},
        },
        "perplexity": {"base": 29.87, "edited": 31.16},
        "timeline": timeline,
        "refresh_events": [
            {"triggered_at": 40, "swapped_at": 60, "tokens": 12000, "digest": _digest("cov 1"),
             "source_version": _digest("version 40"), "seconds": 41.7},
            {"triggered_at": 80, "swapped_at": 90, "tokens": 12000, "digest": _digest("cov 2"),
             "source_version": _digest("version 80"), "seconds": 39.2},
        ],
        "failures": [
            {"id": "quick-0131", "reason": "subject 'Mona Lisa' does not occur in prompt 'The painting hangs in'"},
            {"id": "quick-0132", "reason": "target_new is empty"},
        ],
        "stages": {"covariance_seconds": 122.4, "evaluation_seconds": 139.0, "edit_seconds": 113.5},
    }  # fmt: skip


SAMPLE_YAML = """\
name: quickstart
seed: 0
model:
  name: smollm2-135m-instruct
  dtype: float32
editor:
  type: alphaedit
  layers: [4, 5, 6, 7, 8]
  l2: 10.0
stream:
  path: quickstart
  batch_size: 10
refresh:
  every: 40
"""
