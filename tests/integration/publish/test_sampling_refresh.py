"""A run whose covariances a server samples: the base for the first, the live version for a refresh, and a service that
outlives its server. Without Ray (`PlainCluster`)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.editing.errors import ErrataError
from errata.editing.request import EditRequest
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.covariance.refresh import REFUSED
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.sampling import EVENT
from errata.orchestrator.run.pipeline import Pipeline
from tests.helpers.vllm_like import VllmLike
from tests.integration.harness import config, go, opened


class Sampler(VllmLike):
    """Continues token ids with some of its own, and knows under which names it was asked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.down = False
        super().__init__(lambda path, prompt: "")

    def do(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.down:
            return 503, {"error": {"message": "not now"}}
        if path != "/v1/completions":
            return super().do(path, body)
        assert body["model"] == "base-model" or body["model"] in self.adapters
        self.names.append(body["model"])
        draw = random.Random(body["seed"])
        ids = [draw.randrange(5, 50) for _ in range(body["max_tokens"])]
        return 200, {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}]}


@pytest.fixture
def server() -> Iterator[Sampler]:
    server = Sampler()
    yield server
    server.close()


def sampled(model: Path, stream: Path, server: Sampler, schedule: str = "deterministic") -> RunConfig:
    given = {"url": server.url, "model": "base-model", "retries": 0, "parallel": 4}
    whole = config(model, stream, covariance={"server": given}, evaluation={"every": None})
    return whole.model_copy(update={"schedule": schedule})


def test_a_refresh_samples_from_the_live_version(
    tiny_checkpoint: Path, stream: Path, server: Sampler, tmp_path: Path
) -> None:
    go(sampled(tiny_checkpoint, stream, server), tmp_path / "run")
    with Journal.open(tmp_path / "run" / "journal.sqlite", read_only=True) as journal:
        version = journal.versions()[2]
        assert next((row.triggered_at, row.state) for row in journal.refreshes()) == (6, "swapped")
        events = [event.data for event in journal.events(EVENT)]
    live = f"errata-sampling-v2-{version.digest[:8]}"
    assert list(dict.fromkeys(server.names))[:2] == ["base-model", live]
    assert [event["what"] for event in events if event["adapter"] == live] == ["loading", "unloaded"]
    assert server.adapters == {}


def accept(pipeline: Pipeline, numbers: range) -> None:
    facts = [{"id": f"f{n}", "subject": f"Alice {n}", "prompt": "{} works in", "target_new": "Rome"} for n in numbers]
    pipeline.journal.accept([EditRequest.model_validate(fact) for fact in facts])


def write(pipeline: Pipeline, numbers: range) -> None:
    accept(pipeline, numbers)
    while pipeline.write_next(ended=True) is not None:
        pass


def settle(pipeline: Pipeline) -> None:
    """Until the estimate that is under way is done with."""
    deadline = time.monotonic() + 60
    while pipeline.refreshing.pending:
        pipeline.refreshing.swap_if_due()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_service_outlives_its_sampling_server(
    tiny_checkpoint: Path, stream: Path, server: Sampler, tmp_path: Path
) -> None:
    with opened(sampled(tiny_checkpoint, stream, server, "asap"), tmp_path / "run") as pipeline:
        server.down = True
        write(pipeline, range(6))
        settle(pipeline)
        [refused] = pipeline.journal.events(REFUSED)
        assert refused.data["triggered_at"] == 6 and "the estimate failed" in refused.data["reason"]
        assert "503" in refused.data["reason"] and len(pipeline.journal.swaps()) == 1
        # the next one finds it back
        server.down = False
        write(pipeline, range(6, 12))
        settle(pipeline)
        states = {row.triggered_at: row.state for row in pipeline.journal.refreshes()}
        assert states == {6: "refused", 12: "swapped"} and pipeline.head().edits == 12


def test_a_run_that_is_to_be_repeatable_ends_and_resumes(
    tiny_checkpoint: Path, stream: Path, server: Sampler, tmp_path: Path
) -> None:
    settings = sampled(tiny_checkpoint, stream, server)
    with opened(settings, tmp_path / "run") as pipeline:
        server.down = True
        with pytest.raises(ErrataError, match="503"):
            write(pipeline, range(12))
        server.down = False
    with opened(settings, tmp_path / "run") as pipeline:
        write(pipeline, range(0))
        assert pipeline.journal.refreshes()[0].state == "swapped"
