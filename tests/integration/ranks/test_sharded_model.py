"""A model in two and three parts against the same model whole: everything that editing asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.actors.settings import ModelSpec
from errata.actors.sharded.layout import plan_for
from errata.actors.sharded.loading import load_part, part_of_checkpoint
from errata.actors.sharded.model import ShardedEditableModel, check_gradients
from errata.actors.sharded.rank import Group
from errata.actors.sharded.worker import ModelWorker
from errata.editing.checkpoint.load import load_model, read_model_config
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.errors import ErrataError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.value_problem import Problem
from errata.editing.values import ValueConfig, edit_segments
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

PROMPTS = ["The capital of France is", "Rome lies in", "What is the question?"]
TEXTS = ["The sport that Thierry Henry plays is football.", "Alice Munro works as a writer in Canada."]
REQUESTS = [
    EditRequest(id="1", subject="France", prompt="The capital of {} is", target_new="Rome"),
    EditRequest(id="2", subject="Alice Munro", prompt="{} works as a", target_new="subject"),
]
CONTEXTS = ("", "Therefore. ")
LAYERS = (1, 2)
VALUES = ValueConfig(lr=0.3, steps=6, clamp=2.0, weight_decay=0.1)
EDITOR = MemitConfig(layers=LAYERS, cov_weight=2.0, values=VALUES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six heads in three groups, 50 MLP columns: neither divides by four, and 50 not by three."""
    return save_tiny(tmp_path_factory.mktemp("sharded") / "model", "llama", hidden=48, heads=6, inner=50)


def measure(model: EditableModel, export_to: str | None = None) -> dict[str, Any]:
    """Everything that is compared, of a whole model or of one rank's part."""
    worker = ModelWorker(model)
    found: dict[str, Any] = {
        "logits": worker.logits(PROMPTS[0]),
        "tokens": [answer.ids for answer in worker.generate(PROMPTS, 8)],
        "scores": [s.logprobs for s in worker.score([(p, " Paris") for p in PROMPTS])],
        "perplexity": worker.perplexity("\n\n".join(TEXTS)),
        "hidden": worker.hidden_states(PROMPTS[1], 2),
        "keys": {layer: worker.keys(REQUESTS, CONTEXTS, layer) for layer in LAYERS},
        "gradients": value_gradients(model),
        "values": [value.delta for value in worker.optimize_values(REQUESTS, 2, CONTEXTS, VALUES)],
        "moments": worker.second_moments(TEXTS, (1, 1002))[0],
        "moment_rows": worker.second_moment_rows(TEXTS, LAYERS),
        "weights": worker.weights((1, 1001, 2002)),
    }
    before = live_bytes(model)
    worker.apply(DELTA)
    found["applied"] = worker.weights((1, 1001))
    found["applied_logits"] = worker.logits(PROMPTS[0])
    if export_to is not None:
        worker.export(export_to)
    worker.undo()
    found["undone"] = all(torch.equal(a, b) for a, b in zip(before, live_bytes(model), strict=True))
    found.update(edited(model))
    return found


def live_bytes(model: EditableModel) -> list[Tensor]:
    parameters = [parameter.detach().clone() for parameter in model.hf.parameters()]
    return [*parameters, *(model.weight(layer).clone() for layer in LAYERS)]


def value_gradients(model: EditableModel) -> Tensor:
    """Gradient of the value objective at a delta that is not zero, one row per edit."""
    edits = [edit_segments(model, request, CONTEXTS) for request in REQUESTS]
    problem = Problem(model, edits, 2, VALUES, "block")
    delta = torch.linspace(-0.2, 0.3, 2 * model.hidden_size).reshape(2, -1).requires_grad_()
    _, baseline = problem.losses(torch.zeros_like(delta), problem.h, None)
    problem.losses(delta, problem.h, baseline)[0].sum().backward()
    assert delta.grad is not None
    return delta.grad


def edited(model: EditableModel) -> dict[str, Any]:
    """Two batches through the whole editor, on a covariance that only some ranks keep."""
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(300, 50, generator=generator, dtype=torch.float64)
    covariance = KeyCovariance({layer: keys.T @ keys for layer in LAYERS}, 300, {"kind": "random"})
    session = EditSession(model, make_editor(EDITOR), covariance, CONTEXTS)
    for sequence, request in enumerate(REQUESTS, 1):
        session.apply(EditBatch(sequence=sequence, requests=(request,)))
    answers = ModelWorker(model).generate([request.text for request in REQUESTS], 3)
    return {"session": session.weights(), "answers": [answer.ids for answer in answers]}


def _delta() -> WeightDelta:
    generator = torch.Generator().manual_seed(5)
    random = lambda *shape: torch.randn(*shape, generator=generator) * 0.1
    changes = {
        1: LayerDelta("low_rank", random(48, 3), random(3, 50)),
        2: LayerDelta("orthogonal", torch.linalg.qr(random(48, 48))[0].contiguous()),
        1001: LayerDelta("low_rank", random(50, 2), random(2, 48)),
        2002: LayerDelta("dense", random(50, 48)),
    }
    return WeightDelta(changes, "test")


DELTA = _delta()


def on_rank(group: Group, directory: str, export_to: str) -> dict[str, Any]:
    model = load_part(ModelSpec(name=directory), group)
    found = measure(model, export_to)
    held = {name: tuple(parameter.shape) for name, parameter in model.hf.named_parameters()}
    return {**found, "held": held, "digest": model.digest}


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> dict[str, Any]:
    return measure(load_model(str(checkpoint)))


@pytest.fixture(scope="module", params=[2, 3])
def parts(request: pytest.FixtureRequest, checkpoint: Path) -> list[dict[str, Any]]:
    found = run_ranks(request.param, on_rank, str(checkpoint), str(checkpoint.parent / f"exported-{request.param}"))
    return found


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert float((got - want).norm()) <= tolerance * float(want.norm())


def test_passes_give_what_the_whole_model_gives(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for part in parts:
        close(part["logits"], whole["logits"], 1e-5)
        close(part["hidden"], whole["hidden"], 1e-5)
        assert part["tokens"] == whole["tokens"]
        assert part["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
        for got, want in zip(part["scores"], whole["scores"], strict=True):
            assert got == pytest.approx(want, rel=1e-4)
        for layer in LAYERS:
            close(part["keys"][layer], whole["keys"][layer], 1e-5)


def test_second_moments_are_blocks_of_rows_that_make_up_the_whole(
    parts: list[dict[str, Any]], whole: dict[str, Any]
) -> None:
    for layer, want in whole["moments"].items():
        close(parts[0]["moments"][layer], want, 1e-5)
        assert torch.equal(parts[0]["moments"][layer], parts[0]["moments"][layer].T)
        assert all(part["moments"][layer].numel() == 0 for part in parts[1:])
    for layer in LAYERS:
        blocks = [part["moment_rows"][layer] for part in parts]
        assert max(block.shape[0] for block in blocks) == -(-50 // len(parts))
        close(torch.cat(blocks), whole["moment_rows"][layer], 1e-5)


def test_gradients_of_the_value_objective_are_right(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for part in parts:
        close(part["gradients"], whole["gradients"], 2e-5)
        for got, want in zip(part["values"], whole["values"], strict=True):
            close(got, want, 1e-3)


def test_a_change_reaches_every_slice_and_goes_without_a_trace(
    parts: list[dict[str, Any]], whole: dict[str, Any]
) -> None:
    for part in parts:
        for layer, want in whole["applied"].items():
            assert torch.equal(part["applied"][layer], want)
        close(part["applied_logits"], whole["applied_logits"], 1e-5)
        assert not torch.equal(part["applied_logits"], part["logits"])
        assert part["undone"]


def test_edits_have_the_same_effect(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for part in parts:
        for layer, want in whole["session"].items():
            change = want - whole["weights"].get(layer, want * 0)
            close(part["session"][layer], want, 1e-4)
            assert float(change.norm()) > 0
            assert torch.equal(part["session"][layer], parts[0]["session"][layer])
        assert part["answers"] == whole["answers"]


def test_each_rank_holds_only_its_part(parts: list[dict[str, Any]], checkpoint: Path) -> None:
    size = len(parts)
    down = [part["held"]["model.layers.0.mlp.down_proj.weight"][1] for part in parts]
    heads = [part["held"]["model.layers.0.self_attn.q_proj.weight"][0] // 8 for part in parts]
    assert down == ([25, 25] if size == 2 else [17, 17, 16])
    assert heads == ([4, 2] if size == 2 else [2, 2, 2])
    assert {part["digest"] for part in parts} == {load_model(str(checkpoint)).digest}


def test_an_export_is_the_model_as_it_was_then(
    parts: list[dict[str, Any]], whole: dict[str, Any], checkpoint: Path
) -> None:
    again = ModelWorker(load_model(str(checkpoint.parent / f"exported-{len(parts)}")))
    close(again.logits(PROMPTS[0]), whole["applied_logits"], 1e-5)
    for layer, want in whole["applied"].items():
        assert torch.equal(again.weights((layer,))[layer], want)


FAMILIES = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"]
SMALL = {"hidden": 24, "heads": 6, "inner": 26}


def logits_and_gradient(group: Group, directories: list[str]) -> list[tuple[Tensor, Tensor]]:
    found = []
    for directory in map(Path, directories):
        config = read_model_config(directory, directory.name)
        plan = plan_for(config, group.size, directory.name)
        part = part_of_checkpoint(directory, config, plan, group, torch.float32)
        model = ShardedEditableModel(
            part, tiny_tokenizer(), name=directory.name, digest="0" * 64, group=group, plan=plan
        )
        found.append((ModelWorker(model).logits(PROMPTS[0]), value_gradients(model)))
    return found


def test_other_families_and_fewer_key_heads_than_ranks(tmp_path: Path) -> None:
    wholes = {family: tiny_model(family, **SMALL) for family in FAMILIES}
    # one key head on two ranks: one of them has no attention at all
    wholes["few"] = tiny_model("llama", hidden=16, heads=2, inner=24)
    for name, model in wholes.items():
        model.hf.save_pretrained(tmp_path / name)
    found = run_ranks(2, logits_and_gradient, [str(tmp_path / name) for name in wholes])
    for place, model in enumerate(wholes.values()):
        for rank in found:
            close(rank[place][0], ModelWorker(model).logits(PROMPTS[0]), 2e-5)
            close(rank[place][1], value_gradients(model), 1e-4)


def in_half_precision(group: Group, directory: str) -> dict[str, Tensor]:
    """Logits after an edit in bfloat16, and the float32 masters behind them."""
    model = load_part(ModelSpec(name=directory, dtype="bfloat16"), group)
    worker = ModelWorker(model)
    worker.apply(DELTA)
    assert model.parameter(1).dtype == torch.bfloat16
    return {"logits": worker.logits(PROMPTS[0]), "weight": worker.weights((1,))[1]}


def test_half_precision_keeps_whole_masters(checkpoint: Path) -> None:
    model = load_model(str(checkpoint), dtype="bfloat16")
    worker = ModelWorker(model)
    worker.apply(DELTA)
    first, second = run_ranks(2, in_half_precision, str(checkpoint))
    close(first["logits"], worker.logits(PROMPTS[0]), 0.05)
    assert torch.equal(first["logits"], second["logits"])
    assert torch.equal(first["weight"], worker.weights((1,))[1])


def logits_on_rank(group: Group, directory: str) -> Tensor:
    return ModelWorker(load_part(ModelSpec(name=directory), group)).logits(PROMPTS[0])


def test_no_compiler_is_needed(
    checkpoint: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    for logits in run_ranks(2, logits_on_rank, str(checkpoint)):
        close(logits, whole["logits"], 1e-5)
    assert not (tmp_path / "built").exists()


class Shaped(nn.Module):
    """A head that takes (1, T, d) only, for any shape (..., d)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden.reshape(1, -1, hidden.shape[-1]))
        return logits.reshape(*hidden.shape[:-1], -1)


def wrong_gradients(group: Group, directory: str) -> tuple[Tensor, Tensor, str]:
    """Logits and gradients through the layers of ``init_inference``, and what the check at loading says to them."""
    import deepspeed
    from deepspeed.module_inject.layers import set_autotp_mode
    from transformers import AutoModelForCausalLM

    set_autotp_mode(training=False)
    whole = AutoModelForCausalLM.from_pretrained(directory)
    engine = deepspeed.init_inference(whole, tensor_parallel={"tp_size": group.size}, dtype=torch.float32)
    engine.module.lm_head = Shaped(engine.module.lm_head)
    model = EditableModel(engine.module, tiny_tokenizer(), name="other", digest="0" * 64)
    found = ModelWorker(model).logits(PROMPTS[0]), value_gradients(model)
    try:
        check_gradients(model, group)
    except ErrataError as error:
        return *found, str(error)
    return *found, ""


def test_the_layers_with_wrong_gradients_are_noticed(checkpoint: Path, whole: dict[str, Any]) -> None:
    for logits, gradient, complaint in run_ranks(2, wrong_gradients, str(checkpoint)):
        close(logits, whole["logits"], 1e-4)
        # nothing but the gradient shows it; this is what the comparison above and the check at loading are for
        assert float((gradient - whole["gradients"]).norm()) > 0.1 * float(whole["gradients"].norm())
        assert "gradient" in complaint
