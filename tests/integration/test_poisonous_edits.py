"""An edit whose optimization is killed for memory: three times with its batch, then alone; the others are written, and
a restart runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

import errata.actors.clients as actors_clients
from errata.actors.clients import EditorClient
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.editor import ContextSpec
from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY
from errata.editing.request import EditBatch, EditRequest
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import CommitData, JournalMeta, RequestOutcome
from errata.orchestrator.run.batches import Attempts

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(900)]

MEMIT = REGISTRY["memit"][0](layers=(1,), cov_weight=1.0, past_keys=False, values={"steps": 2})
CONTEXTS = ContextSpec(1, 3, 0, given=("", "You. "))
POISON = "r1"


def armed(poison: str) -> Callable[[Any], None]:
    """What is run in the editor's process: from then on it is killed, as by the kernel, as soon as it has the edit."""

    def arm(_: Any) -> None:
        import os
        import signal

        from errata.editing.session import EditSession

        compute = EditSession._computed

        def killed(self: Any, requests: Any, *rest: Any) -> Any:
            if any(request.id == poison for request in requests):
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(self, requests, *rest)

        EditSession._computed = killed  # type: ignore[method-assign]

    return arm


@pytest.fixture(autouse=True)
def _mortal_editors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every editor that is made dies of one edit."""
    make = actors_clients.make_actor

    def armed_actor(*given: Any) -> Any:
        actor = make(*given)
        ray.get(actor.__ray_call__.remote(armed(POISON)))
        return actor

    monkeypatch.setattr(actors_clients, "make_actor", armed_actor)


def test_it_is_set_aside_the_others_are_written_and_a_restart_runs_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    width = load_model(str(tiny_checkpoint)).weight(1).shape[1]
    covariance = KeyCovariance({1: torch.eye(width, dtype=torch.float64) * 10}, 10, {"kind": "test"})
    spec = ModelSpec(name=str(tiny_checkpoint))
    requests = [EditRequest(id=f"r{i}", subject=f"Place {i}", prompt="{} lies in", target_new="Rome") for i in range(5)]
    said: list[str] = []
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, JournalMeta("run", "b" * 64, "e" * 64, {})) as journal:
        journal.accept(requests)
        # none of these deaths counts toward what the cluster may lose
        editor = EditorClient(RayConfig(max_revivals=0), spec, MEMIT, CONTEXTS, lambda: [covariance])
        editor.restore()
        attempts = Attempts(journal, editor, said.append)
        receipt = attempts.apply(EditBatch(sequence=1, requests=tuple(requests[:3])))
        assert receipt is not None and receipt.request_ids == ("r0", "r2")
        outcomes = tuple(RequestOutcome(result.request_id, result.applied) for result in receipt.results)
        journal.commit(CommitData(1, outcomes, receipt.delta.digest if receipt.delta else None))
        attempts.committed()
        rows = {row.id: row for row in journal.requests()}
        assert [rows[f"r{i}"].state for i in range(5)] == ["applied", "rejected", "applied", "accepted", "accepted"]
        assert "process died every time" in str(rows[POISON].reason) and len(said) == 1
        whole = [row for row in journal.attempts() if len(row.request_ids) == 3]
        assert [row.outcome for row in whole] == ["died"] * 3
        assert editor.revivals == 5, "three with the batch, one with each half that holds it"
        editor.close()
    with Journal.open(path) as journal:
        waiting = [row.request for row in journal.pending()]
        assert [request.id for request in waiting] == ["r3", "r4"]
        again = EditorClient(RayConfig(max_revivals=0), spec, MEMIT, CONTEXTS, lambda: [covariance, receipt])
        again.restore()
        following = Attempts(journal, again, said.append).apply(EditBatch(sequence=2, requests=tuple(waiting)))
        assert following is not None and following.request_ids == ("r3", "r4") and again.revivals == 0
        again.close()
