"""Everything that computes, on the CPU and on the pretended device: relative differences as JSON on standard output.

    python -m tests.helpers.accelerator_run edit llama gpt2      # every editor, on tiny models of these families
    python -m tests.helpers.accelerator_run rest llama

A process of its own, as the pretended device replaces parts of torch.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.helpers.pretended_device import DEVICE, PretendedTensor

# after the factories have been replaced
from errata.actors.sharded.layout import SPLIT_FAMILIES, plan_for  # isort: skip
from errata.actors.sharded.model import ShardedEditableModel
from errata.actors.sharded.rank import Group
from errata.editing.contexts import sample_contexts
from errata.editing.editors import make_editor
from errata.editing.estimation.corpus import CorpusReading, run_corpus_unit
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.modules.packed import unpack
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.tracing import TracePrompt, TracingConfig, trace
from errata.evaluation.perplexity import perplexity, windows_of
from tests.helpers.tiny import tiny_hf, tiny_tokenizer
from tests.unit.editing.editors.common import CONTEXTS, NAMES, config_of, covariance_of

# subjects near the end: in families with a window of six tokens the others get no gradient but rounding, and the step
# of Adam is as long for that
REQUESTS = tuple(
    EditRequest(id=name, subject=subject, prompt=prompt, target_new=new, target_true=true)
    for name, subject, prompt, new, true in (
        ("1", "Danielle Darrieux", "The mother tongue of {} is", "English", "French"),
        ("2", "Rome", "{} lies in", "Canada and more", "Italy"),
        ("3", "Angola", "{} is", "football", "a land"),
    )
)
TEXTS = ["The sport that Thierry Henry plays is football.", "Alice Munro works as a writer in Canada. Rome lies in."]
Outcome = dict[str, Any]


def model_on(family: str, device: str) -> EditableModel:
    """The tiny model of a family, the same weights on either device."""
    model = tiny_hf(family, layers=3)
    return EditableModel(model if device == "cpu" else model.to(device), tiny_tokenizer(), name=family, digest=family)


def sharded_on(family: str, device: str) -> EditableModel:
    """The same as the only rank of its group: what a rank does besides talking to others."""
    hf = tiny_hf(family, layers=3)
    hf = hf if device == "cpu" else hf.to(device)
    group = Group(0, 1, torch.device(device))
    plan = plan_for(hf.config, 1, family)
    return ShardedEditableModel(hf, tiny_tokenizer(), name=family, digest=family, group=group, plan=plan)


def settings_for(model: EditableModel, editor: str) -> Any:
    """The editor's small configuration, on maps that the family has."""
    config = config_of(editor)
    maps = getattr(config, "maps", ())
    known = {"down_proj", *model.decoder.input_maps, *model.decoder.attention_maps}
    if set(maps) <= known:
        return config
    kept = [name for name in maps if name in known]
    return config_of(editor, maps=kept or (["o_proj"] if editor in ("lora", "adalora") else ["down_proj"]))


def edited(model: EditableModel, editor: str) -> Outcome:
    """Two batches, the second of which replaces a fact of the first; what is kept, and what a snapshot holds."""
    session = EditSession(model, make_editor(settings_for(model, editor)), covariance_of(model), CONTEXTS)
    first = session.apply(EditBatch(sequence=1, requests=REQUESTS[:2]))
    again = REQUESTS[0].model_copy(update={"id": "4", "target_new": "yes"})
    second = session.apply(EditBatch(sequence=2, requests=(again, REQUESTS[2])))
    if not all(result.applied for receipt in (first, second) for result in receipt.results):
        raise AssertionError(f"not applied: {first.results}, {second.results}")
    found: Outcome = {}
    for layer, weight in session.weights().items():
        found |= numbers_of(f"weight {layer}", weight)
    for layer in session.editor.layers:
        found |= numbers_of(f"live {layer}", model.parameter(layer).detach())
    kept = session.snapshot()
    for tensor in (*kept.weights.values(), *kept.tensors.values()):
        if tensor.device.type != "cpu":
            raise AssertionError(f"a snapshot holds a tensor on {tensor.device}")
    return found


def numbers_of(name: str, content: Tensor) -> Outcome:
    """A map as it is; of a module, which is bytes, the tensors in them."""
    if content.dtype != torch.uint8:
        return {name: content}
    return {f"{name} {part}": tensor for part, tensor in unpack(content).tensors.items()} if content.numel() else {}


def estimated(model: EditableModel) -> Outcome:
    """Self-generation by both samplers, and a text."""
    found: Outcome = {}
    for sampler in ("inversion", "blocks"):
        config = SelfGenerationConfig(max_new_tokens=6, sequences_per_unit=4, slots=3, sampler=sampler)
        unit = run_unit(model, unit_of(0, seed=1, sequences=4), (0, 2), config)
        found |= {f"{sampler} {layer}": value for layer, value in unit.sums.items()}
        found[f"{sampler} nll"] = torch.tensor([nll for nll, _ in unit.documents])
    text = run_corpus_unit(model, 0, 0, TEXTS, (0, 2), CorpusReading(window=12))
    return found | {f"text {layer}": value for layer, value in text.sums.items()}


def evaluated(model: EditableModel) -> Outcome:
    """Scores, greedy answers, perplexity, causal traces, sampled contexts."""
    engine, text = LanguageEngine(model), model.text
    prompts = [text.encode_prompt(request.text) for request in REQUESTS]
    scored = engine.score([(p, text.encode_target(r.target_new)) for p, r in zip(prompts, REQUESTS, strict=True)])
    asked = [TracePrompt("1", "France", "The capital of {} is", "Paris")]
    traced = trace(model, asked, TracingConfig(draws=2, window=1, min_drop=0.0))
    return {
        "scores": torch.tensor([value for one in scored for value in one.logprobs]),
        "answers": [answer.ids for answer in engine.generate(prompts, max_new_tokens=5)],
        "perplexity": torch.tensor([perplexity(engine, windows_of(text, TEXTS)).value]),
        # differences of probabilities, compared as parts of one
        "trace": torch.tensor([1.0 + value for effects in traced.effects.values() for value in effects.mean]),
        "contexts": sample_contexts(model, count=2, length=4, seed=0),
    }


def of_a_rank(model: EditableModel) -> Outcome:
    """What a rank does alone: keys, gathered maps, moments by rows, an edit."""
    found = edited(model, "memit")
    moments = model.moments(1)
    moments.add(torch.randn(40, model.weight(1).shape[1], generator=torch.Generator().manual_seed(0)).to(model.device))
    return found | {"moments": moments.total(), **{f"whole {n}": p for n, p in _parts(model)}}


def _parts(model: EditableModel) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(model, ShardedEditableModel)
    return model.layer_parts()


def difference(want: Outcome, got: Outcome) -> float:
    """The largest relative difference of any tensor; infinite where anything else differs."""
    if want.keys() != got.keys():
        raise AssertionError(f"{sorted(want)} on the CPU, {sorted(got)} on the device")
    worst = 0.0
    for name, value in want.items():
        other = got[name]
        if not isinstance(value, Tensor):
            worst = max(worst, 0.0 if value == other else float("inf"))
            continue
        a, b = value.detach().double(), other.detach().cpu().double()
        if a.numel():
            worst = max(worst, float((a - b).norm() / a.norm().clamp_min(1e-12)))
    return worst


def compared(make: Callable[[str, str], EditableModel], family: str, work: Callable[[EditableModel], Outcome]) -> Any:
    """The difference, or the error that the device made."""
    want = work(make(family, "cpu"))
    try:
        model = make(family, str(DEVICE))
        if not all(isinstance(parameter.data, PretendedTensor) for parameter in model.hf.parameters()):
            raise AssertionError("a parameter is not on the pretended device")
        return difference(want, work(model))
    except Exception as error:
        last = "".join(traceback.format_exception(error)[-4:])
        return f"{type(error).__name__}: {error}\n{last}"


def main() -> None:
    kind, *families = sys.argv[1:]
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for family in families:
        if kind == "edit":
            for editor in NAMES:
                found[f"{family} {editor}"] = compared(model_on, family, lambda m, e=editor: edited(m, e))
            continue
        found[f"{family} estimation"] = compared(model_on, family, estimated)
        found[f"{family} evaluation"] = compared(model_on, family, evaluated)
        if family in SPLIT_FAMILIES:
            found[f"{family} rank"] = compared(sharded_on, family, of_a_rank)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
