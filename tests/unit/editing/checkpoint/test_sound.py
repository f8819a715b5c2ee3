"""Checkpoints that cannot be edited are refused by name, before a run begins, at load, and by the doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.editing.checkpoint.load import load_model, load_text
from errata.editing.checkpoint.sound import check_checkpoint, check_numbers, told_of_tokens
from errata.editing.checkpoint.stage import checkpoint_digest
from errata.editing.errors import UserError
from errata.editing.model.decoder import FAMILIES
from tests.helpers.tiny import save_tiny, tiny_tokenizer


def weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a checkpoint's tensors."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", layers=2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_whole_checkpoint_passes_and_a_missing_tensor_is_named(family: str, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", family, layers=2)
    assert check_checkpoint(directory, "m") == 400
    check_numbers(directory, "m")
    name = FAMILIES[family].parameter_name(1)
    weights(directory, lambda tensors: tensors.pop(name))
    for refuse in (lambda: check_checkpoint(directory, "m"), lambda: load_model(str(directory))):
        with pytest.raises(UserError, match=f"the checkpoint lacks '{name}'"):
            refuse()


def test_a_head_of_its_own_is_missed_and_a_tied_one_is_not(tmp_path: Path, model: Path) -> None:
    weights(model, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lacks 'lm_head\.weight'"):
        check_checkpoint(model, "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert check_checkpoint(model, "m") == 400
    assert load_model(str(model)).num_layers == 2


def test_a_tensor_of_another_shape_is_refused(model: Path) -> None:
    weights(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    for refuse in (lambda: check_checkpoint(model, "m"), lambda: load_model(str(model))):
        with pytest.raises(UserError, match=r"model\.norm\.weight|shape|size"):
            refuse()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_found_where_they_are(
    value: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "cache"))
    check_numbers(model, "m", digest=checkpoint_digest(model))
    name = "model.layers.1.mlp.down_proj.weight"
    weights(model, lambda tensors: tensors[name].__setitem__((0, 0), value))
    with pytest.raises(UserError, match=f"NaN or infinite numbers in '{name}'"):
        check_numbers(model, "m", digest=checkpoint_digest(model))
    with pytest.raises(UserError, match=f"its pass gives no numbers: NaN or infinite numbers in {name}"):
        load_model(str(model))


def test_float16_that_overflows_is_no_matter_of_the_library(model: Path) -> None:
    weights(model, lambda tensors: [t.mul_(3000.0) for name, t in tensors.items() if "mlp" in name])
    with pytest.raises(UserError, match=r"its pass gives no numbers: it overflows in torch\.float16"):
        load_model(str(model), dtype="float16")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs_are_told_from_the_files(file: str, model: Path) -> None:
    (model / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 538090408\n")
    for refuse in (lambda: check_checkpoint(model, "m"), lambda: load_model(str(model))):
        with pytest.raises(UserError, match=f"{file} is a Git LFS pointer .* git lfs pull"):
            refuse()


@pytest.mark.parametrize("method", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq"}])
def test_quantized_weights_are_refused(method: dict[str, object], model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    for refuse in (lambda: check_checkpoint(model, "m"), lambda: load_model(str(model))):
        with pytest.raises(UserError, match=f"quantized \\({method['quant_method']}\\)"):
            refuse()


def test_a_pickle_is_refused_and_no_code_of_it_runs(model: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    torch.save({"weight": Bomb()}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    for refuse in (lambda: check_checkpoint(model, "m"), lambda: load_model(str(model))):
        with pytest.raises(UserError, match=r"only there as pytorch_model\.bin, which is a pickle.*save_pretrained"):
            refuse()
    assert not (tmp_path / "exploded").exists()
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        check_checkpoint(model, "m")


def test_a_file_that_is_no_safetensors_is_one_line(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)
    for refuse in (lambda: check_checkpoint(model, "m"), lambda: load_model(str(model))):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            refuse()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file"):
        check_numbers(model, "m")


def test_tokens_beyond_the_embeddings_are_told_and_the_model_loads(model: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    said: list[str] = []
    told_of_tokens(load_text(str(model))[0], check_checkpoint(model, "m"), said.append)
    assert len(said) == 1 and "1 token that the model has no embedding for ('[PAD]')" in said[0]
    loaded = load_model(str(model))
    assert loaded.text.pad_id < 400
    assert loaded.rows([[1, 2, 3], [4]]).ids.tolist()[1][0] == 4
