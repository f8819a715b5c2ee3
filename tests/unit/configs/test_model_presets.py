"""Model presets: every shipped one is a valid part of a run, and ``extends`` lays a configuration over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.editors import REGISTRY
from errata.editing.errors import UserError
from errata.orchestrator.config import model_presets
from errata.orchestrator.config.loading import load_config, overlaid, read_composed
from errata.orchestrator.config.model_presets import BASES, OWN_KEYS
from errata.orchestrator.config.presets import configs_root

PRESETS = sorted((configs_root() / "models").glob("*.yaml"))
LAYERS = {  # name: (first, last edited layer, layers of the model)
    "gemma-2-2b": (7, 7, 26),
    "gemma-2-9b": (12, 12, 42),
    "gemma-3-1b": (7, 7, 26),
    "gemma-3-270m": (0, 17, 18),
    "gemma-3-4b": (9, 9, 34),
    "gpt-j-6b": (3, 8, 28),
    "gpt2-xl": (13, 17, 48),
    "llama-2-13b": (4, 8, 40),
    "llama-2-7b": (4, 8, 32),
    "llama-3-8b-instruct": (4, 8, 32),
    "llama-3.1-8b-instruct": (3, 8, 32),
    "llama-3.2-1b": (2, 6, 16),
    "llama-3.2-3b": (4, 8, 28),
    "mistral-7b": (4, 8, 32),
    "olmo-2-7b-instruct": (9, 14, 32),
    "phi-3.5-mini": (4, 8, 32),
    "phi-4": (5, 9, 40),
    "phi-4-mini": (4, 8, 32),
    "qwen2.5-0.5b": (4, 8, 24),
    "qwen2.5-1.5b": (4, 8, 28),
    "qwen2.5-14b": (7, 11, 48),
    "qwen2.5-3b": (5, 9, 36),
    "qwen2.5-7b": (4, 8, 28),
    "qwen2.5-coder-0.5b": (0, 23, 24),
    "qwen3-0.6b": (9, 14, 28),
    "qwen3-1.7b": (9, 14, 28),
    "qwen3-14b": (13, 18, 40),
    "qwen3-4b": (12, 17, 36),
    "qwen3-8b": (12, 17, 36),
    "smollm2-135m": (0, 29, 30),
}


def write(path: Path, **data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def run_over(path: Path, preset: str | list[str], **sections: Any) -> Path:
    """A configuration of the rest of a run that extends a preset."""
    rest: dict[str, Any] = {
        "extends": preset,
        "editor": {"type": "memit"},
        "stream": {"path": "configs/streams/quickstart.jsonl"},
        "covariance": {"tokens": 100},
    }
    return write(path, **{**rest, **sections})


# ---------------------------------------------------------------- the shipped presets


def test_the_papers_models_are_shipped():
    assert {path.stem for path in PRESETS} == set(LAYERS)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
@pytest.mark.parametrize("editor", ["alphaedit", "emmet", "memit", "mose", "pmet", "prune", "rect"])
def test_a_run_extends_every_preset_with_every_editor_of_several_layers(path, editor, tmp_path):
    config = load_config(str(run_over(tmp_path / "run.yaml", f"models/{path.stem}", editor={"type": editor})))
    preset = yaml.safe_load(path.read_text())
    assert config.model.name == preset["model"]["name"] and config.model.dtype == preset["model"]["dtype"]
    assert config.editor.type == editor and list(config.editor.layers) == preset["editor"]["layers"]
    for key, value in preset["editor"]["values"].items():
        assert getattr(config.editor.values, key) == value


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_a_preset_names_its_sources_and_only_what_belongs_to_a_model(path):
    text = path.read_text()
    assert text.startswith("# ") and "\n# layers" in text and "values:" in text
    preset = yaml.safe_load(text)
    assert set(preset) - set(OWN_KEYS) == {"model", "editor"} and set(preset["editor"]) == {"layers", "values"}
    assert set(preset["editor"]["values"]) - {"units"} == {"lr", "steps", "clamp", "weight_decay", "kl_factor"}
    first, last, depth = LAYERS[path.stem]
    layers = preset["editor"]["layers"]
    assert layers == list(range(layers[0], layers[-1] + 1)) and layers[0] >= 0 and layers[-1] < depth
    if "matches" not in preset:  # the others are measured by the project itself
        assert (layers[0], layers[-1]) == (first, last)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_a_preset_says_where_its_settings_come_from(path):
    text, preset = path.read_text(), yaml.safe_load(path.read_text())
    assert preset["basis"] in BASES
    # what was measured has its figures; what was carried over names whose settings they are, and how to check them
    assert "measured" not in preset or preset["basis"] == "measured"
    if "measured" in preset:
        assert preset["measured"].keys() >= {
            "editor",
            "edits",
            "efficacy",
            "paraphrase",
            "locality",
            "seconds_per_edit",
        }
    if preset["basis"] == "carried_over":
        assert "errata calibrate" in text or "errata locate" in text


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_the_command_line_takes_every_preset(path, tmp_path, monkeypatch, capsys):
    """`errata run CONFIG --preset NAME --dry-run` resolves, without the model."""
    from errata.orchestrator.cli import main

    monkeypatch.setattr("sys.argv", ["errata", "run", "quickstart", "--preset", f"models/{path.stem}", "--dry-run"])
    monkeypatch.chdir(tmp_path)
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    printed = yaml.safe_load(capsys.readouterr().out)
    preset = yaml.safe_load(path.read_text())
    assert printed["model"]["name"] == preset["model"]["name"]
    assert printed["editor"]["layers"] == preset["editor"]["layers"]
    assert not set(OWN_KEYS) & set(printed)


def test_a_preset_that_was_never_measured_is_said_to_be(caplog):
    preset = model_presets.settled(
        {"editor": {"type": "memit"}},
        {"editor": {"type": "memit"}, "model": {"name": "Qwen/Qwen3-0.6B"}},
        [],
        read_composed,
        source=Path("run.yaml"),
    )
    assert preset == "models/qwen3-0.6b" and "never measured" in caplog.text


def test_editors_without_target_values_drop_the_section(tmp_path):
    wanting = run_over(tmp_path / "a.yaml", "models/gpt2-xl", editor={"type": "ft_l", "layers": [21]})
    with pytest.raises(UserError, match=r"unknown key 'editor\.values'"):
        load_config(str(wanting))
    dropped = run_over(tmp_path / "b.yaml", "models/gpt2-xl", editor={"type": "ft_l", "layers": [21], "values": None})
    config = load_config(str(dropped))
    assert type(config.editor) is REGISTRY["ft_l"][0] and config.editor.layers == (21,)


# ---------------------------------------------------------------- composition


def test_later_keys_win_section_by_section(tmp_path):
    editor = {"type": "alphaedit", "tau": 0.005, "values": {"lr": 0.1}}
    config = load_config(
        str(run_over(tmp_path / "run.yaml", "models/gpt2-xl", editor=editor, model={"dtype": "bfloat16"})),
        ["editor.values.steps=7"],
    )
    assert (config.model.name, config.model.dtype) == ("openai-community/gpt2-xl", "bfloat16")
    assert (config.editor.values.lr, config.editor.values.steps, config.editor.values.clamp) == (0.1, 7, 0.75)
    assert config.editor.tau == 0.005 and config.editor.layers == (13, 14, 15, 16, 17)


def test_the_resolved_configuration_stands_alone(tmp_path):
    config = load_config(str(run_over(tmp_path / "run.yaml", "models/gpt2-xl")))
    assert "extends" not in config.dump()
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "resolved.yaml")) == config


def test_several_are_laid_over_each_other_in_order_and_may_extend_others(tmp_path):
    write(tmp_path / "parts" / "deep.yaml", batching={"size": 2}, refresh={"every": 5, "lag": 1})
    write(tmp_path / "parts" / "slow.yaml", extends="deep", refresh={"lag": 3})  # beside the file that names it
    config = load_config(str(run_over(tmp_path / "run.yaml", ["models/gpt2-xl", "parts/slow"])))
    assert (config.batching.size, config.refresh.every, config.refresh.lag) == (2, 5, 3)
    assert config.model.name == "openai-community/gpt2-xl"


def test_overlaid_leaves_its_arguments_alone():
    below: dict[str, Any] = {"a": {"x": 1, "y": {"z": 1}}, "b": [1, 2], "c": {"d": 1}}
    above: dict[str, Any] = {"a": {"y": {"w": 2}}, "b": [3], "c": None, "e": None}
    assert overlaid(below, above) == {"a": {"x": 1, "y": {"z": 1, "w": 2}}, "b": [3], "e": None}
    assert below == {"a": {"x": 1, "y": {"z": 1}}, "b": [1, 2], "c": {"d": 1}}


def test_an_unknown_preset_names_the_file_the_preset_and_the_shipped_ones(tmp_path):
    path = run_over(tmp_path / "run.yaml", "models/gpt5")
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: extends: ") and "'models/gpt5'" in message and "models/gpt2-xl" in message
    assert "\n" not in message


@pytest.mark.parametrize("extends", [3, {"model": "x"}, ["models/gpt2-xl", 3]])
def test_extends_is_a_name_or_names(extends, tmp_path):
    with pytest.raises(UserError, match=r"extends = .*: want a name or a list of names"):
        read_composed(write(tmp_path / "run.yaml", extends=extends))


def test_circles_are_refused(tmp_path):
    write(tmp_path / "one.yaml", extends="two")
    write(tmp_path / "two.yaml", extends="one")
    for name in ("one", "two"):
        with pytest.raises(UserError, match="a configuration cannot extend itself"):
            read_composed(tmp_path / f"{name}.yaml")
    with pytest.raises(UserError, match="cannot extend itself"):
        read_composed(write(tmp_path / "self.yaml", extends="self.yaml"))


def test_a_preset_alone_is_no_run():
    with pytest.raises(UserError, match=r"editor\.type"):
        load_config("models/gpt2-xl")
