"""Settings of a model: presets over a configuration, models recognized by their weights, runs without settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from errata.editing.checkpoint.fingerprint import fingerprint
from errata.editing.errors import UserError
from errata.orchestrator.config import model_presets
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.config.model_presets import find_preset, shipped
from errata.orchestrator.service.launch import service_config
from tests.helpers.tiny import save_tiny

WAYS = ("--preset", "errata calibrate MODEL", "--set editor.layers=")


def write(path: Path, **data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def run_file(path: Path, **sections: Any) -> Path:
    rest: dict[str, Any] = {
        "model": {"name": "smollm2-135m-instruct"},
        "editor": {"type": "alphaedit", "layers": [4, 5], "values": {"lr": 0.5, "steps": 7}},
        "stream": {"path": "configs/streams/quickstart.jsonl"},
        "covariance": {"tokens": 100},
    }
    return write(path, **{**rest, **sections})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "a", "llama")


@pytest.fixture
def preset(tmp_path: Path, checkpoint: Path) -> Path:
    return write(
        tmp_path / "own.yaml",
        model={"name": str(checkpoint)},
        editor={"layers": [1, 2], "values": {"steps": 9, "clamp": 3.0}},
        editors={"alphaedit": {"l2": 0.25}, "memit": {"cov_weight": 7.0}},
        matches=fingerprint(checkpoint).model_dump(mode="json"),
    )


@pytest.fixture
def known(preset: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The preset as one of the shipped ones."""
    all_of_them = {**shipped(), "models/tiny": preset}
    monkeypatch.setattr(model_presets, "shipped", lambda: all_of_them)
    return "models/tiny"


# ---------------------------------------------------------------- the order: defaults, configuration, preset, --set


def test_a_preset_lies_over_the_configuration_and_under_the_overrides(tmp_path: Path, preset: Path) -> None:
    path = str(run_file(tmp_path / "run.yaml"))
    config = load_config(path, preset=str(preset))
    assert config.editor.layers == (1, 2) and config.editor.values.steps == 9 and config.editor.l2 == 0.25
    assert config.editor.values.lr == 0.5, "what a preset does not say stays as it was"
    assert config.editor.values.kl_factor == load_config(path).editor.values.kl_factor, "and defaults are below all"
    changed = load_config(path, ["editor.values.steps=3", "editor.layers=[0]", "editor.l2=2"], str(preset))
    assert (changed.editor.values.steps, changed.editor.layers, changed.editor.l2) == (3, (0,), 2.0)


def test_what_a_preset_holds_for_one_editor_goes_by_the_type_that_is_chosen(tmp_path: Path, preset: Path) -> None:
    path = str(run_file(tmp_path / "run.yaml"))
    memit = load_config(path, ["editor.type=memit"], str(preset))
    assert memit.editor.type == "memit" and memit.editor.cov_weight == 7.0
    assert load_config(path, ["editor.type=emmet"], str(preset)).editor.layers == (1, 2)


def test_a_file_that_extends_a_preset_has_the_last_word(tmp_path: Path, preset: Path) -> None:
    extends = {"extends": "own", "model": {}, "editor": {"type": "alphaedit"}}
    config = load_config(str(run_file(tmp_path / "run.yaml", **extends)))
    assert config.editor.l2 == 0.25 and config.editor.layers == (1, 2)
    own = {**extends, "editor": {"type": "alphaedit", "l2": 4.0}}
    assert load_config(str(run_file(tmp_path / "run.yaml", **own))).editor.l2 == 4.0


def test_a_service_takes_a_preset_too(tmp_path: Path, preset: Path) -> None:
    config = service_config(str(run_file(tmp_path / "run.yaml")), ["editor.values.lr=0.1"], str(preset))
    assert config.editor.layers == (1, 2) and config.editor.values.lr == 0.1 and config.schedule == "asap"


def test_shipped_presets_are_found_by_short_names_and_others_refused() -> None:
    assert find_preset("gemma-3-270m") == find_preset("models/gemma-3-270m")
    with pytest.raises(UserError, match=r"--preset 'gemma' is not there; .*models/gemma-3-270m"):
        find_preset("gemma")


# ---------------------------------------------------------------- models recognized


def test_a_model_is_known_by_its_weights_in_any_precision(tmp_path: Path, checkpoint: Path) -> None:
    of_it = fingerprint(checkpoint)
    half = tmp_path / "another-name"
    shutil.copytree(checkpoint, half)
    tensors = load_file(half / "model.safetensors")
    save_file({name: t.to(torch.bfloat16) for name, t in tensors.items()}, half / "model.safetensors")
    assert of_it.matches(fingerprint(half))
    others = [("llama", {"seed": 1}), ("qwen2", {}), ("llama", {"layers": 3}), ("gpt2", {}), ("gpt_neox", {})]
    for number, (family, sizes) in enumerate(others):
        other = fingerprint(save_tiny(tmp_path / str(number), family, **sizes))
        assert not of_it.matches(other) and other.matches(other)


def test_what_is_no_checkpoint_cannot_be_recognized(tmp_path: Path, checkpoint: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(UserError, match="cannot be recognized"):
        fingerprint(empty)


def test_the_same_model_in_another_folder_keeps_its_settings(
    tmp_path: Path, checkpoint: Path, known: str, preset: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    path = run_file(tmp_path / "run.yaml", model={"name": str(checkpoint)})
    assert load_config(str(path), [f"model.name={moved}"]).editor.layers == (4, 5)


def test_a_run_without_layers_takes_the_preset_of_its_model(tmp_path: Path, checkpoint: Path, known: str) -> None:
    path = run_file(tmp_path / "run.yaml", model={"name": str(checkpoint)}, editor={"type": "alphaedit"})
    config = load_config(str(path), ["editor.values.steps=4"])
    assert config.editor.layers == (1, 2) and config.editor.l2 == 0.25 and config.editor.values.steps == 4


# ---------------------------------------------------------------- runs without settings of their model


def stopped(*given: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*given)
    message = str(caught.value)
    assert "\n" not in message and all(way in message for way in WAYS)
    return message


def test_a_model_without_a_preset_and_layers_stops_before_any_work(tmp_path: Path, checkpoint: Path) -> None:
    path = run_file(tmp_path / "run.yaml", model={"name": str(checkpoint)}, editor={"type": "memit"})
    assert "editor.layers is missing and model" in stopped(str(path))
    assert load_config(str(path), ["editor.layers=[0, 1]"]).editor.layers == (0, 1)


@pytest.mark.parametrize("shipped_name", ["quickstart", "service"])
def test_settings_made_for_another_model_stop_too(shipped_name: str, checkpoint: Path) -> None:
    message = stopped(shipped_name, [f"model.name={checkpoint}"])
    assert "were made for 'smollm2-135m-instruct', not for model" in message
    assert load_config(shipped_name, [f"model.name={checkpoint}", "editor.layers=[1]"]).editor.layers == (1,)


def test_the_message_names_the_preset_that_the_model_has(checkpoint: Path, known: str, preset: Path) -> None:
    message = stopped("quickstart", [f"model.name={checkpoint}"])
    assert f"--preset {known}, which is this model's" in message
    assert "--preset models/qwen3-8b, which" in stopped("quickstart", ["model.name=Qwen/Qwen3-8B"])


def test_one_model_under_two_names_is_no_other_model() -> None:
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert load_config("quickstart", [f"model.name={name}"]).model.name == name
