"""`mlflow-skinny` is enough where the tracking server is elsewhere: nothing that only the whole of MLflow brings is
imported, and all arrives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMPORTED_AS = {"scikit-learn": "sklearn", "flask-cors": "flask_cors"}
SERVER = "import uvicorn; uvicorn.run('mlflow.server.fastapi_app:app', host='127.0.0.1', port=0)"
PROGRAM = dedent(
    """
    import json, sys
    from pathlib import Path

    absent = set(sys.argv[3].split(","))

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in absent else self.finder.find_spec(name, path, target)

        def __getattr__(self, name):
            return getattr(self.finder, name)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    from errata.orchestrator.tracking.tracker import TrackedData, Tracker

    run = Path(sys.argv[1])
    (run / "facts.json").write_text(json.dumps({"prompt": ["a", "b"], "right": [True, False]}))
    (run / "a.txt").write_text("a")
    tracker = Tracker(run, run_key="small", uri=sys.argv[2], experiment="small")
    tracker.log_params({"editor": {"type": "memit"}})
    tracker.log_metrics({"edited/efficacy": 0.5}, 1)
    tracker.log_artifact(run / "a.txt")
    tracker.log_input(TrackedData("stream", "d" * 64, "local", {"uri": "s"}, {"records": 2}, "edits"))
    tracker.log_table(run / "facts.json", "facts.json")
    times = {"started_ns": 1_000_000_000, "ended_ns": 1_500_000_000}
    told = {"name": "query", "inputs": {"q": "?"}, "outputs": {"n": 1}, "attributes": {}, "tags": {}, "children": []}
    tracker.log_trace({**told, **times})
    assert tracker.close(timeout=300), "not all was taken"
    assert not absent & {name.split(".")[0] for name in sys.modules}
    """
)


def names(distribution: str) -> set[str]:
    found = [re.split(r"[<>=!; \[]", one)[0].lower() for one in requires(distribution) or [] if "extra ==" not in one]
    return {IMPORTED_AS.get(name, name) for name in found}


def test_a_run_is_tracked_by_the_small_client(tmp_path: Path) -> None:
    absent = names("mlflow") - names("mlflow-skinny") - {"mlflow-skinny", "mlflow-tracing", "numpy", "cryptography"}
    assert {"sqlalchemy", "pandas", "flask"} <= absent
    run, log, store = tmp_path / "run", tmp_path / "log.txt", f"sqlite:///{tmp_path / 'server.db'}"
    run.mkdir()
    environment = {
        **os.environ,
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(tmp_path / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    with log.open("wb") as out:
        server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while (found := re.search(r"running on (http://[\w.:]+)", log.read_text())) is None:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        arguments = [str(run), found[1], ",".join(sorted(absent))]
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        server.terminate()
        server.wait(60)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    (experiment,) = [one for one in client.search_experiments() if one.name == "small"]
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.data.metrics == {"edited/efficacy": 0.5} and kept.data.params == {"editor.type": "memit"}
    assert kept.data.tags["mlflow.loggedArtifacts"] == '[{"path": "facts.json", "type": "table"}]'
    assert [one.dataset.name for one in kept.inputs.dataset_inputs] == ["stream"]
    assert {path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()} >= {"a.txt", "facts.json"}
    assert len(client.search_traces(locations=[experiment.experiment_id], include_spans=False)) == 1
