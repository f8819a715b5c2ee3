"""Methods side by side on real records: what they store, what they leave alone, and what an edit and a question cost.

    python -m benchmarks.family --data counterfact.json --methods grace,wise,gated_kv [--records 60] [--batch 1]
    python -m benchmarks.family --data counterfact.json --records 1000 --layer 6 --firing wikitext.txt

Records of CounterFact go one by one, or in batches, through an `EditSession`. Efficacy and generalization: every token
of the target is the argmax, teacher-forced, after the prompt and after its paraphrases. Locality: the likeliest first
token after a neighborhood prompt is the base's. Base bytes: share of neighborhood prompts whose scores have the base's
bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import one_thread
from benchmarks.records import counterfact
from errata.editing.checkpoint.load import load_model
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.modules.gated import unit
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession

PROMPTS = 2
"""Paraphrases and neighborhood prompts of each record."""


class Figures:
    """The answers of the base, and how far from them the edited model is."""

    def __init__(self, model: EditableModel, requests: Sequence[EditRequest]) -> None:
        self.engine, self.text, self.requests = LanguageEngine(model), model.text, requests
        self.near = [self.text.encode_prompt(p.prompt) for r in requests for p in r.neighborhood[:PROMPTS]]
        self.before = self.engine.score_and_generate([(p, self._some) for p in self.near], max_new_tokens=1)

    @property
    def _some(self) -> list[int]:
        return self.text.encode_target("Paris")

    def now(self) -> dict[str, float]:
        """All of them on the weights and modules as they are."""
        own = [(self.text.encode_prompt(r.text), self.text.encode_target(r.target_new)) for r in self.requests]
        other = [
            (self.text.encode_prompt(p), self.text.encode_target(r.target_new))
            for r in self.requests
            for p in r.paraphrases[:PROMPTS]
        ]
        started = time.perf_counter()
        scored = self.engine.score(own)
        seconds = (time.perf_counter() - started) / len(own)
        again = self.engine.score(other)
        after = self.engine.score_and_generate([(p, self._some) for p in self.near], max_new_tokens=1)
        same = [a[1].ids == b[1].ids for a, b in zip(self.before, after, strict=True)]
        bytes_ = [a[0] == b[0] for a, b in zip(self.before, after, strict=True)]
        return {
            "efficacy": mean([all(s.hits) for s in scored]),
            "generalization": mean([all(s.hits) for s in again]),
            "locality": mean(same),
            "base_bytes": mean(bytes_),
            "ms_question": 1000 * seconds,
        }


def mean(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))


def measure(
    model: EditableModel, requests: Sequence[EditRequest], config: Any, batch: int, covariance: KeyCovariance | None
) -> dict[str, Any]:
    """One method over all records; the model's weights and modules are taken back."""
    editor = make_editor(config)
    contexts = sample_contexts(model, count=3, length=10, seed=0)
    with model.patched(editor.layers):
        session = EditSession(model, editor, covariance if editor.needs_covariance else None, contexts)
        figures = Figures(model, requests)
        base = figures.now()
        failed, started = 0, time.perf_counter()
        stages = {}
        for number, first in enumerate(range(0, len(requests), batch), start=1):
            receipt = session.apply(EditBatch(sequence=number, requests=tuple(requests[first : first + batch])))
            failed += sum(not r.applied for r in receipt.results)
            if first + batch == 10:
                shown, figures.requests = figures.requests, figures.requests[:10]
                stages["efficacy_at_10"] = figures.now()["efficacy"]
                figures.requests = shown
        seconds = time.perf_counter() - started
        held = sum(int(w.numel()) for n, w in session.weights().items() if w.dtype == torch.uint8)
        found = {**figures.now(), **stages}
    found["ms_question_base"] = base["ms_question"]
    return {
        "method": config.type,
        "records": len(requests),
        "batch": batch,
        "failed": failed,
        **found,
        "seconds_per_edit": seconds / len(requests),
        "bytes_per_edit": held / len(requests),
    }


@torch.no_grad()
def firing(
    model: EditableModel, requests: Sequence[EditRequest], text: str, layer: int, tokens: int, threshold: float
) -> dict[str, Any]:
    """Share of the tokens of a text at which a gate with one key a fact opens; keys are of the bare prompts."""
    keys = unit(SubjectPass(model, requests, ("",)).keys(layer).T)
    ids = model.text.encode_prompt(text)[:tokens]
    pieces = [ids[at : at + 128] for at in range(0, len(ids), 128)]
    best = []
    for at in range(0, len(pieces), 8):
        rows = model.rows(pieces[at : at + 8])
        with model.map_inputs([layer]) as inputs:
            model.run(model.embed(rows), 0, layer + 1, model.positional(rows.layout))
        best.append((unit(inputs[layer][rows.layout.segments >= 0].float()) @ keys.T).max(dim=1).values)
    cosines = torch.cat(best)
    shares = {f"{t:.2f}": float((cosines > t).double().mean()) for t in (0.5, 0.6, threshold, 0.7, 0.8, 0.9)}
    return {"facts": len(requests), "tokens": len(cosines), "layer": layer, "fires_above": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", default="grace,wise,gated_kv")
    parser.add_argument("--layer", type=int, default=20, help="of modules")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON by method")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--firing", type=Path, help="unrelated text: only how often a gate would open on it")
    parser.add_argument("--tokens", type=int, default=10_000)
    chosen = parser.parse_args()
    model = load_model(chosen.model)
    requests = counterfact(str(chosen.data), chosen.skip + chosen.records)[chosen.skip :]
    one_thread()
    if chosen.firing is not None:
        text = chosen.firing.read_text(encoding="utf-8")
        print(json.dumps(firing(model, requests, text, chosen.layer, chosen.tokens, 0.65)))
        return
    for name in chosen.methods.split(","):
        settings = {"layers": [chosen.layer], **chosen.settings.get(name, {})}
        config = REGISTRY[name][0].model_validate({"type": name, **settings})
        print(json.dumps(measure(model, requests, config, chosen.batch, None)), flush=True)


if __name__ == "__main__":
    main()
