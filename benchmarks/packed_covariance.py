"""What a packed covariance changes in edits, beside what another sample of the same size changes.

    python -m benchmarks.packed_covariance WHOLE PACKED [ANOTHER ...] [--method alphaedit] [--records 100] [--skip 500]

CounterFact on the demo model with its shipped preset, batches of ten, same contexts and same target values' seed: only
the covariance differs. Shares are teacher-forced with every token the likeliest: the new target after the prompt and
after the paraphrases, the unedited model's own first three tokens after the neighborhood's prompts. ``update`` is the
relative Frobenius distance of all edits' change from that with the first file, over all layers; ``cosine`` the cosine
between both.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.measuring import context, one_thread, store, timed
from benchmarks.records import CONTEXT_LENGTH, CONTEXTS, MODEL, counterfact, smollm2
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.packed_covariance import load_covariance
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.orchestrator.config.loading import read_composed
from errata.orchestrator.config.model_presets import find_preset, for_editor
from errata.orchestrator.config.run import EditorUnion

BATCH = 10
OWN_TOKENS = 3
PRESET = "models/smollm2-135m"


def written(
    model: EditableModel, settings: Mapping[str, Any], covariance: KeyCovariance, requests: Sequence[EditRequest]
) -> tuple[dict[int, Tensor], int, float]:
    """Apply the requests in batches; the change of each layer's weight (d_out, d_in), applied edits and CPU seconds.

    The weights stay edited: the caller has the model patched.
    """
    editor = make_editor(TypeAdapter(EditorUnion).validate_python(settings))
    before = {layer: model.weight(layer).clone() for layer in editor.layers}
    contexts = sample_contexts(model, count=CONTEXTS, length=CONTEXT_LENGTH, seed=0)
    session = EditSession(model, editor, covariance, contexts)
    applied, seconds = 0, 0.0
    for number, at in enumerate(range(0, len(requests), BATCH), start=1):
        batch = EditBatch(sequence=number, requests=tuple(requests[at : at + BATCH]))
        spent, receipt = timed(lambda: session.apply(batch))  # noqa: B023
        seconds += spent
        applied += sum(result.applied for result in receipt.results)
    return {layer: model.weight(layer) - weight for layer, weight in before.items()}, applied, seconds


def own_answers(engine: LanguageEngine, model: EditableModel, requests: Sequence[EditRequest]) -> list[list[int]]:
    """The first tokens that the model says after each neighborhood prompt."""
    prompts = [model.text.encode_prompt(probe.prompt) for request in requests for probe in request.neighborhood]
    return [list(answer.ids) for answer in engine.generate(prompts, max_new_tokens=OWN_TOKENS)]


def shares(
    engine: LanguageEngine, model: EditableModel, requests: Sequence[EditRequest], kept: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Efficacy, generalization and locality, 0..1."""
    text = model.text

    def share(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
        scored = engine.score([(list(prompt), list(target)) for prompt, target in rows])
        return sum(all(one.hits) for one in scored) / len(scored)

    near = [text.encode_prompt(probe.prompt) for request in requests for probe in request.neighborhood]
    return {
        "efficacy": share([(text.encode_prompt(r.text), text.encode_target(r.target_new)) for r in requests]),
        "generalization": share(
            [(text.encode_prompt(p), text.encode_target(r.target_new)) for r in requests for p in r.paraphrases]
        ),
        "locality": share([(prompt, answer) for prompt, answer in zip(near, kept, strict=True) if answer]),
    }


def compared(change: Mapping[int, Tensor], first: Mapping[int, Tensor]) -> dict[str, float]:
    """Relative distance and cosine of two changes, all layers as one vector."""
    a = torch.cat([change[layer].double().flatten() for layer in sorted(change)])
    b = torch.cat([first[layer].double().flatten() for layer in sorted(first)])
    return {"update": float((a - b).norm() / b.norm()), "cosine": float(a @ b / (a.norm() * b.norm()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="covariances; the first is compared with")
    parser.add_argument("--method", default="alphaedit")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--skip", type=int, default=500)
    parser.add_argument("--data", help="CounterFact as JSON")
    options = parser.parse_args()
    one_thread()
    requests = counterfact(options.data, options.skip + options.records)[options.skip :]
    if not requests:
        parser.error(f"--skip {options.skip} leaves no record")
    settings = for_editor(read_composed(find_preset(PRESET)), options.method)["editor"] | {"type": options.method}
    model = smollm2()
    engine = LanguageEngine(model)
    kept = own_answers(engine, model, requests)
    first: dict[int, Tensor] | None = None
    rows: dict[str, Any] = {}
    for path in options.files:
        covariance = load_covariance(path)
        with model.patched(settings["layers"]):
            change, applied, seconds = written(model, settings, covariance, requests)
            figures = shares(engine, model, requests, kept)
        first = first or change
        rows[path.name] = {
            "source": dict(covariance.source),
            "tokens": covariance.tokens,
            "applied": applied,
            **figures,
            **compared(change, first),
            "cpu_seconds_per_edit": seconds / len(requests),
        }
        print(path.name, rows[path.name], flush=True)
    store(f"packed-covariance-{options.method}", {"context": context(model=MODEL), "options": {
        "method": options.method, "records": options.records, "skip": options.skip}, "files": rows})  # fmt: skip


if __name__ == "__main__":
    main()
