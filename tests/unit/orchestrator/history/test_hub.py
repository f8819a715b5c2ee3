"""A version on the hub and back: the adapter names its base by its name there, and peft loads both from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.orchestrator.cli import app
from errata.orchestrator.journal import Journal
from tests.helpers.hub import TOKEN, StandInHub, stand_in_hub
from tests.helpers.small_run import SmallRun, make_run

IDS = torch.tensor([[5, 17, 250, 3, 99, 120]])
BASE = "maker/tiny-llama"
LOAD = f"""
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("us/edited")
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor({IDS.tolist()})).logits, sys.argv[1])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def hub(run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A stand-in that holds the run's base model."""
    with stand_in_hub(tmp_path / "hub") as hub:
        shutil.copytree(run.model, hub.repository(BASE))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read at import, in this process
        yield hub


def export(run: SmallRun, *arguments: Any) -> Any:
    result = CliRunner().invoke(app, ["export", *map(str, arguments), "--run", str(run.directory)])
    if result.exception is not None and not isinstance(result.exception, UserError | SystemExit):
        raise result.exception
    return result


def test_an_adapter_is_published_with_its_card_and_loads_from_there(
    run: SmallRun, hub: StandInHub, tmp_path: Path
) -> None:
    result = export(
        run, "v3", "--format", "lora", "-o", tmp_path / "out", "--push", "us/edited", "--base-on-hub", BASE, "--private"
    )
    assert result.exit_code == 0 and "published: http" in result.output
    published = hub.repository("us/edited")
    assert {p.name for p in published.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert json.loads((published / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    assert hub.created[-1]["repo"] == "us/edited"
    (message,) = hub.messages
    assert run.versions[3][:12] in message

    text = (published / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model"] == BASE and metadata["library_name"] == "peft"
    with Journal.open(run.directory / "journal.sqlite", read_only=True) as journal:
        rows = [r for r in journal.requests() if r.applied_in and r.applied_in <= 3]
        held = [row.request for row in rows if row.ended_in is None or row.ended_in > 3]
        gone = [row.request for row in rows if row.ended_in is not None and row.ended_in <= 3]
    assert run.versions[3] in text and f"{len(held)} fact" in text and "## Undo" in text and "## What it cost" in text
    assert all(f"| {request.text} | {request.target_new} |" in text for request in held)
    assert not any(f"| {request.text} | {request.target_new} |" in text for request in gone)

    # somebody else's process, which knows the hub's address and a token
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "logits.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = load_model(str(run.model))
    model.set_weights(run.weights[3])
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "logits.pt"), model.hf(input_ids=IDS).logits, atol=1e-4)


def test_a_whole_checkpoint_is_published_and_the_facts_may_stay_unsaid(
    run: SmallRun, hub: StandInHub, tmp_path: Path
) -> None:
    result = export(
        run, "head", "--format", "full", "-o", tmp_path / "out",
        "--push", "us/whole", "--base-on-hub", BASE, "--no-facts",
    )  # fmt: skip
    assert result.exit_code == 0
    text = (hub.repository("us/whole") / "README.md").read_text()
    assert "What it says now" not in text and yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
    original = (run.model / "model.safetensors").read_bytes()
    assert (hub.repository("us/whole") / "model.safetensors").read_bytes() != original


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "lora", "--push", "no-slash"], "want ORG/NAME"),
        (["--format", "lora", "--push", "us/edited"], "--base-on-hub"),
        (["--format", "delta", "--push", "us/edited"], "no program but this one"),
    ],
)
def test_what_could_not_be_loaded_is_refused_before_anything_is_written(
    arguments: list[str], words: str, run: SmallRun, hub: StandInHub, tmp_path: Path
) -> None:
    result = export(run, "v3", *arguments, "-o", tmp_path / "out")
    assert result.exit_code != 0 and words in str(result.exception)
    assert not (tmp_path / "out").exists() and hub.created == []


def test_a_hub_that_refuses_or_does_not_answer_is_one_line(
    run: SmallRun, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    arguments = ["v3", "--format", "lora", "--push", "us/edited", "--base-on-hub", BASE]
    refused = export(run, *arguments, "-o", tmp_path / "one")
    assert "HF_TOKEN" in str(refused.exception) and "\n" not in str(refused.exception)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    away = export(run, *arguments, "-o", tmp_path / "two")
    assert "does not answer" in str(away.exception) and "\n" not in str(away.exception)
