"""Models as people have them become models like any other: the same logits, or a refusal that leaves nothing behind."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from errata.editing.checkpoint.importing import fetch_from_hub, import_model
from errata.editing.checkpoint.kept import imported_dir, imported_root
from errata.editing.checkpoint.load import load_model, resolve_model
from errata.editing.errors import UserError
from errata.orchestrator.cli.main import app
from tests.helpers.gguf_file import write_gguf
from tests.helpers.tiny import save_tiny, tiny_hf

PROMPT = "The capital of France is"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "home"


def logits(name: str) -> torch.Tensor:
    model = load_model(name)
    rows = model.rows([model.text.encode_prompt(PROMPT)])
    with torch.no_grad():
        return model.hf(input_ids=rows.ids).logits[0]


def same(name: str, original: Path) -> None:
    torch.testing.assert_close(logits(name), logits(str(original)), rtol=0, atol=0)


def as_bin(source: Path, target: Path, *, files: int = 1) -> Path:
    """A checkpoint of before safetensors: pickled tensors, in one file or in several with an index."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    if files == 1:
        torch.save(tensors, target / "pytorch_model.bin")
        return target
    placed = {}
    for number in range(files):
        name = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = dict(list(tensors.items())[number::files])
        torch.save(part, target / name)
        placed |= dict.fromkeys(part, name)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return target


def sharded(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    placed = {}
    for number in range(3):
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = dict(list(tensors.items())[number::3])
        save_file(part, target / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return target


def multimodal(source: Path, target: Path, prefix: str) -> Path:
    """The text model as a part of a Gemma-3 that sees, under the names of one release of the library."""
    shutil.copytree(source, target)
    text = json.loads((source / "config.json").read_text())
    whole = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1},
        "mm_tokens_per_image": 4,
    }
    (target / "config.json").write_text(json.dumps(whole))
    tensors = load_file(source / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    vision = "model.vision_tower" if prefix.startswith("model.") else "vision_tower"
    renamed[f"{vision}.vision_model.embeddings.patch_embedding.weight"] = torch.ones(4, 3, 2, 2)
    renamed["multi_modal_projector.mm_input_projection_weight"] = torch.ones(4, 4)
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "llama", "llama")


@pytest.mark.parametrize(
    "make",
    [
        lambda source, target: as_bin(source, target),
        lambda source, target: as_bin(source, target, files=2),
        sharded,
        lambda source, target: shutil.copytree(source, target),
    ],
    ids=["bin", "bins", "sharded", "plain"],
)
def test_a_checkpoint_in_any_files_gives_the_same_logits(
    make: Callable[[Path, Path], Path], llama: Path, tmp_path: Path
) -> None:
    made = make(llama, tmp_path / "given")
    directory = import_model(made, "mine")
    assert directory == resolve_model("mine") == imported_dir("mine")
    assert not list(directory.glob("*.bin")) and not list(imported_root().glob(".fetch-*"))
    same("mine", llama)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_model_is_a_model(prefix: str, tmp_path: Path) -> None:
    text = save_tiny(tmp_path / "text", "gemma3_text")
    directory = import_model(multimodal(text, tmp_path / "whole", prefix), "gemma")
    assert json.loads((directory / "config.json").read_text())["model_type"] == "gemma3_text"
    assert set(load_file(directory / "model.safetensors")) == set(load_file(text / "model.safetensors"))
    same("gemma", text)


def test_a_gguf_file_is_dequantized_once(llama: Path, tmp_path: Path) -> None:
    directory = import_model(write_gguf(llama, tmp_path / "tiny.gguf"), "from-gguf")
    kept, original = load_file(directory / "model.safetensors"), load_file(llama / "model.safetensors")
    for name, value in original.items():
        assert kept[name].dtype == torch.float32
        torch.testing.assert_close(kept[name], value, rtol=0, atol=0)
    torch.testing.assert_close(logits("from-gguf"), logits(str(llama)), rtol=1e-5, atol=1e-5)


def test_a_head_that_is_the_embedding_is_not_written_twice(tmp_path: Path) -> None:
    model = tiny_hf("gemma3_text")
    source = save_tiny(tmp_path / "tied", "gemma3_text")
    given = as_bin(source, tmp_path / "given")
    tensors = dict(torch.load(given / "pytorch_model.bin"))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, given / "pytorch_model.bin")
    directory = import_model(given, "tied")
    assert ("lm_head.weight" in load_file(directory / "model.safetensors")) == (not model.config.tie_word_embeddings)
    same("tied", source)


class Attack:
    """Unpickled without care, it writes a file."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return Path.touch, (self.where,)


def test_code_in_a_pickled_file_is_not_run(llama: Path, tmp_path: Path) -> None:
    given, touched = as_bin(llama, tmp_path / "given"), tmp_path / "touched"
    (given / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack(touched)}))
    with pytest.raises(UserError, match="needs code to be run is refused"):
        import_model(given, "evil")
    torch.save({"model.norm.weight": torch.ones(3), "attack": Attack(touched)}, given / "pytorch_model.bin")
    with pytest.raises(UserError, match="needs code to be run is refused"):
        import_model(given, "evil")
    assert not touched.exists() and imported_dir("evil") is None


def _without_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _not_a_mapping(path: Path) -> None:
    (path / "config.json").write_text("[1]")


def _another_type(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _index_of_nothing(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))


def _cut_short(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_without_weights, "neither"),
        (_not_a_mapping, "cannot be read"),
        (_another_type, "'mamba'"),
        (_no_config, "is no model"),
        (_index_of_nothing, "lacks gone.safetensors"),
        (_cut_short, "cannot be read"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line_and_leaves_nothing(
    spoil: Callable[[Path], None], said: str, llama: Path
) -> None:
    spoil(llama)
    with pytest.raises(UserError) as caught:
        import_model(llama, "broken")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in imported_root().iterdir()] == [".broken.lock"]


def test_a_file_that_is_no_gguf_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03nothing")
    with pytest.raises(UserError, match="cannot be converted"):
        import_model(tmp_path / "bad.gguf", "bad")
    with pytest.raises(UserError, match="is not there"):
        import_model(tmp_path / "none", "bad")


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "smollm2-135m-instruct"])
def test_names_that_cannot_be_are_refused(name: str, llama: Path) -> None:
    with pytest.raises(UserError, match="--name"):
        import_model(llama, name)


def test_a_name_is_given_once(llama: Path) -> None:
    directory = import_model(llama, "mine")
    with pytest.raises(UserError, match="'mine' is taken by"):
        import_model(llama, "mine")
    (directory / "model.safetensors").write_bytes(b"damaged")
    assert imported_dir("mine") is None, "what is no longer whole is not used"


def test_a_model_of_the_hub_is_found_by_its_name_there(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(repo: str, *, token: str | None, allow_patterns: list[str], local_dir: Path) -> str:
        asked.append((repo, token))
        shutil.copytree(llama, local_dir)
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    result = CliRunner().invoke(app, ["models", "fetch", "Org/Tiny-Llama", "--token", "secret"])
    assert result.exit_code == 0, result.output
    assert asked == [("Org/Tiny-Llama", "secret")]
    assert resolve_model("org/tiny-llama") == resolve_model("tiny-llama") == Path(result.stdout.strip())
    assert fetch_from_hub("Org/Tiny-Llama", "tiny-llama") and len(asked) == 1, "it is fetched once"
    listed = CliRunner().invoke(app, ["models", "list"]).stdout.splitlines()
    assert any(line.startswith("tiny-llama\t") for line in listed)
    assert any(line.startswith("smollm2-135m-instruct\tnot fetched\tmodels/smollm2-135m") for line in listed)


def test_a_hub_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> str:
        raise OSError("401 Client Error.\nAccess to this model is restricted")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(UserError, match=r"OSError: 401 Client Error\.\); .*--token or HF_TOKEN") as caught:
        fetch_from_hub("Org/Gated", "gated")
    assert "\n" not in str(caught.value) and imported_dir("gated") is None


def test_the_command_says_where_the_model_is(llama: Path) -> None:
    result = CliRunner().invoke(app, ["models", "import", str(llama), "--name", "mine"])
    assert result.exit_code == 0 and Path(result.stdout.strip()) == resolve_model("mine")
