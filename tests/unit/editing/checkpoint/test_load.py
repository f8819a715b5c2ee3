"""Loading models from disk, and the one clear line where it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.editing.checkpoint import fetch
from errata.editing.checkpoint.load import DTYPES, checkpoint_digest, load_model, resolve_model
from errata.editing.errors import UserError
from tests.helpers.tiny import save_tiny, tiny_model
from tests.unit.helpers import plain


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model has been fetched."""
    monkeypatch.setattr(fetch, "model_dir", lambda name: None)


def test_a_directory_loads_as_the_model_that_was_saved(checkpoint: Path) -> None:
    loaded, want = load_model(str(checkpoint)), tiny_model("llama", layers=2)
    assert loaded.family == "llama" and loaded.num_layers == 2 and loaded.name == str(checkpoint)
    assert loaded.digest == checkpoint_digest(checkpoint)
    ids = loaded.text.encode_prompt("The capital of France is")
    assert ids == want.text.encode_prompt("The capital of France is")
    with torch.no_grad():
        torch.testing.assert_close(plain.logits(loaded, ids), plain.logits(want, ids))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_is_that_of_the_pass_not_of_the_masters(checkpoint: Path, dtype: str) -> None:
    loaded = load_model(str(checkpoint), dtype=dtype)
    assert loaded.dtype == DTYPES[dtype] == loaded.parameter(0).dtype
    assert loaded.weight(0).dtype == torch.float32


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_load(tmp_path: Path, family: str) -> None:
    assert load_model(str(save_tiny(tmp_path / "m", family, layers=2))).family == family


def test_a_known_digest_is_taken_as_given(checkpoint: Path) -> None:
    assert load_model(str(checkpoint), digest="abc").digest == "abc"


def test_the_digest_follows_weights_and_configuration(tmp_path: Path) -> None:
    first, same, other = (save_tiny(tmp_path / str(i), layers=1, seed=i // 2) for i in range(3))
    assert checkpoint_digest(first) == checkpoint_digest(same) != checkpoint_digest(other)
    (same / "README.md").write_text("no part of the model")
    assert checkpoint_digest(first) == checkpoint_digest(same)
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert checkpoint_digest(first) != checkpoint_digest(same)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("name", ["no-such-model", "./nowhere/model", "smollm2-135m-instruct"])
def test_an_absent_model_names_the_three_ways(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(name)
    text = str(caught.value)
    assert "\n" not in text and repr(name) in text
    assert "directory" in text and "Hugging Face hub" in text and "errata models fetch" in text
    assert "smollm2-135m-instruct" in text


@pytest.mark.usefixtures("empty_cache")
def test_a_hub_name_without_network_names_the_three_ways() -> None:
    with pytest.raises(UserError, match=r"'someone/absent' is not there.*errata models fetch.*\(hub: "):
        load_model("someone/absent")


def test_a_fetched_name_leads_to_its_directory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "model_dir", lambda name: checkpoint if name == "smollm2-135m-instruct" else None)
    assert resolve_model("smollm2-135m-instruct") == checkpoint


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json; it must hold a checkpoint"):
        load_model(str(tmp_path))


def test_an_unknown_dtype_is_refused_with_the_list(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"model\.dtype 'int8' is not known; allowed: float32, float16, bfloat16"):
        load_model(str(checkpoint), dtype="int8")


def test_an_unknown_device_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"model\.device 'abacus' "):
        load_model(str(checkpoint), device="abacus")


@pytest.mark.parametrize("model_type", ["bert", "a-type-nobody-knows"])
def test_an_unsupported_type_is_refused_with_the_list(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path))
    assert f"model type {model_type!r}" in str(caught.value)
    assert all(family in str(caught.value) for family in plain.FAMILIES)


@pytest.mark.parametrize("text", ["{not json", "[]", "{}"])
def test_a_broken_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["model.safetensors", "tokenizer.json"])
def test_a_checkpoint_with_a_part_missing_is_refused(tmp_path: Path, left_out: str) -> None:
    directory = save_tiny(tmp_path / "m", layers=1)
    for path in directory.glob("tokenizer*" if left_out.startswith("tokenizer") else left_out):
        path.unlink()
    with pytest.raises(UserError) as caught:
        load_model(str(directory))
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)
