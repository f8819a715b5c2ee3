"""Which facts of the shipped stream does the demo model really know before it is edited?

An update is only worth showing if the model held the old fact. For every record this measures, teacher-forced
and on the unedited model: the mean token log-probability of ``target_true`` and of ``target_new`` after the
edit prompt, whether every token of ``target_true`` is the argmax, the rank of its first token, and whether every
neighborhood answer is.

    python -m benchmarks.quickstart_facts --model MODEL             # measure and write the numbers
    python -m benchmarks.quickstart_facts --model MODEL --filter    # and keep only the known records

Criteria, also in ``configs/streams/README.md``: *strict*: every token of ``target_true`` is the argmax;
*loose*: ``target_true`` leads ``target_new`` by at least 2 nats (mean log-probability) and its first token is
among the five likeliest.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
STREAM = ROOT / "configs" / "streams" / "quickstart.jsonl"
KNOWN_SUFFIX = "_known.json"
LOOSE_MARGIN_NATS = 2.0
LOOSE_TOP = 5
_BATCH = 16


@dataclass(frozen=True)
class Scored:
    """One continuation under teacher forcing."""

    logprob: float
    """Mean natural-log probability per target token."""
    accuracy: float
    """Share of target tokens that are the argmax, in [0, 1]."""
    first_rank: int
    """Number of tokens likelier than the target's first one; 0 is the argmax."""


def score_targets(logits_TV: Tensor, targets_T: Tensor) -> Scored:
    """Score one continuation from the logits at the positions that predict it.

    Args:
        logits_TV: (T, V) float; row t predicts target token t.
        targets_T: (T,) int64 token ids, T >= 1.
    """
    logp_TV = logits_TV.double().log_softmax(-1)
    picked_T = logp_TV.gather(1, targets_T[:, None])[:, 0]
    return Scored(
        logprob=float(picked_T.mean()),
        accuracy=float((logp_TV.argmax(-1) == targets_T).double().mean()),
        first_rank=int((logp_TV[0] > picked_T[0]).sum()),
    )


def criterion(true: Scored, new: Scored) -> str | None:
    """Name of the criterion by which the original fact is known: "strict", "loose" or None."""
    if true.accuracy == 1.0:
        return "strict"
    if true.logprob - new.logprob >= LOOSE_MARGIN_NATS and true.first_rank < LOOSE_TOP:
        return "loose"
    return None


@torch.no_grad()
def score_pairs(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
    """Score ``(prompt, target)`` pairs with a causal language model; results in the order given.

    Targets are tokenized as a continuation, with a leading space and no special tokens. Batches are padded on
    the right, which a causal model cannot see.
    """
    encoded: list[tuple[list[int], list[int]]] = [
        (
            tokenizer(prompt, add_special_tokens=True).input_ids,
            tokenizer(f" {target}", add_special_tokens=False).input_ids,
        )
        for prompt, target in pairs
    ]
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, encoded[i])))
    scored: dict[int, Scored] = {}
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        width = max(sum(map(len, encoded[i])) for i in chosen)
        ids_BT = torch.zeros(len(chosen), width, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, i in enumerate(chosen):
            tokens = encoded[i][0] + encoded[i][1]
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
            mask_BT[row, : len(tokens)] = 1
        logits_BTV = model(ids_BT, attention_mask=mask_BT).logits
        for row, i in enumerate(chosen):
            prompt, target = encoded[i]
            rows = logits_BTV[row, len(prompt) - 1 : len(prompt) + len(target) - 1]
            scored[i] = score_targets(rows, torch.tensor(target))
    return [scored[i] for i in range(len(pairs))]


def read_stream(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL stream, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def measure(model: Any, tokenizer: Any, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per record id, the numbers of the module's docstring; log-probabilities in nats, 4 digits."""
    pairs: list[tuple[str, str]] = []
    for record in records:
        text = record["prompt"].replace("{}", record["subject"])
        pairs += [(text, record["target_true"]), (text, record["target_new"])]
        pairs += [(probe["prompt"], probe["answer"]) for probe in record["neighborhood"]]
    scores = iter(score_pairs(model, tokenizer, pairs))
    out: dict[str, dict[str, Any]] = {}
    for record in records:
        true, new = next(scores), next(scores)
        near = [next(scores) for _ in record["neighborhood"]]
        out[record["id"]] = {
            "relation": record["relation"],
            "criterion": criterion(true, new),
            "true_above_new": true.logprob > new.logprob,
            "true_logprob": round(true.logprob, 4),
            "new_logprob": round(new.logprob, 4),
            "true_accuracy": round(true.accuracy, 4),
            "true_first_rank": true.first_rank,
            "new_accuracy": round(new.accuracy, 4),
            "neighborhood_accuracy": [round(score.accuracy, 4) for score in near],
        }
    return out


def table(known: Iterable[dict[str, Any]]) -> str:
    """One line per relation: records, how many are known by which criterion, neighborhood answers right."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in known:
        groups[row["relation"]].append(row)
    groups = dict(sorted(groups.items())) | {"all": [row for rows in groups.values() for row in rows]}
    head = ("records", "strict", "loose", "P(true)>P(new)", "neighbors right")
    lines = [f"{'relation':28}" + "".join(f"{title:>18}" for title in head)]
    for name, rows in groups.items():
        near = [accuracy == 1.0 for row in rows for accuracy in row["neighborhood_accuracy"]]
        strict = sum(row["criterion"] == "strict" for row in rows)
        loose = sum(row["criterion"] == "loose" for row in rows)
        above = sum(row["true_above_new"] for row in rows)
        cells = (len(rows), strict, loose, above, f"{sum(near)}/{len(near)}")
        lines.append(f"{name:28}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def write_filtered(
    stream: Path, records: Sequence[dict[str, Any]], known: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Rewrite the stream with the known records only, ids renumbered; returns the numbers by new id."""
    kept: list[dict[str, Any]] = []
    numbers: dict[str, dict[str, Any]] = {}
    for record in records:
        if known[record["id"]]["criterion"] is None:
            logger.info("dropped %s: %s", record["id"], record["subject"])
            continue
        new_id = f"qs-{len(kept) + 1:04d}"
        numbers[new_id] = known[record["id"]]
        kept.append({**record, "id": new_id})
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
    stream.write_text(text, encoding="utf-8")
    return numbers


def main() -> None:
    """Command line entry point; prints the table and writes the numbers beside the stream."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", required=True, help="directory, or a name known to `errata models fetch`")
    parser.add_argument("--stream", type=Path, default=STREAM)
    parser.add_argument("--filter", action="store_true", help="rewrite the stream: known records only")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.editing.checkpoint.load import checkpoint_digest, resolve_model

    directory = resolve_model(args.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    records = read_stream(args.stream)
    known = measure(model, tokenizer, records)
    print(table(known.values()))
    if args.filter:
        known = write_filtered(args.stream, records, known)
    config = model.config
    described = {
        "name": Path(args.model).name,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "dtype": "float32",
        "digest": checkpoint_digest(directory),
    }
    result = {
        "model": described,
        "stream": args.stream.name,
        "loose": {"margin_nats": LOOSE_MARGIN_NATS, "first_token_in_top": LOOSE_TOP},
        "known": sum(row["criterion"] is not None for row in known.values()),
        "known_strict": sum(row["criterion"] == "strict" for row in known.values()),
        "records": known,
    }
    path = args.stream.with_name(args.stream.stem + KNOWN_SUFFIX)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = f"{result['known']} of {len(records)} records known, {result['known_strict']} strictly"
    print(f"{counts}; numbers in {path.name}")


if __name__ == "__main__":
    main()
