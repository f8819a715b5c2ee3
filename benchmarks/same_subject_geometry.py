"""Why several facts about one subject fail in other wordings: RoSE's geometry, on SmolLM2 and the shipped stream.

    python -m benchmarks.same_subject_geometry [--subjects 12] [--model DIR --layers 4,5,6]

For each subject, on the unedited model (RoSE, figures 2 to 4, 7 to 13, 19):

* *key cosines* of one fact between statement, question and instructed question, and between different subjects;
* *gradient conflict* ``1 - |cos|`` between the relations of a subject;
* *tolerance radius* of the value of each fact alone (MEMIT), of one for all (MEMIT-Merge), and of RoSE's, with two,
  four and eight templates: the longest noise with which P(target) stays at .9 in nine of ten trials, in steps of
  ``--step`` of |h|;
  *values that hold*: the share that reaches .9 without noise; the radius of the others is 0;
* *activation deviation* ``|dW (k' - k)|`` of the question and the instructed question, of the update with the
  covariance and with the identity in its place (RoSE's IGA), at every edited layer;
* *escapes*: the share of facts whose deviation at the last layer is beyond the radius.

All lengths are relative to |h|, the state that the value is added to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import context, one_thread, store
from benchmarks.records import LAYERS, MODEL
from benchmarks.same_subject import INSTRUCTION, STREAM, self_generated
from errata.editing.checkpoint.load import load_model
from errata.editing.contexts import sample_contexts
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.editors.closed_form.memit_merge import MemitMerge, MemitMergeConfig, MergeValues, by_subject
from errata.editing.editors.closed_form.rose import TEMPLATES, Rose, RoseConfig
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.evaluation.robustness import (
    activation_deviation,
    gradient_conflicts,
    pairwise_cosines,
    target_probabilities,
    tolerance_radius,
    value_gradients,
)

FORMS = ("question", "instruction")
PROBABILITY = 0.9
_KEYS = ("key_cosines", "gradient_conflict", "values_that_hold", "tolerance_radius")


def in_form(request: EditRequest, form: str) -> EditRequest:
    """The same fact asked for as a question; its subject keeps its place."""
    question = request.portability[0].prompt.replace(request.subject, "{}", 1)
    prompt = question if form == "question" else INSTRUCTION.replace("{}", question)
    return request.model_copy(update={"prompt": prompt})


def editors(
    layers: tuple[int, ...], steps: int, cov_weight: float, clamp: float | None = 0.75
) -> dict[str, LocateEditor]:
    """Whose values are compared, with like settings of the optimization."""
    common: dict[str, Any] = {"layers": layers, "cov_weight": cov_weight, "past_keys": False}
    plain, merged = ValueConfig(steps=steps, clamp=clamp), MergeValues(steps=steps, clamp=clamp)
    rose = {
        f"RoSE, {n} templates": Rose(
            RoseConfig(**common, values=merged, templates=tuple(TEMPLATES[i * len(TEMPLATES) // n] for i in range(n)))
        )
        for n in (2, 4, 8)
    }
    return {
        "MEMIT, alone": Memit(MemitConfig(**common, values=plain)),
        "MEMIT-Merge": MemitMerge(MemitMergeConfig(**common, values=merged)),
        **rose,
    }


def deltas_of(
    model: EditableModel, editor: LocateEditor, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Changes (m, d) of the states, and the states (m, d)."""
    values = editor.find_values(model, requests, contexts, None)
    states = SubjectPass(model, requests, ("",)).states(editor.layers[-1])[0].T.cpu()
    return torch.stack([value.state for value in values]) - states, states


def radii(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    deltas: Tensor,
    sizes: Tensor,
    step: float,
    seed: int,
) -> list[float]:
    """Tolerance radius of each fact's value, relative to |h|."""
    found = []
    for number, (request, delta, size) in enumerate(zip(requests, deltas, sizes.tolist(), strict=True)):

        def holds(noise: Tensor, request: EditRequest = request, delta: Tensor = delta) -> Tensor:
            return target_probabilities(model, request, layer, delta + noise) >= PROBABILITY

        generator = torch.Generator().manual_seed(1000 * seed + number)
        radius = tolerance_radius(holds, delta.numel(), generator, step=step * size, most=8 * size)
        found.append(radius / size)
    return found


def deviations(
    model: EditableModel,
    editor: LocateEditor,
    state: Any,
    requests: Sequence[EditRequest],
    targets: Tensor,
    contexts: Sequence[str],
    sizes: Tensor,
) -> dict[str, dict[int, list[float]]]:
    """By form and layer what the update of one subject makes of other wordings, relative to |h|."""
    changes, _ = editor.write(model, requests, targets, state, contexts)
    found: dict[str, dict[int, list[float]]] = {form: {} for form in FORMS}
    own = SubjectPass(model, requests, ("",))
    others = {form: SubjectPass(model, [in_form(r, form) for r in requests], ("",)) for form in FORMS}
    for layer in editor.layers:
        keys = own.keys(layer, "mean").cpu()
        for form in FORMS:
            moved = activation_deviation(changes[layer], keys, others[form].keys(layer, "mean").cpu())
            found[form][layer] = (moved / sizes.double()).tolist()
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure(
    model: EditableModel,
    subjects: Sequence[Sequence[EditRequest]],
    layers: tuple[int, ...],
    *,
    steps: int,
    cov_weight: float,
    step: float,
    tokens: int,
    clamp: float | None = 0.75,
) -> dict[str, Any]:
    """Everything, as means over facts."""
    contexts = sample_contexts(model, count=1, length=10, seed=0)
    covariance = self_generated(model, layers, tokens)
    methods = editors(layers, steps, cov_weight, clamp)
    merge = methods["MEMIT-Merge"]
    by_constraint: Mapping[str, LocateEditor] = {
        "covariance": merge,
        "identity": Rose(RoseConfig(layers=layers, hki=False, values=MergeValues(steps=steps, clamp=clamp))),
    }
    states = {name: editor.new_state(model, covariance) for name, editor in by_constraint.items()}
    last = layers[-1]
    keys: dict[str, list[Tensor]] = {form: [] for form in ("statement", *FORMS)}
    radius: dict[str, list[float]] = {name: [] for name in methods}
    holding: dict[str, list[float]] = {name: [] for name in methods}
    moved: dict[str, dict[str, dict[int, list[float]]]] = {
        name: {form: {layer: [] for layer in layers} for form in FORMS} for name in by_constraint
    }
    conflicts: list[float] = []
    for number, facts in enumerate(subjects):
        conflicts += gradient_conflicts(value_gradients(model, facts, last, contexts)).tolist()
        keys["statement"].append(SubjectPass(model, facts, ("",)).keys(last, "mean").cpu())
        for form in FORMS:
            asked = [in_form(request, form) for request in facts]
            keys[form].append(SubjectPass(model, asked, ("",)).keys(last, "mean").cpu())
        for name, editor in methods.items():
            if name == "MEMIT, alone":  # each fact as if it were the only one
                parts = [deltas_of(model, editor, [fact], contexts) for fact in facts]
                deltas, at = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            else:
                deltas, at = deltas_of(model, editor, facts, contexts)
            sizes = at.norm(dim=1)
            holding[name] += [
                float(target_probabilities(model, fact, last, delta[None])[0] >= PROBABILITY)
                for fact, delta in zip(facts, deltas, strict=True)
            ]
            radius[name] += radii(model, facts, last, deltas, sizes, step, number)
            if editor is merge:
                for constraint, one in by_constraint.items():
                    found = deviations(model, one, states[constraint], facts, at + deltas, contexts, sizes)
                    for form, by_layer in found.items():
                        for layer, values in by_layer.items():
                            moved[constraint][form][layer] += values
        print(f"{number + 1} of {len(subjects)} subjects", flush=True)
    own = torch.cat(keys["statement"], dim=1)
    subject = torch.cat([torch.full((part.shape[1],), i) for i, part in enumerate(keys["statement"])])
    across = pairwise_cosines(own, own)[subject[:, None] != subject[None]]
    return {
        "facts": own.shape[1],
        "key_cosines": {
            **{form: mean(pairwise_cosines(own, torch.cat(keys[form], dim=1)).diagonal().tolist()) for form in FORMS},
            "other subjects": float(across.mean()) if across.numel() else None,
        },
        "gradient_conflict": mean(conflicts),
        "values_that_hold": {name: mean(values) for name, values in holding.items()},
        "tolerance_radius": {name: mean(values) for name, values in radius.items()},
        "activation_deviation": {
            name: {form: {layer: mean(values) for layer, values in rows.items()} for form, rows in forms.items()}
            for name, forms in moved.items()
        },
        "escapes": {
            name: {
                form: mean([float(d > r) for d, r in zip(moved[name][form][last], radius["MEMIT-Merge"], strict=True)])
                for form in FORMS
            }
            for name in by_constraint
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--layers", default=",".join(map(str, LAYERS)))
    parser.add_argument("--stream", type=Path, default=STREAM)
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--clamp", type=float, default=0.75, help="bound on |delta| / |h|; the paper names none")
    parser.add_argument("--cov-weight", type=float, default=1500.0)
    parser.add_argument("--step", type=float, default=0.1, help="of the radius, as a share of |h|")
    parser.add_argument("--tokens", type=int, default=7500, help="of the covariance")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = load_model(options.model)
    requests = [r.request for r in open_dataset(options.stream) if isinstance(r, ValidRecord)]
    subjects = [[requests[i] for i in group] for group in by_subject(requests)][: options.subjects]
    layers = tuple(int(part) for part in options.layers.split(","))
    result = measure(
        model,
        subjects,
        layers,
        steps=options.steps,
        cov_weight=options.cov_weight,
        step=options.step,
        tokens=options.tokens,
        clamp=options.clamp,
    )
    named = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("json", "model")}
    result = {"context": context(model=model.name), "settings": named, **result}
    print(store("same_subject_geometry", result, options.json))
    for key in (*_KEYS, "activation_deviation", "escapes"):
        print(key, result[key], flush=True)


if __name__ == "__main__":
    main()
