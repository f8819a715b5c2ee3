"""``errata covariance`` on a real Ray: estimate, find again, check the keys, a text, a mixture, a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from errata.actors.settings import ModelSpec, RayConfig
from errata.editing.checkpoint.load import checkpoint_digest
from errata.editing.covariance import KeyCovariance
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.covariance.jobs import estimate_job
from errata.orchestrator.journal.rows import version_digest
from tests.helpers.command import Command, in_process
from tests.integration.harness import PlainEstimator

pytestmark = pytest.mark.usefixtures("local_ray")

LAYERS = (1, 2)


@pytest.fixture
def errata(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    return in_process(monkeypatch, capsys, "covariance")


def write_config(path: Path, model: Path, covariance: dict[str, Any]) -> Path:
    data = {
        "model": {"name": str(model)},
        "editor": {"type": "alphaedit", "layers": list(LAYERS), "tau": 5.0},
        "stream": {"path": "facts.jsonl"},
        "covariance": covariance,
        "ray": {"generation_workers": 2, "generation": {"num_cpus": 0.5}},
    }
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
def test_from_estimates_to_a_comparison(errata, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sampled = {"tokens": 150, "max_new_tokens": 8, "sequences_per_unit": 4, "slots": 4}
    own = write_config(tmp_path / "own.yaml", tiny_checkpoint, sampled)

    code, out, err = errata("estimate", own, "--output", "own.safetensors", "--check")
    assert code == 0, err
    assert "tokens/s" in out and "against a packed second pass" in out
    first = KeyCovariance.load(tmp_path / "own.safetensors")
    assert first.digest in out and first.layers == LAYERS and first.tokens >= 150
    assert first.record is not None and len(first.record.documents) == len(first.record.openings) > 10

    # two workers and Ray's reduction give the bytes of one process, and the record of its documents
    version = version_digest(checkpoint_digest(tiny_checkpoint))
    job = estimate_job(load_config(str(own)).covariance, LAYERS, version)
    alone = PlainEstimator(RayConfig(), ModelSpec(name=str(tiny_checkpoint))).estimate(job, {})
    assert alone.covariance.digest == first.digest and alone.documents == first.record.documents

    code, out, _ = errata("estimate", own)
    assert code == 0 and "found in the store" in out and first.digest in out

    # a text, whose unit slices go over the same workers
    lines = [json.dumps({"text": f"Rome lies in Italy {i}. The capital of France is Paris."}) for i in range(12)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "code.txt").write_text("one two three\nfour five six\n\nseven eight nine ten\n")
    text = {"path": "web.jsonl", "documents_per_unit": 2, "nll_documents": 12, "window": 16}
    given = write_config(tmp_path / "text.yaml", tiny_checkpoint, {"source": "corpus", "tokens": 120, "corpus": text})
    code, out, err = errata("estimate", given, "--output", "text.safetensors")
    assert code == 0, err
    web = KeyCovariance.load(tmp_path / "text.safetensors")
    assert web.tokens >= 120 and web.source["kind"] == "corpus" and web.record is not None and web.record.documents

    # a mixture takes the text's covariance from the store and runs only what is not there
    components = {"web": text, "code": {"path": "code.txt"}}
    mixture = {"weights": {"web": 0.9, "code": 0.1}, "components": components}
    mixed = write_config(
        tmp_path / "mixed.yaml", tiny_checkpoint, {"source": "mixture", "tokens": 120, "mixture": mixture}
    )
    code, out, err = errata(
        "estimate", mixed, "--output", "mixed.safetensors", "--set", "covariance.mixture.weights.web=9"
    )
    assert code == 0, err
    composed = KeyCovariance.load(tmp_path / "mixed.safetensors")
    assert composed.source["parts"]["web"] == web.digest
    rest = 9.1 * composed.mean(1) - 9 * web.mean(1)
    assert float(torch.linalg.eigvalsh(rest).min()) > -1e-6 * float(rest.norm()), "what is left is the other part"

    code, out, err = errata("compare", "own.safetensors", "text.safetensors", "mixed.safetensors")
    assert code == 0, err
    assert "overlap of the leading" in out and "Jensen-Shannon" in out
    page = (tmp_path / "covariances.html").read_text()
    assert all(name in page for name in ("own", "text", "mixed", "First words"))

    # a file of the store that is not what it was is refused, whatever it says
    (kept,) = (f for f in (tmp_path / "home" / "covariances").iterdir() if KeyCovariance.load(f).digest == first.digest)
    kept.write_bytes(kept.read_bytes()[:-3])
    code, out, err = errata("estimate", own)
    assert code == 2 and "delete the file to have it estimated again" in err and out == ""
