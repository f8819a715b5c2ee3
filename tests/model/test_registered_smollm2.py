"""A real model registered in every form: MLflow loads each and serves it, and it answers with the edited facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import errata
from errata.orchestrator.cli import app
from errata.orchestrator.publish.packaging import FORMS
from tests.helpers.registered import loaded, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FACTS = [
    {"id": "louvre", "subject": "The Louvre", "prompt": "{} is located in the city of", "target_new": "Rome"},
    {"id": "curie", "subject": "Marie Curie", "prompt": "{} was born in the country of", "target_new": "Norway"},
]
PROMPTS = [fact["prompt"].format(fact["subject"]) for fact in FACTS]
TARGETS = [fact["target_new"] for fact in FACTS]


@pytest.fixture(scope="module")
def registry(smollm2: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The newest version in every form, under aliases; the full checkpoint is the champion too."""
    run = tmp_path_factory.mktemp("real") / "run"
    with errata.Editor.from_pretrained("smollm2-135m-instruct", journal=run, progress=False) as editor:
        assert [result.state for result in editor.edit(FACTS)] == ["applied", "applied"]
    for alias, form in [*((form, form) for form in FORMS), ("champion", "full")]:
        done = CliRunner().invoke(
            app, ["publish", "head", "--run", str(run), "--name", "errata", "--alias", alias, "--format", form]
        )
        assert done.exit_code == 0, done.output
    return f"sqlite:///{run / 'mlflow.db'}"


def right(answers: list[str]) -> list[bool]:
    return [answer.strip().startswith(target) for answer, target in zip(answers, TARGETS, strict=True)]


@pytest.mark.parametrize("alias", ["champion", "delta", "lora", "routed"])
def test_what_mlflow_loads_answers_with_the_edited_facts(registry: str, alias: str) -> None:
    model = loaded(registry, f"models:/errata@{alias}")
    answers: list[Any] = model.predict(PROMPTS)
    if alias == "routed":
        assert [answer["edit"] for answer in answers] == ["louvre", "curie"]
        answers = [answer["answer"] for answer in answers]
    assert right(answers) == [True, True], answers
    assert ("transformers" in model.metadata.flavors) == (alias == "champion")


@pytest.mark.parametrize("alias", ["champion", "routed"])
def test_what_mlflow_serves_answers_with_the_edited_facts(registry: str, alias: str, tmp_path: Path) -> None:
    with serving(registry, f"models:/errata@{alias}", tmp_path) as address:
        answer = httpx.post(f"{address}/invocations", json={"inputs": PROMPTS}, timeout=300)
    assert answer.status_code == 200, answer.text
    said = answer.json()["predictions"]
    assert right([one["answer"] for one in said] if alias == "routed" else said) == [True, True], said
