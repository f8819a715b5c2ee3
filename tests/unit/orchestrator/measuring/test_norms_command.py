"""``errata norms`` on a finished run, against its weights and its target values in float64 NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from errata.editing.checkpoint.load import load_model
from errata.orchestrator.history.receipts import load_receipt
from errata.orchestrator.measuring.norms import norms_lines, report_of, request_norms
from tests.helpers.command import in_process
from tests.helpers.small_run import LAYERS, REQUESTS, SmallRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def test_norms_of_matrices_their_control_and_of_target_values(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errata = in_process(monkeypatch, capsys)
    arguments = ("norms", "v0", "v1", "v3", "head", "--run", run.directory)
    code, out, _ = errata(*arguments, "--json", "--output", tmp_path / "out.json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((tmp_path / "out.json").read_text())
    assert [(row["sequence"], row["layer"]) for row in found["matrices"]] == [
        (sequence, layer) for sequence in (0, 1, 3, 6) for layer in LAYERS
    ]
    for row in found["matrices"]:
        W = run.weights[row["sequence"]][row["layer"]].double().numpy()
        W_0 = run.weights[0][row["layer"]].double().numpy()
        assert row["frobenius"] == pytest.approx(np.sqrt((W**2).sum()), rel=1e-12)
        assert row["condition"] == pytest.approx(np.linalg.norm(W, 2) * np.linalg.norm(np.linalg.pinv(W), 2), rel=1e-9)
        # turned at random nothing grows, however often
        assert row["turned_frobenius"] == pytest.approx(np.linalg.norm(W_0), rel=1e-10)
        assert row["turned_condition"] == pytest.approx(np.linalg.cond(W_0), rel=1e-8)
    first = next(row for row in found["matrices"] if row["sequence"] == 1)
    moved = (run.weights[1][0] - run.weights[0][0]).double().numpy()
    assert np.linalg.matrix_rank(moved, tol=1e-4 * np.linalg.norm(moved)) == 2 and first["right"]["smallest"] > 0

    by_id = {row["request_id"]: row for row in found["requests"]}
    assert list(by_id) == ["lyon", "rome", "angola", "paris", "munro"]
    # the first batch's values were found on the unedited model: h is its state there, h + delta what was written
    model = load_model(str(run.model))
    with run.journal() as journal:
        targets = load_receipt(run.store(), journal.version(1)).targets
    assert targets is not None
    for name, target in zip(("lyon", "rome"), targets.double().numpy(), strict=True):
        tokens, subject = model.text.encode_with_subject("", REQUESTS[name].prompt, REQUESTS[name].subject)
        with torch.no_grad():
            states = model.hf(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        h = states[LAYERS[-1] + 1][0, subject].double().numpy()
        assert by_id[name]["state"] == pytest.approx(np.linalg.norm(h), rel=1e-5)
        assert by_id[name]["delta"] == pytest.approx(np.linalg.norm(target - h), rel=1e-4)
    deltas = [row["delta"] for row in found["requests"]]
    assert found["delta"] == {
        "mean": pytest.approx(np.mean(deltas)), "largest": max(deltas), "smallest": min(deltas)
    }  # fmt: skip
    code, out, _ = errata("norms", "head", "--run", run.directory, "--each", "--no-control")
    assert code == 0 and "target values of 5 requests: 3.0 steps each" in out
    assert len(out.strip().split("\n")) == 3 + 6 + 3


def test_what_became_of_the_values_that_were_written(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the run's own weights: v = W k right after its commit, and with the weights of the head."""
    errata = in_process(monkeypatch, capsys)
    code, out, _ = errata("norms", "head", "--run", run.directory, "--values", 4, "--no-control", "--json")
    assert code == 0
    found = json.loads(out)["values"]
    assert [row["layer"] for row in found] == list(LAYERS) and all(row["values"] == 4 for row in found)
    with run.journal() as journal:
        keys = {n: load_receipt(run.store(), journal.version(n)).keys for n in (1, 2, 3)}
    for row in found:
        layer, ratios = row["layer"], []
        for sequence in (1, 2, 3):
            for k in keys[sequence][layer].double().numpy().T:
                v = run.weights[sequence][layer].double().numpy() @ k
                w = run.weights[6][layer].double().numpy() @ k
                ratios.append(np.linalg.norm(w - v) / np.linalg.norm(v))
        assert row["change"] == pytest.approx(np.mean(ratios[:4]), rel=1e-9)
    code, out, _ = errata("norms", "head", "--run", run.directory, "--values", 4)
    assert code == 0 and out.count("4 values moved by") == 2


def test_a_run_of_an_older_release_tells_no_norms_and_its_matrices(run: SmallRun) -> None:
    old = {"loss": 1.0, "steps": 3, "converged": False, "clamped": False}
    assert request_norms([("a", 1, old), ("b", None, {**old, "delta_norm": 1.0, "state_norm": 2.0})]) == ()
    assert next(norms_lines(report_of((), ()))).startswith("no request tells the norm")
