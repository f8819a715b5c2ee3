"""``errata geometry`` on a finished run, against the versions' weights put into the model by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.orchestrator.measuring.geometry import geometry
from tests.helpers.command import in_process
from tests.helpers.small_run import SmallRun, make_run
from tests.helpers.tiny import tiny_model

TEXT = "\n".join(
    f"The capital of {name} is the city of {name} and the people of {name} speak."
    for name in ("France", "Rome", "Angola", "Canada", "Italy", "Paris")
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def test_the_command_measures_the_versions_it_is_given(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errata = in_process(monkeypatch, capsys)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ("geometry", "v2", "head", "--run", run.directory, "--text", text, "--layers", "0,1")
    code, out, _ = errata(*arguments, "--json", "--output", tmp_path / "out.json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((tmp_path / "out.json").read_text())
    assert [version["sequence"] for version in found["versions"]] == [2, 6] and found["correlations"] == []
    model = load_model(str(run.model))
    documents = [model.text.encode_prompt(line) for line in TEXT.split("\n")]

    def states(weights: dict[int, torch.Tensor]) -> np.ndarray:
        model.set_weights(weights)
        rows = []
        for ids in documents:
            with model.map_outputs([1]) as caught, torch.no_grad():
                model.decoder.model(torch.tensor([ids]))
            rows.append(caught[1][0].double().numpy().mean(axis=0))
        return np.array(rows)

    before, after = states(run.weights[0]), states(run.weights[6])
    layer = next(item for item in found["versions"][1]["layers"] if item["layer"] == 1)
    assert layer["norm"][0] == pytest.approx(np.linalg.norm(after - before, axis=1).mean(), rel=1e-4)
    sigma = np.linalg.svd((before - before.mean(axis=0)).T, compute_uv=False)
    assert layer["largest"] == pytest.approx(sigma[0], rel=1e-4)
    code, out, _ = errata(*arguments)
    assert code == 0 and out.startswith("version") and len(out.strip().split("\n")) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--layers", "a"), "L,L"), (("--layers", "9"), "9"), (("--text", "none.txt"), "cannot be read")],
)
def test_what_does_not_fit_is_said(
    run: SmallRun,
    more: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = in_process(monkeypatch, capsys)("geometry", "head", "--run", run.directory, *more)
    assert code == 2 and said in err and "Traceback" not in err


def test_documents_that_are_all_the_same_are_refused_by_name() -> None:
    model = tiny_model(layers=3)
    documents = [model.text.encode_prompt("Rome lies in Italy")] * 4
    with pytest.raises(UserError, match="the 4 documents give no direction at layer 1"):
        list(geometry(model, documents, (1,), [(0, 0, lambda: {1: model.weight(1).clone()})]))
