"""Versions as checkpoints, single changes and adapters: what other programs load is the edited model."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from errata.editing.checkpoint.load import load_model
from errata.editing.delta import LayerDelta, WeightDelta, apply_delta
from errata.editing.errors import UserError
from errata.orchestrator.history import export
from errata.orchestrator.history.rebuild import BaseCheckpoint, open_base
from errata.orchestrator.journal.rows import Version
from tests.helpers.small_run import LAYERS, SmallRun, make_run
from tests.helpers.tiny import tiny_hf

IDS = torch.tensor([[5, 17, 250, 3, 99, 120]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("gpt2"), "gpt2")


def edition_of(run: SmallRun, name: str) -> tuple[export.Edition, BaseCheckpoint]:
    with run.journal() as journal:
        checkpoint = open_base(journal)
        return export.edition(journal, run.store(), checkpoint, journal.find_version(name)), checkpoint


def edited_logits(run: SmallRun, sequence: int) -> Tensor:
    model = load_model(str(run.model))
    model.set_weights(run.weights[sequence])
    with torch.no_grad():
        logits: Tensor = model.hf(input_ids=IDS).logits
    return logits


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_checkout_loads_with_the_editors_bytes(name: str, run: SmallRun, gpt2: SmallRun, tmp_path: Path) -> None:
    used = run if name == "llama" else gpt2
    card = export.write_checkpoint(*edition_of(used, "v3"), tmp_path / "out" / "v3")
    model = load_model(str(tmp_path / "out" / "v3"))
    for layer in LAYERS:
        assert model.weight(layer).numpy().tobytes() == used.weights[3][layer].numpy().tobytes()
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=IDS).logits, edited_logits(used, 3))
    before, after = (
        load_file(used.model / "model.safetensors"),
        load_file(tmp_path / "out" / "v3" / "model.safetensors"),
    )
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys() and len(changed) == len(LAYERS)
    assert json.loads((tmp_path / "out" / "v3" / "errata-version.json").read_text()) == card
    assert (card["version"], card["parents"]) == (used.versions[3], [used.versions[2]])
    assert card["journal"] == "small-run" and len(card["deltas"]) == 3
    assert card["rounding"] == {"0": 0.0, "1": 0.0}
    assert model.text.has_chat_template
    assert leftovers(tmp_path / "out") == ["v3"]


def test_the_base_version_is_the_base_checkpoint(run: SmallRun, tmp_path: Path) -> None:
    card = export.write_checkpoint(*edition_of(run, "v0"), tmp_path / "v0")
    assert (tmp_path / "v0" / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()
    assert card["parents"] == [] and card["deltas"] == []


def test_a_checkpoint_in_shards_keeps_them(tmp_path: Path) -> None:
    model = tiny_hf("llama", layers=3)
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    checkpoint = BaseCheckpoint(tmp_path / "base")
    base = {layer: checkpoint.map(layer) for layer in LAYERS}
    weights = {layer: weight + 0.25 for layer, weight in base.items()}
    made = edition_by_hand(base, weights)
    export.write_checkpoint(made, checkpoint, tmp_path / "out")
    copy = BaseCheckpoint(tmp_path / "out")
    assert [f.name for f in copy.weight_files] == [f.name for f in checkpoint.weight_files]
    assert all(torch.equal(copy.map(layer), weights[layer]) for layer in LAYERS)
    assert torch.equal(copy.map(2), checkpoint.map(2))


def test_a_half_precision_checkpoint_gets_casts_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, checkpoint_dtype="bfloat16")
    card = export.write_checkpoint(*edition_of(run, "head"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(stored, run.weights[-1][1].to(torch.bfloat16))
    assert all(1e-5 < error < 2**-8 for error in card["rounding"].values())


def test_weights_in_other_forms_stay_behind(run: SmallRun, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(run.model, base)
    (base / "errata-model.json").write_text("{}")
    for name in ("pytorch_model.bin", "model.gguf", "consolidated.safetensors", "pytorch_model.bin.index.json"):
        (base / name).write_bytes(b"unedited")
    (base / "onnx").mkdir()
    (base / "onnx" / "model.onnx").write_bytes(b"unedited")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("x")
    (base / "LICENSE").write_text("terms")
    edition, _ = edition_of(run, "v1")
    export.write_checkpoint(edition, BaseCheckpoint(base), tmp_path / "out")
    names = leftovers(tmp_path / "out")
    assert not [name for name in names if "bin" in name or name in ("model.gguf", "onnx", "consolidated.safetensors")]
    assert "errata-model.json" not in names and "errata-version.json" in names
    assert "LICENSE" in names and (tmp_path / "out" / "additional_chat_templates" / "tools.jinja").is_file()


def test_an_output_that_is_taken_is_refused(run: SmallRun, tmp_path: Path) -> None:
    edition, checkpoint = edition_of(run, "v1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for write in (export.write_checkpoint, export.write_adapter):
        with pytest.raises(UserError, match="is not an empty directory; give another one"):
            write(edition, checkpoint, tmp_path / "full")
    with pytest.raises(UserError, match="exists; give another name"):
        export.write_delta(edition, tmp_path / "full" / "x")
    assert (tmp_path / "full" / "x").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export.write_checkpoint(edition, checkpoint, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize("form", ["full", "lora", "delta"])
def test_a_full_disk_leaves_nothing(form: str, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edition, checkpoint = edition_of(run, "v1")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_sync", full)
    with pytest.raises(UserError, match=r"out' cannot be written: No space left on device"):
        if form == "full":
            export.write_checkpoint(edition, checkpoint, tmp_path / "out")
        elif form == "lora":
            export.write_adapter(edition, checkpoint, tmp_path / "out")
        else:
            export.write_delta(edition, tmp_path / "out")
    assert leftovers(tmp_path) == []


# ---------------------------------------------------------------- one change


def edition_by_hand(
    base: dict[int, Tensor], weights: dict[int, Tensor], deltas: tuple[WeightDelta, ...] = ()
) -> export.Edition:
    card = {"editor": "memit", "base": {"name": "tiny", "digest": "b"}}
    return export.Edition(Version(1, "d" * 64, "p" * 64, 1), tuple(base), deltas, base, weights, card)


def test_low_rank_commits_are_stacked(run: SmallRun, tmp_path: Path) -> None:
    edition, _ = edition_of(run, "v2")
    (tmp_path / "plain").touch()
    card = export.write_delta(edition, tmp_path / "change.safetensors")
    delta = WeightDelta.load(tmp_path / "change.safetensors")
    assert card["kinds"] == {"0": "low_rank", "1": "low_rank"} and card["delta"] == delta.digest
    for layer in LAYERS:
        change = delta.layers[layer]
        assert change.right is not None and change.left.shape == (32, 3) and change.right.shape == (3, 48)
        parts = [d.layers[layer] for d in edition.deltas]
        assert torch.equal(change.left[:, :2], parts[0].left) and torch.equal(change.left[:, 2:], parts[1].left)
        got = apply_delta(edition.base[layer], change)
        torch.testing.assert_close(got, run.weights[2][layer], rtol=0, atol=1e-6)
        assert 0 <= card["relative_error"][str(layer)] < 1e-6
    assert (tmp_path / "change.safetensors").stat().st_mode & 0o077 == (tmp_path / "plain").stat().st_mode & 0o077
    with safe_open(tmp_path / "change.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["card"]) == card


def test_mixed_commits_become_the_difference(run: SmallRun, tmp_path: Path) -> None:
    edition, _ = edition_of(run, "head")
    card = export.write_delta(edition, tmp_path / "change.safetensors")
    delta = WeightDelta.load(tmp_path / "change.safetensors")
    assert set(card["kinds"].values()) == {"dense"}
    for layer in LAYERS:
        want = (run.weights[6][layer].double() - edition.base[layer].double()).float()
        assert torch.equal(delta.layers[layer].left, want)


def test_a_stack_larger_than_the_matrix_becomes_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    parts = [
        LayerDelta("low_rank", torch.randn(6, 2, generator=generator), torch.randn(2, 8, generator=generator))
        for _ in range(2)
    ]
    deltas = [WeightDelta({0: part}, "memit") for part in parts]
    after = apply_delta(base, parts[0])
    assert export.accumulate(edition_by_hand({0: base}, {0: after}, (deltas[0],))).layers[0].kind == "low_rank"
    after = apply_delta(after, parts[1])
    assert export.accumulate(edition_by_hand({0: base}, {0: after}, tuple(deltas))).layers[0].kind == "dense"


def test_orthogonal_commits_are_multiplied_in_their_order() -> None:
    generator = torch.Generator().manual_seed(1)
    base, after = torch.randn(5, 7, generator=generator), torch.empty(0)
    turns = [torch.linalg.qr(torch.randn(5, 5, generator=generator))[0] for _ in range(3)]
    deltas, after = [], base
    for turn in turns:
        deltas.append(WeightDelta({0: LayerDelta("orthogonal", turn)}, "mose"))
        after = apply_delta(after, deltas[-1].layers[0])
    found = export.accumulate(edition_by_hand({0: base}, {0: after}, tuple(deltas))).layers[0]
    assert found.kind == "orthogonal"
    torch.testing.assert_close(found.left, turns[2] @ turns[1] @ turns[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_delta(base, found), after, rtol=0, atol=1e-5)


def test_the_base_has_nothing_to_export(run: SmallRun, tmp_path: Path) -> None:
    edition, checkpoint = edition_of(run, "v0")
    with pytest.raises(UserError, match="v0 changes nothing against the base: there is no delta"):
        export.write_delta(edition, tmp_path / "x")
    with pytest.raises(UserError, match="v0 changes nothing against the base: there is no adapter"):
        export.write_adapter(edition, checkpoint, tmp_path / "x")
    assert leftovers(tmp_path) == []


# ---------------------------------------------------------------- adapters


def peft_logits(run: SmallRun, adapter: Path, *, merge: bool = False) -> Tensor:
    peft: Any = pytest.importorskip("peft")
    model = load_model(str(run.model)).hf
    wrapped = peft.PeftModel.from_pretrained(model, adapter)
    if merge:
        wrapped = wrapped.merge_and_unload()
    with torch.no_grad():
        logits: Tensor = wrapped(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_loads_the_adapter_and_answers_as_the_edited_model(
    name: str, merge: bool, run: SmallRun, gpt2: SmallRun, tmp_path: Path
) -> None:
    used = run if name == "llama" else gpt2
    card = export.write_adapter(*edition_of(used, "v3"), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert card["exact"] and card["rank"] == config["r"] == config["lora_alpha"] == 4
    assert config["target_modules"] == (["down_proj"] if name == "llama" else ["mlp.c_proj"])
    assert config["fan_in_fan_out"] is (name == "gpt2") and config["layers_to_transform"] == list(LAYERS)
    assert all(error < 1e-6 for error in card["relative_error"].values())
    want, unedited = edited_logits(used, 3), edited_logits(used, 0)
    got = peft_logits(used, tmp_path / "lora", merge=merge)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert float((want - unedited).abs().max()) > 0.05, "the edits show at all"


def test_the_factors_of_an_exact_adapter_are_the_stored_ones(run: SmallRun, tmp_path: Path) -> None:
    edition, checkpoint = edition_of(run, "v1")
    export.write_adapter(edition, checkpoint, tmp_path / "lora", rank=16)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for layer in LAYERS:
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        assert torch.equal(tensors[f"{prefix}.lora_A.weight"], edition.deltas[0].layers[layer].right)
        assert torch.equal(tensors[f"{prefix}.lora_B.weight"], edition.deltas[0].layers[layer].left)


def test_a_truncated_adapter_is_the_best_of_its_rank_and_says_how_far_off(run: SmallRun, tmp_path: Path) -> None:
    edition, checkpoint = edition_of(run, "v3")
    card = export.write_adapter(edition, checkpoint, tmp_path / "lora", rank=2)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not card["exact"] and card["rank"] == 2
    for layer in LAYERS:
        change = run.weights[3][layer].double().numpy() - run.weights[0][layer].double().numpy()
        singular = np.linalg.svd(change, compute_uv=False)
        want = float(np.sqrt((singular[2:] ** 2).sum() / (singular**2).sum()))
        assert card["relative_error"][str(layer)] == pytest.approx(want, rel=1e-4)
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        product = (tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]).numpy()
        assert np.linalg.norm(product - change) / np.linalg.norm(change) == pytest.approx(want, rel=1e-4)


def test_a_dense_history_becomes_an_adapter_of_as_many_directions_as_it_takes(run: SmallRun, tmp_path: Path) -> None:
    card = export.write_adapter(*edition_of(run, "head"), tmp_path / "lora")
    assert card["exact"] and card["rank"] == 4, "two edits, one, and one; what was reverted takes no room"
    torch.testing.assert_close(peft_logits(run, tmp_path / "lora"), edited_logits(run, 6), rtol=1e-4, atol=1e-4)


def test_more_commits_than_dimensions_need_no_more_than_the_dimension() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.zeros(4, 6)
    parts = [
        LayerDelta("low_rank", torch.randn(4, 3, generator=generator), torch.randn(3, 6, generator=generator))
        for _ in range(3)
    ]
    after = base
    for part in parts:
        after = apply_delta(after, part)
    found = export.low_rank(parts, base, after, None)
    assert found.left.shape == (4, 4) and found.exact and found.relative_error < 1e-6
    cut = export.low_rank(parts, base, after, 2)
    singular = np.linalg.svd(after.double().numpy(), compute_uv=False)
    assert not cut.exact
    assert cut.relative_error == pytest.approx(
        float(np.sqrt((singular[2:] ** 2).sum() / (singular**2).sum())), rel=1e-4
    )


def test_layers_of_different_ranks_share_one_by_zeros(run: SmallRun, tmp_path: Path) -> None:
    edition, checkpoint = edition_of(run, "v2")
    second = edition.deltas[1]
    only_first_layer = replace(second, layers={0: second.layers[0]})
    weights = {**edition.weights, 1: run.weights[1][1]}
    uneven = replace(edition, deltas=(edition.deltas[0], only_first_layer), weights=weights)
    card = export.write_adapter(uneven, checkpoint, tmp_path / "lora")
    assert card["rank"] == 3 and card["exact"]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    left = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    assert left.shape == (32, 3) and not left[:, 2].any() and left[:, :2].any()
