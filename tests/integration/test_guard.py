"""The guard on a tiny model: a stream that breaks the model is paused or taken back; a gentle one goes through."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.orchestrator.guard.guard import EVENT, GuardPauseError
from errata.orchestrator.history.rebuild import base_maps
from errata.orchestrator.journal import Journal
from tests.helpers.tiny import save_tiny
from tests.integration.harness import config, fact, go, write_stream


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", layers=4)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with a stream whose third batch shakes the model, and probes that no edit is about."""
    write_stream(tmp_path / "stream.jsonl", [fact(number) for number in range(8)])
    probes = [
        {"prompt": f"Alice Munro {number} works in", "id": f"p{number}", "max_new_tokens": 3}
        for number in range(20, 26)
    ]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    yield tmp_path


def run(place: Path, model: Path, *, lr: float, resume: bool = False, **guard: Any) -> Mapping[int, torch.Tensor]:
    settings = config(
        model,
        place / "stream.jsonl",
        editor={"values": {"steps": 4, "lr": lr, "clamp": None, "weight_decay": 0.0}, "l2": 1e-6, "tau": 1e9},
        batching={"size": 2},
        covariance={"source": "identity", "tokens": None},
        refresh={"every": None},
        evaluation={"every": None, "arms": ["base", "edited"]},
        guard={"every": 1, "sentinels": str(place / "probes.jsonl"), "max_perplexity_ratio": 1e9,
               "max_sentinel_loss": 0.3, **guard},
    )  # fmt: skip
    return go(settings, place / "run", resume=resume)


def events(place: Path) -> list[dict[str, Any]]:
    with Journal.open(place / "run" / "journal.sqlite", read_only=True) as journal:
        return [dict(event.data) for event in journal.events(EVENT)]


def states(place: Path) -> list[str]:
    with Journal.open(place / "run" / "journal.sqlite", read_only=True) as journal:
        return [row.state for row in journal.requests()]


def test_a_gentle_stream_goes_through(place: Path, model: Path) -> None:
    run(place, model, lr=0.001)
    checks = [event for event in events(place) if event["what"] == "check"]
    assert [check["sequence"] for check in checks] == [1, 2, 3, 4] and all(check["good"] for check in checks)
    assert all(check["ratio"] == pytest.approx(1.0, abs=0.05) for check in checks)
    assert states(place) == ["applied"] * 8 and (place / "run" / "summary.json").is_file()


def test_a_stream_that_breaks_the_model_is_paused_until_it_is_resumed(place: Path, model: Path) -> None:
    with pytest.raises(GuardPauseError, match=r"paused by the guard at v1: . of 6 sentinels no longer hold"):
        run(place, model, lr=50.0)
    assert states(place) == ["applied"] * 2 + ["accepted"] * 6
    check = next(event for event in events(place) if event["what"] == "check")
    assert not check["good"] and check["kept"] < 0.7 and check["paused"] and len(check["broken"]) > 1
    # the person on call looks at it and decides to live with it
    run(place, model, lr=50.0, resume=True, max_sentinel_loss=1.0)
    assert states(place) == ["applied"] * 8
    assert [event["what"] for event in events(place)].count("resume") == 1


def test_a_stream_that_breaks_the_model_is_taken_back(place: Path, model: Path) -> None:
    weights = run(place, model, lr=50.0, pause=False, revert=True)
    assert states(place) == ["reverted"] * 8
    checks = [(e["sequence"], e["good"]) for e in events(place) if e["what"] == "check"]
    assert checks == [(n, n % 2 == 0) for n in range(1, 9)], "every batch broke it, every revert repaired it"
    for layer, base in base_maps(model, tuple(weights)).items():
        assert torch.allclose(weights[layer], base, atol=1e-3)
