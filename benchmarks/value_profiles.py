"""The `fast` profile of the value optimization against the exact form: cost, and what it does to the edits.

    python -m benchmarks.value_profiles [--records 50] [--data counterfact.json]     # SmolLM2, AlphaEdit, batches of 10

Both profiles, and every ``--candidate CONTEXTS STEPS LR``, edit the same records from the same model, covariance and
contexts. Efficacy and generalization are token accuracies under teacher forcing, on the edit prompt and on its
paraphrases, after the last batch; a ``score`` is the share where the new target is likelier than the true one. Ratios
are per edit, as the fast profile makes fewer steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import context, gemm_rate, one_thread, store, timed
from benchmarks.records import CONTEXT_LENGTH, CONTEXTS, LAYERS, counterfact, smollm2
from benchmarks.values import published
from benchmarks.whole_edit import text_covariance
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors.base import Progress
from errata.editing.editors.closed_form.alphaedit import AlphaEdit, AlphaEditConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import TargetValue, ValueConfig, optimize_values
from errata.evaluation.edit_scores import edit_scores, mean_scores

SCORES = ("efficacy", "generalization", "efficacy_score", "paraphrase_score", "neighborhood_score")


class _Clocked(AlphaEdit):
    """AlphaEdit that knows what its target values cost."""

    seconds = 0.0
    steps = 0

    def find_values(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        progress: Progress | None,
    ) -> list[TargetValue]:
        seconds, values = timed(lambda: super(_Clocked, self).find_values(model, requests, contexts, progress))
        self.seconds += seconds
        self.steps += sum(value.steps for value in values)
        return values


def edited(
    model: EditableModel,
    requests: Sequence[EditRequest],
    covariance: KeyCovariance,
    contexts: Sequence[str],
    values: ValueConfig,
    *,
    layers: tuple[int, ...],
    batch: int,
) -> dict[str, float]:
    """Cost of the values and scores after all requests were applied by batches; the model is as before at the end."""
    editor = _Clocked(AlphaEditConfig(layers=layers, values=values))
    session = EditSession(model, editor, covariance, contexts)
    with model.patched(layers):
        for number, at in enumerate(range(0, len(requests), batch), start=1):
            session.apply(EditBatch(sequence=number, requests=tuple(requests[at : at + batch])))
        scores = mean_scores(edit_scores(LanguageEngine(model), model.text, requests))
    count = len(requests)
    row = {f"batch_{batch}_s_per_edit": editor.seconds / count, f"batch_{batch}_steps": editor.steps / count}
    return row | {name: float(scores[name]) for name in SCORES}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CounterFact as JSON")
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--plain", type=int, default=1, help="edits that the published form is timed on")
    parser.add_argument("--candidate", nargs=3, action="append", default=[], metavar=("CONTEXTS", "STEPS", "LR"))
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = smollm2()
    layer = LAYERS[-1]
    # two neighborhood prompts of ten are enough to see whether a profile spills over
    requests = [
        request.model_copy(update={"neighborhood": request.neighborhood[:2]})
        for request in counterfact(options.data, options.records)
    ]
    contexts = sample_contexts(model, count=CONTEXTS, length=CONTEXT_LENGTH, seed=0)
    texts = [f"{p} {r.target_new}." for r in counterfact(options.data, 300)[-250:] for p in r.paraphrases]
    covariance = text_covariance(model, LAYERS, texts)
    profiles = {"exact": ValueConfig(), "fast": ValueConfig(profile="fast")}
    for count, steps, lr in options.candidate:
        profiles[f"{count} {steps} {lr}"] = ValueConfig(contexts=int(count), steps=int(steps), lr=float(lr))
    rate = gemm_rate(1024, 576, 1536) / 1e9
    result: dict[str, Any] = {"context": context(model=model.name, gemm_Gflops=rate), "records": len(requests)}
    few = requests[: options.plain]
    spent, _ = timed(
        lambda: [published(model, r, layer=layer, contexts=contexts, config=profiles["exact"]) for r in few]
    )
    result["published_s_per_edit"] = spent / len(few)
    for name, values in profiles.items():
        alone, _ = timed(
            lambda: [
                optimize_values(model, [r], layer=layer, contexts=contexts, config=values)  # noqa: B023
                for r in few
            ]
        )
        row: dict[str, Any] = {"settings": values.model_dump(), "batch_1_s_per_edit": alone / len(few)}
        row |= edited(model, requests, covariance, contexts, values, layers=LAYERS, batch=10)
        for size in (1, 10):
            row[f"batch_{size}_ratio"] = result["published_s_per_edit"] / row[f"batch_{size}_s_per_edit"]
        result[name] = row
        print(name, row, flush=True)
    result["difference"] = {
        name: {score: result[name][score] - result["exact"][score] for score in SCORES} for name in profiles
    }
    print(result["difference"])
    print(store("value_profiles", result, options.json))


if __name__ == "__main__":
    main()
