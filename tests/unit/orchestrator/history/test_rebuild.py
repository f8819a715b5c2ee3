"""Weights of every version from files alone: the same bytes as the editor had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.editing.checkpoint.load import load_model
from errata.editing.digest import digest_tensors
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.model.decoder import FAMILIES
from errata.orchestrator.history import rebuild
from tests.helpers.small_run import LAYERS, SmallRun, make_run
from tests.helpers.tiny import save_tiny, tiny_hf, tiny_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_base_maps_are_the_masters_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", family, layers=3)
    model = load_model(str(directory))
    found = rebuild.base_maps(directory, (0, 2))
    assert sorted(found) == [0, 2]
    for layer, weight in found.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, model.weight(layer))


def test_base_maps_in_half_precision_are_the_masters_of_a_half_precision_model(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", "gpt2", layers=2)
    want = load_model(str(directory), dtype="bfloat16").weight(1)
    exact = rebuild.base_maps(directory, (1,))[1]
    assert torch.equal(rebuild.base_maps(directory, (1,), dtype="bfloat16")[1], want)
    assert not torch.equal(exact, want)


def test_a_checkpoint_in_shards_and_behind_links(tmp_path: Path) -> None:
    model = tiny_hf("llama", layers=3)
    blobs, directory = tmp_path / "blobs", tmp_path / "model"
    model.save_pretrained(blobs, max_shard_size="40KB")
    directory.mkdir()
    for path in blobs.iterdir():  # as a hub snapshot is laid out
        (directory / path.name).symlink_to(path)
    checkpoint = rebuild.BaseCheckpoint(directory)
    assert len(checkpoint.weight_files) > 1
    for layer in range(3):
        want = model.get_parameter(f"model.layers.{layer}.mlp.down_proj.weight")
        assert torch.equal(checkpoint.map(layer), want)
        assert checkpoint.encode(layer, checkpoint.map(layer)) == want.detach().numpy().tobytes()


def test_a_checkpoint_saved_from_the_bare_decoder(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", "gpt2", layers=2)
    want = rebuild.base_maps(directory, (1,))[1]
    path = directory / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    assert torch.equal(rebuild.base_maps(directory, (1,))[1], want)


def test_every_version_has_the_bytes_the_editor_had(run: SmallRun) -> None:
    base = rebuild.base_maps(run.model, LAYERS)
    before = digest_tensors({str(layer): weight for layer, weight in base.items()})
    with run.journal() as journal:
        assert rebuild.edited_layers(journal) == LAYERS
        versions = journal.versions()
        assert [v.digest for v in versions] == run.versions
        for version, want in zip(versions, run.weights, strict=True):
            found = rebuild.weights_at(journal, run.store(), base, version)
            assert {layer: w.numpy().tobytes() for layer, w in found.items()} == {
                layer: w.numpy().tobytes() for layer, w in want.items()
            }
    digests = [rebuild.weights_digest(weights) for weights in run.weights]
    assert digests[3] == digests[4] and len(set(digests)) == 6
    assert digest_tensors({str(layer): weight for layer, weight in base.items()}) == before


@pytest.mark.parametrize(
    ("family", "dtype", "stored"), [("gpt2", "float32", "float32"), ("llama", "bfloat16", "bfloat16")]
)
def test_other_orientations_and_types_rebuild_too(family: str, dtype: str, stored: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, family, dtype=dtype, checkpoint_dtype=stored)
    with run.journal() as journal:
        checkpoint = rebuild.open_base(journal)
        base = {layer: checkpoint.map(layer) for layer in LAYERS}
        found = rebuild.weights_at(journal, run.store(), base, journal.head())
    assert all(torch.equal(found[layer], run.weights[-1][layer]) for layer in LAYERS)


def test_the_base_must_be_the_one_of_the_run(run: SmallRun, tmp_path: Path) -> None:
    with run.journal() as journal:
        moved = tmp_path / "moved"
        shutil.copytree(run.model, moved)
        assert rebuild.open_base(journal, str(moved)).directory == moved
        other = save_tiny(tmp_path / "other", "llama", layers=3, seed=1)
        with pytest.raises(UserError, match=r"has digest [0-9a-f]{12}, the run was begun on [0-9a-f]{12}; .*--model"):
            rebuild.open_base(journal, str(other))
        with pytest.raises(UserError, match=r"'./gone'.*--model says where"):
            rebuild.open_base(journal, "./gone")


@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_broken_delta_is_named_with_its_commit(run: SmallRun, tmp_path: Path, how: str) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    copy = SmallRun(tmp_path / "run", run.model)
    base = rebuild.base_maps(run.model, LAYERS)
    with copy.journal() as journal:
        path = copy.store().get("deltas", str(journal.versions()[2].delta))
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-7])
        found = rebuild.weights_at(journal, copy.store(), base, journal.versions()[1])
        assert torch.equal(found[1], run.weights[1][1])
        with pytest.raises(DamagedFileError, match="v2: "):
            rebuild.weights_at(journal, copy.store(), base, journal.head())


def test_a_delta_of_an_unknown_layer_is_refused(run: SmallRun) -> None:
    with (
        run.journal() as journal,
        pytest.raises(DamagedFileError, match=r"changes layer 1, the run's editor has \[0\]"),
    ):
        rebuild.weights_at(journal, run.store(), rebuild.base_maps(run.model, (0,)), journal.head())


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", "llama", layers=2)
    weights = directory / "model.safetensors"
    with pytest.raises(UserError, match=r"no tensor 'model.layers.7.mlp.down_proj.weight'"):
        rebuild.base_maps(directory, (7,))
    tensors = load_file(weights)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, weights)
    with pytest.raises(UserError, match="is stored as I8; allowed: F64, F32, F16, BF16"):
        rebuild.base_maps(directory, (1,))
    weights.write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="is not a safetensors file"):
        rebuild.base_maps(directory, (1,))
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        rebuild.base_maps(directory, (1,))
    (directory / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match=r"model type 't5'.*supported: gemma2"):
        rebuild.base_maps(directory, (1,))
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        rebuild.base_maps(directory, (1,))


def test_encoding_checks_the_shape(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    checkpoint = rebuild.BaseCheckpoint(save_tiny(tmp_path / "model", "gpt2", layers=2))
    assert checkpoint.place(1).shape == (48, 32) and checkpoint.map(1).shape == (32, 48)
    with pytest.raises(ValueError, match=r"weight of shape \(32, 48\), stored is \(48, 32\)"):
        checkpoint.encode(1, torch.zeros(48, 32))
