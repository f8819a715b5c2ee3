"""Coverage against NumPy, and the command on files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError
from errata.orchestrator.covariance.coverage import coverage
from tests.helpers.command import in_process

D = 9


def keys(seed: int, decay: float, count: int = 50) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return rng.standard_normal((count, D)) * np.geomspace(1, decay, D) @ basis


def held(X: np.ndarray, layers: tuple[int, ...] = (3, 4)) -> KeyCovariance:
    return KeyCovariance({layer: torch.tensor(X.T @ X) for layer in layers}, len(X), {"kind": "given"})


WIKI, OWN, CODE = keys(0, 0.01), keys(1, 0.3), keys(2, 0.5)


def test_share_of_a_domain_inside_a_covariance() -> None:
    found = coverage({"wiki": held(WIKI), "own": held(OWN)}, {"code": held(CODE), "wiki": held(WIKI)}, energy=0.9)
    assert len(found) == 2 * 2 * 2
    for item in found:
        X = {"wiki": WIKI, "own": OWN}[item.covariance]
        Y = {"wiki": WIKI, "code": CODE}[item.domain]
        values, vectors = np.linalg.eigh(X.T @ X / len(X))
        values, vectors = values[::-1], vectors[:, ::-1]
        k = int(np.searchsorted(np.cumsum(values) / values.sum(), 0.9) + 1)
        V, M = vectors[:, :k], Y.T @ Y
        assert item.directions == k
        assert item.share == pytest.approx(np.trace(V.T @ M @ V) / np.trace(M), rel=1e-9)
    by_name = {(item.covariance, item.domain): item.share for item in found if item.layer == 3}
    assert by_name["wiki", "wiki"] >= 0.9  # a covariance holds its own text
    assert by_name["own", "code"] > by_name["wiki", "code"]  # a wide one holds more of another


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="in common"):
        coverage({"a": held(WIKI, (1,))}, {"b": held(CODE, (2,))})
    with pytest.raises(UserError, match="layers"):
        coverage({"a": held(WIKI)}, {"b": held(CODE)}, layers=[7])
    with pytest.raises(UserError, match="different widths"):
        coverage({"a": held(WIKI)}, {"b": held(CODE[:, :4])})


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, X in (("wiki", WIKI), ("own", OWN), ("code", CODE)):
        held(X).save(tmp_path / f"{name}.safetensors")
    errata = in_process(monkeypatch, capsys)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("wiki", "own")]
    code = f"code={tmp_path / 'code.safetensors'}"
    done, out, _ = errata(
        "covariance", "coverage", *files, "--domain", code, "--layer", "4", "--output", tmp_path / "o.json"
    )
    assert done == 0 and "layer 4" in out and "code" in out
    rows = json.loads((tmp_path / "o.json").read_text())
    assert [row["layer"] for row in rows] == [4, 4] and all(0 < row["share"] < 1 for row in rows)
    refused, _, err = errata("covariance", "coverage", *files, "--domain", "code")
    assert refused == 2 and "NAME=FILE" in err
