"""Tracking: all arrives in a real store, a dead one costs nothing, and what it missed is sent later."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from errata.orchestrator.tracking.moving import address_now
from errata.orchestrator.tracking.names import renamed
from errata.orchestrator.tracking.spool import Entry, Spool
from errata.orchestrator.tracking.store import MlflowStore
from errata.orchestrator.tracking.tracker import NullTracker, TrackedData, Tracker, flatten, leading_group


def points(database: Path) -> dict[str, list[tuple[int, float, int]]]:
    """(step, value, whether NaN) by metric, read past MLflow."""
    connection = sqlite3.connect(database)
    rows = connection.execute("SELECT key, step, value, is_nan FROM metrics ORDER BY key, step").fetchall()
    connection.close()
    found: dict[str, list[tuple[int, float, int]]] = {}
    for key, step, value, is_nan in rows:
        found.setdefault(key, []).append((step, value, int(is_nan)))
    return found


def table(database: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database)
    rows = connection.execute(query).fetchall()
    connection.close()
    return rows


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    directory = tmp_path_factory.mktemp("template")
    tracker = Tracker(directory, run_key="template")
    assert tracker.close(timeout=120)
    return directory / "mlflow.db"


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    (tmp_path / "store.db").write_bytes(template.read_bytes())
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(autouse=True)
def _artifacts_beside_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever MLflow puts into the working directory


@pytest.fixture
def dead_server() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_run_arrives_in_the_default_database(tmp_path, template):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mlflow.db").write_bytes(template.read_bytes())
    (output / "report.html").write_text("<p>report</p>")
    tracker = Tracker(output, run_key="r1", experiment="demo", run_name="quickstart", tags={"model": "tiny"})
    tracker.log_params({"editor": {"type": "memit", "layers": [4, 5]}, "odd key!": None, "long": "x" * 9_000})
    for step in range(30):  # in all, more than one call takes
        tracker.log_metrics({f"arm {arm}/efficacy": arm + step / 30 for arm in range(40)}, step)
    tracker.log_metrics({"ppl": float("inf"), "gap": float("nan")}, 3)
    tracker.log_artifact(output / "report.html", "pages")
    assert tracker.close(timeout=120)
    got = points(output / "mlflow.db")
    for arm in range(40):
        assert got[f"arm {arm}/efficacy"] == [(step, arm + step / 30, 0) for step in range(30)]
    assert [is_nan for _, _, is_nan in got["ppl"] + got["gap"]] == [1, 1]
    params = dict(table(output / "mlflow.db", "SELECT key, value FROM params"))
    assert params["editor.type"] == "memit" and params["editor.layers"] == "[4, 5]"
    assert params["odd key_"] == "null" and len(str(params["long"])) == 6_000
    tags = dict(table(output / "mlflow.db", f"SELECT key, value FROM tags WHERE run_uuid = '{tracker.run_id}'"))
    assert tags["errata.run"] == "r1" and tags["model"] == "tiny"
    assert tags["not_finite.ppl"] == "inf at step 3"
    runs = f"SELECT name, status FROM runs WHERE run_uuid = '{tracker.run_id}'"
    assert table(output / "mlflow.db", runs) == [("quickstart", "FINISHED")]
    (page,) = (output / "mlartifacts").rglob("report.html")
    assert page.parent.name == "pages" and page.read_text() == "<p>report</p>"


def test_a_resumed_run_is_the_same_mlflow_run(tmp_path, uri):
    first = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    first.log_params({"seed": 1})
    first.log_metrics({"x": 1.0}, 1)
    assert first.close(timeout=60, status="KILLED")
    second = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    assert second.run_id == first.run_id
    second.log_metrics({"x": 2.0}, 2)
    assert second.close(timeout=60)
    # even when the note of its id is lost, the run is found by its tag and nothing is doubled
    (tmp_path / "out" / "tracking_run.json").unlink()
    third = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    assert third.close(timeout=60) and third.run_id == first.run_id
    assert points(tmp_path / "store.db")["x"] == [(1, 1.0, 0), (2, 2.0, 0)]
    assert table(tmp_path / "store.db", f"SELECT status FROM runs WHERE run_uuid = '{first.run_id}'") == [("FINISHED",)]


def test_a_dead_server_costs_nothing_and_gets_everything_later(tmp_path, uri, dead_server, caplog):
    with caplog.at_level(logging.WARNING, logger="errata.orchestrator.tracking.tracker"):
        tracker = Tracker(tmp_path / "out", run_key="r1", uri=dead_server, pause=(0.01, 0.02))
        for step in range(50):
            tracker.log_metrics({"x": float(step)}, step)
        assert not tracker.close(timeout=0.5), "the end does not wait for it either"
    assert "were not delivered" in caplog.text
    assert tracker.waiting() >= 50 and tracker.run_id is None
    later = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    assert later.close(timeout=60)
    assert points(tmp_path / "store.db")["x"] == [(step, float(step), 0) for step in range(50)]
    log = [json.loads(line) for line in (tmp_path / "out" / "tracking.jsonl").read_text().splitlines()]
    stamps = [entry["timestamp"] for entry in log if entry["key"] == "x"]
    stored = table(tmp_path / "store.db", "SELECT timestamp FROM metrics WHERE key = 'x' ORDER BY step")
    assert [row[0] for row in stored] == stamps, "the moment it was measured, not the moment it was sent"


def test_a_server_that_takes_calls_and_never_answers_holds_nobody_up(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        tracker = Tracker(tmp_path / "out", run_key="r1", uri=address, pause=(0.01, 0.02))
        mute.accept()  # the tracker's thread waits for an answer; were the calls below to wait too, this never ended
        for step in range(300):
            tracker.log_metrics({"x": float(step)}, step)
        assert tracker.waiting() == 302 and not tracker.close(timeout=0.1)
    later = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    assert later.close(timeout=60)
    assert [step for step, _, _ in points(tmp_path / "store.db")["x"]] == list(range(300))


def test_an_outage_in_the_middle_loses_and_doubles_nothing(tmp_path, uri, monkeypatch):
    up = threading.Event()
    failed = threading.Event()
    send = MlflowStore.send

    def flaky(self: MlflowStore, entries: list[Entry]) -> None:
        if not up.is_set():
            failed.set()
            raise ConnectionError("down")
        send(self, entries)

    monkeypatch.setattr(MlflowStore, "send", flaky)
    tracker = Tracker(tmp_path / "out", run_key="r1", uri=uri, pause=(0.01, 0.02))
    for step in range(20):
        tracker.log_metrics({"x": 1.0}, step)
    assert failed.wait(20) and tracker.waiting() == 22
    up.set()
    for step in range(20, 30):
        tracker.log_metrics({"x": 1.0}, step)
    assert tracker.close(timeout=60) and tracker.waiting() == 0
    assert [step for step, _, _ in points(tmp_path / "store.db")["x"]] == list(range(30))


def test_what_the_store_refuses_does_not_hold_up_the_rest(tmp_path, uri, caplog):
    tracker = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    tracker.log_params({"seed": 1, "layers": "4"})
    tracker.log_artifact(tmp_path / "never-written.html")
    tracker.log_params({"seed": 2, "editor": "memit"})  # MLflow does not let a parameter change
    tracker.log_metrics({"x": 1.0}, 1)
    with caplog.at_level(logging.WARNING, logger="errata.orchestrator.tracking.tracker"):
        assert tracker.close(timeout=60)
    query = f"SELECT key, value FROM params WHERE run_uuid = '{tracker.run_id}'"
    assert dict(table(tmp_path / "store.db", query)) == {"seed": "1", "layers": "4", "editor": "memit"}
    assert points(tmp_path / "store.db")["x"] == [(1, 1.0, 0)]
    assert "refused param seed" in caplog.text and "refused artifact" in caplog.text


def test_a_run_deleted_from_the_store_is_written_again(tmp_path, uri):
    first = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    first.log_metrics({"x": 1.0}, 1)
    assert first.close(timeout=60)
    for name in ("metrics", "latest_metrics", "params", "tags"):
        connection = sqlite3.connect(tmp_path / "store.db")
        connection.execute(f"DELETE FROM {name} WHERE run_uuid = ?", (first.run_id,))
        connection.execute("DELETE FROM runs WHERE run_uuid = ?", (first.run_id,))
        connection.commit()
        connection.close()
    second = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    second.log_metrics({"x": 2.0}, 2)
    assert second.close(timeout=60) and second.run_id != first.run_id
    assert points(tmp_path / "store.db")["x"] == [(1, 1.0, 0), (2, 2.0, 0)]


def test_logging_never_raises(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(MlflowStore, "send", lambda *_: None)
    tracker = Tracker(tmp_path / "out", run_key="r1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("errata.orchestrator.tracking.spool.os.fsync", full)
        tracker.log_metrics({"x": 1.0}, 1)
        tracker.log_metrics({"x": 2.0}, 2)
    tracker.log_metrics({"x": 3.0}, 3)
    assert tracker.close(timeout=20) and tracker.close()
    tracker.log_metrics({"x": 4.0}, 4)
    lines = (tmp_path / "out" / "tracking.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == ["RUNNING", "2", 3.0, "FINISHED"]
    assert caplog.text.count("cannot be written") == 1


def test_the_spool_survives_a_torn_line_and_a_wild_offset(tmp_path):
    entries = [Entry("r", "metric", "x", float(number), number, 1_000 + number) for number in range(3)]
    spool = Spool(tmp_path)
    spool.append(entries)
    read, ends = spool.read(2)
    assert read == entries[:2]
    spool.acknowledge(ends[0])
    spool.close()
    with (tmp_path / "tracking.jsonl").open("a") as file:
        file.write('{"run": "r", "ki')
    spool = Spool(tmp_path)
    assert spool.read(10)[0] == entries[1:] and spool.waiting() == 2
    spool.append(entries[:1])
    assert spool.read(10)[0] == [*entries[1:], entries[0]]
    spool.close()
    (tmp_path / "tracking.offset").write_text("999999")
    spool = Spool(tmp_path)
    assert spool.waiting() == 4
    spool.close()


def test_calls_stay_within_what_mlflow_takes():
    def entry(kind: str) -> Entry:
        return Entry("r", kind, "k", None, 0, 0)  # type: ignore[arg-type]

    metrics, params = [entry("metric")] * 1_500, [entry("param")] * 150
    assert leading_group(metrics) == 1_000
    assert leading_group(params) == 100
    assert leading_group([*metrics[:5], *params]) == 105
    assert leading_group([*metrics[:5], entry("artifact"), *metrics]) == 5
    for kind in ("status", "artifact", "input", "table", "trace"):
        assert leading_group([entry(kind), *metrics]) == 1 and leading_group([*metrics[:5], entry(kind)]) == 5


def test_parameters_are_flattened_to_texts():
    assert flatten({"a": {"b": [1, 2], "c": {"d": "x"}}, "e": {}, "f": True}) == {
        "a.b": "[1, 2]",
        "a.c.d": "x",
        "e": "{}",
        "f": "true",
    }


def test_tracking_can_be_switched_off(tmp_path):
    tracker = NullTracker()
    tracker.log_metrics({"x": 1.0}, 1)
    tracker.log_params({"a": 1})
    tracker.set_tags({"a": "b"})
    tracker.log_artifact(tmp_path / "absent")
    assert tracker.close() and list(tmp_path.iterdir()) == []


def test_the_key_of_a_run_is_plain(tmp_path):
    with pytest.raises(ValueError, match="run_key"):
        Tracker(tmp_path, run_key="it's")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_was_deleted_in_the_store_is_kept_said_once_and_sent_when_it_is_restored(what, uri, tmp_path, caplog):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    first = Tracker(tmp_path / "run", run_key="kept", uri=uri)
    first.log_metrics({"loss": 1.0}, 1)
    assert first.close(timeout=60)
    run = client.get_run(str(first.run_id))
    if what == "run":
        client.delete_run(run.info.run_id)
    else:
        client.delete_experiment(run.info.experiment_id)
    with caplog.at_level(logging.WARNING):
        second = Tracker(tmp_path / "run", run_key="kept", uri=uri)
        for step in range(2, 12):
            second.log_metrics({"loss": float(step)}, step)
        assert not second.close(timeout=4)
        assert second.waiting() >= 10
    said = [record.message for record in caplog.records if "was deleted there; restore it" in record.message]
    assert len(said) == 1
    if what == "run":
        client.restore_run(run.info.run_id)
    else:
        client.restore_experiment(run.info.experiment_id)
    third = Tracker(tmp_path / "run", run_key="kept", uri=uri)
    assert third.close(timeout=60)
    assert third.run_id == first.run_id
    found = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in found) == list(range(1, 12))


ASSETS = Path(__file__).parents[2] / "assets" / "tracking"


def recorded(directory: Path) -> Path:
    """A run that a release before this one has tracked, by names with dots, in another place than it is in now."""
    directory.mkdir(parents=True)
    for name in ("tracking.jsonl", "tracking.offset", "tracking_run.json"):
        (directory / name).write_bytes((ASSETS / name).read_bytes())
    connection = sqlite3.connect(directory / "mlflow.db")
    connection.executescript((ASSETS / "mlflow.sql").read_text())
    connection.close()
    return directory


def test_a_database_of_the_release_before_opens_goes_on_and_has_whole_curves(tmp_path):
    run = recorded(tmp_path / "moved" / "run")
    before = points(run / "mlflow.db")
    (run / "report.html").write_text("<p>later</p>")
    tracker = Tracker(run, run_key="before-run")
    assert tracker.run_id == json.loads((ASSETS / "tracking_run.json").read_text())["run_id"]
    tracker.log_metrics({"edited/reliability": 0.75}, 6)
    tracker.log_artifact(run / "report.html")
    assert tracker.close(timeout=120)
    after = points(run / "mlflow.db")
    assert {name: after[name] for name in before} == before, "what was there is there"
    assert [(step, value) for step, value, _ in after["edited/reliability"]] == [
        (0, 0.0),
        (2, 0.3),
        (4, 0.6),
        (6, 0.75),
    ]
    assert after["norms/layer_04"] == before["norm.layer4"] and after["time/batch_seconds"] == before["edit_seconds"]
    assert after["final_edited/reliability"] == before["final.edited.reliability"]
    assert after["edited/perplexity_gsm8k"] == before["edited.perplexity.gsm8k"]
    assert sorted(p.relative_to(run).parts[0] for p in tmp_path.rglob("report.html")) == [
        "mlartifacts",
        "report.html",
    ], "where the run is now"
    again = Tracker(run, run_key="before-run")
    assert again.close(timeout=120) and points(run / "mlflow.db") == after, "and once only"


def forget_places() -> None:
    """As another process would: MLflow remembers for each run of a process where its files are."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


def test_a_copied_run_leaves_its_original_alone(tmp_path, template):
    first = tmp_path / "first"
    first.mkdir()
    (first / "mlflow.db").write_bytes(template.read_bytes())
    (first / "a.txt").write_text("a")
    tracker = Tracker(first, run_key="r1", experiment="mine")
    tracker.log_artifact(first / "a.txt")
    assert tracker.close(timeout=60)
    files = sorted(first.rglob("*"))
    shutil.copytree(first, tmp_path / "first-copy")
    copy = tmp_path / "first-copy"
    (copy / "b.txt").write_text("b")
    forget_places()
    second = Tracker(copy, run_key="r1", experiment="mine")
    second.log_artifact(copy / "b.txt")
    assert second.close(timeout=60) and second.run_id == tracker.run_id
    assert sorted(first.rglob("*")) == files
    assert {p.name for p in (copy / "mlartifacts").rglob("*.txt")} == {"a.txt", "b.txt"}
    forget_places()
    third = Tracker(first, run_key="r1", experiment="mine")
    third.log_artifact(first / "a.txt", "again")
    assert third.close(timeout=60)
    assert len(list((first / "mlartifacts").rglob("a.txt"))) == 2


def test_data_tables_traces_and_the_machine_arrive(tmp_path, template):
    from mlflow import MlflowClient

    run = tmp_path / "out"
    run.mkdir()
    (run / "mlflow.db").write_bytes(template.read_bytes())
    (run / "facts.json").write_text(json.dumps({"prompt": ["a", "b"], "edited: right": [True, False]}))
    tracker = Tracker(run, run_key="r1", experiment="mine", system_seconds=600)
    data = TrackedData("stream", "d" * 64, "local", {"uri": "stream.jsonl"}, {"records": 2}, "edits")
    for _ in range(2):
        tracker.log_input(data)
        tracker.log_table(run / "facts.json", "facts.json")
    times = {"started_ns": 1_000_000_000, "ended_ns": 1_500_000_000}
    children = [{"name": "routed", "outputs": {"answer": "Rome"}}]
    told = {"name": "query", "inputs": {"question": "?"}, "outputs": {"n": 1}, "attributes": {}, "tags": {"v": "3"}}
    tracker.log_trace({**told, **times, "children": children})
    while not any("system/" in line for line in tracker._spool.path.read_text().splitlines()):
        assert threading.Event().wait(0.05) is False
    assert tracker.close(timeout=120) and tracker.run_id is not None
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    found = client.get_run(tracker.run_id)
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.name == "stream" and dataset.tags[0].value == "edits"
    assert json.loads(dataset.dataset.source)["uri"] == "stream.jsonl"
    (table_file,) = (run / "mlartifacts").rglob("facts.json")
    assert json.loads(table_file.read_text()) == {
        "columns": ["prompt", "edited: right"],
        "data": [["a", True], ["b", False]],
    }, "delivered twice, and there once"
    assert "facts.json" in found.data.tags["mlflow.loggedArtifacts"]
    assert any(name.startswith("system/cpu") for name in found.data.metrics)
    (trace,) = client.search_traces(locations=[found.info.experiment_id])
    assert trace.info.execution_duration == 500 and trace.info.tags["v"] == "3"
    assert [span.name for span in trace.data.spans] == ["query", "routed"]


def test_without_pandas_a_table_is_the_same_and_holds_nothing_up(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    tracker = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    (tmp_path / "out" / "facts.json").write_text(json.dumps({"prompt": ["a", "b"], "right": [True, False]}))
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where MLflow's small client is installed
    tracker.log_table(tmp_path / "out" / "facts.json", "facts.json")
    tracker.log_metrics({"x": 1.0}, 1)
    assert tracker.close(timeout=60) and tracker.run_id is not None
    monkeypatch.undo()
    found = MlflowClient(uri).get_run(tracker.run_id)
    assert found.data.metrics == {"x": 1.0}
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [{"path": "facts.json", "type": "table"}]
    table = MlflowClient(uri).download_artifacts(tracker.run_id, "facts.json")
    assert json.loads(Path(table).read_text()) == {"columns": ["prompt", "right"], "data": [["a", True], ["b", False]]}


def test_what_a_smaller_client_cannot_send_does_not_hold_up_the_rest(tmp_path, uri, monkeypatch, caplog):
    def lacking(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    monkeypatch.setattr("errata.orchestrator.tracking.store._log_input", lacking)
    tracker = Tracker(tmp_path / "out", run_key="r1", uri=uri)
    tracker.log_input(TrackedData("stream", "d" * 64, "local", {"uri": "s"}, {"records": 2}, "edits"))
    tracker.log_metrics({"x": 1.0}, 1)
    with caplog.at_level(logging.WARNING, logger="errata.orchestrator.tracking.tracker"):
        assert tracker.close(timeout=60)
    assert "it needs x, which is not installed" in caplog.text
    assert points(tmp_path / "store.db")["x"] == [(1, 1.0, 0)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("edited.efficacy", "edited/efficacy"),
        ("final.edited_memory.reliability", "final_edited_memory/reliability"),
        ("asked.base.locality", "asked_base/locality"),
        ("edited.perplexity.gsm8k", "edited/perplexity_gsm8k"),
        ("norm.layer4", "norms/layer_04"),
        ("verify.landed", "verify/landed_edits"),
        ("guard.perplexity_ratio", "guard/perplexity_ratio"),
        ("edited/efficacy", None),
        ("loss", None),
        ("my.own", None),
    ],
)
def test_old_names_have_new_ones(old, new):
    assert renamed(old) == new


def test_a_cell_of_a_moved_sweep_finds_the_database_of_now(tmp_path):
    cell = tmp_path / "sweep" / "cells" / "abc"
    cell.mkdir(parents=True)
    tracking = {"uri": "sqlite:////elsewhere/sweep/mlflow.db", "parent": "p"}
    assert address_now(tracking, cell) == tracking["uri"]
    (tmp_path / "sweep" / "mlflow.db").touch()
    assert address_now(tracking, cell) == f"sqlite:///{tmp_path / 'sweep' / 'mlflow.db'}"
    assert address_now({**tracking, "parent": None}, cell) == tracking["uri"]
    assert address_now({"uri": "http://server", "parent": "p"}, cell) == "http://server"
    assert address_now({}, cell) is None
