"""The commands on a small run, as a person types them: what is printed, what is written, how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from errata.editing.checkpoint.load import load_model
from errata.editing.delta import WeightDelta
from errata.editing.errors import UserError
from errata.orchestrator.cli import app
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.chain import chain_existing
from tests.helpers.small_run import LAYERS, SmallRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def errata(*arguments: object) -> Any:
    """Run a command in this process; what it raises comes through."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_log_show_and_diff(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = errata("log", run.directory, "-n", 2).stdout
    assert printed.startswith(f"v6  {run.versions[6][:12]}") and "v5 " in printed and "v4 " not in printed
    assert json.loads(errata("log", run.directory, "--json").stdout)[0]["version"] == run.versions[6]
    assert "superseded in v3" in errata("show", "lyon", "--run", run.directory).stdout
    assert "holds 4 facts" in errata("show", "head", "--run", run.directory).stdout
    found = json.loads(errata("diff", "v1", "v3", "--run", run.directory, "--json").stdout)
    assert [fact["id"] for fact in found["gained"]] == ["angola"] and sorted(found["change"]) == ["0", "1"]
    # without --run, the newest under runs/; by name, the one that is meant
    monkeypatch.chdir(run.directory.parent)
    shutil.copytree(run.directory, "runs/mine")
    assert errata("log", "-n", 1).stdout == errata("log", "mine", "-n", 1).stdout


def test_checkout_and_the_three_exports(run: SmallRun, tmp_path: Path) -> None:
    printed = errata("checkout", "v2", "--run", run.directory, "--output", tmp_path / "two").stdout
    assert printed.splitlines() == [f"v2 {run.versions[2]} -> {tmp_path / 'two'}"]
    model = load_model(str(tmp_path / "two"))
    assert all(torch.equal(model.weight(layer), run.weights[2][layer]) for layer in LAYERS)

    def export(form: str, name: str, *more: object) -> str:
        given = ("--run", run.directory, "--format", form, "--output", tmp_path / name, *more)
        return str(errata("export", run.versions[3][:10], *given).stdout)

    export("full", "full")
    assert json.loads((tmp_path / "full" / "errata-version.json").read_text())["version"] == run.versions[3]
    assert "relative error of the one change: layer 0: " in export("delta", "change.safetensors")
    assert sorted(WeightDelta.load(tmp_path / "change.safetensors").layers) == list(LAYERS)
    assert "rank 4, exact; relative error of the change: layer 0: " in export("lora", "lora")
    assert "rank 1, truncated; relative error of the change: layer 0: 0." in export("lora", "cut", "--rank", 1)
    with pytest.raises(UserError, match="--rank 1 is for --format lora; full has no rank"):
        export("full", "other", "--rank", 1)
    with pytest.raises(UserError, match="is not an empty directory"):
        export("full", "full")
    with pytest.raises(UserError, match="there is no version v9; the newest is v6"):
        errata("checkout", "v9", "--run", run.directory, "--output", tmp_path / "nine")
    assert not (tmp_path / "nine").exists() and not (tmp_path / "other").exists()


def test_a_base_model_that_has_moved(run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    shutil.copytree(run.model, tmp_path / "elsewhere")
    journal = Journal.open(tmp_path / "run" / "journal.sqlite")
    config = json.dumps({**journal.meta.config, "model": {"name": "./gone", "dtype": "float32"}})
    journal._connection.execute("UPDATE meta SET config = ?", (config,))
    # as if the run had been begun with that name: the chain holds what was written at the beginning
    journal._connection.execute("DELETE FROM chain")
    chain_existing(journal._connection)
    journal.close()
    with pytest.raises(UserError, match=r"'\./gone' is not there.*--model says where"):
        errata("verify", tmp_path / "run")
    assert errata("verify", tmp_path / "run", "--no-weights").exit_code == 0
    assert errata("verify", tmp_path / "run", "--model", tmp_path / "elsewhere").exit_code == 0


def test_verify_and_gc(run: SmallRun, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.directory, copy)
    sound = errata("verify", copy)
    assert sound.exit_code == 0 and sound.stdout.count("  weights ") == 7
    assert sound.stdout.splitlines()[-1] == "9 requests, 7 versions, 14 files: sound"
    (copy / "contexts" / ("ab" * 32 + ".json")).write_text("[]")
    (copy / "keys" / ".tmp-0123.safetensors").write_bytes(b"half")
    damaged = sorted((copy / "covariances").iterdir())[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    bad = errata("verify", copy, "--no-weights")
    assert bad.exit_code == 1
    assert f"covariances/{damaged.name}: " in bad.stdout and "half-written keys/.tmp-0123" in bad.stdout
    report = json.loads(errata("verify", copy, "--no-weights", "--json").stdout)
    assert [problem["where"] for problem in report["problems"]] == [
        f"covariances/{damaged.name}",
        f"contexts/{'ab' * 32}.json",
    ]
    assert report["orphans"] == ["contexts/" + "ab" * 32]
    with pytest.raises(UserError, match=r"gc: the run is not sound .*nothing was deleted"):
        errata("gc", copy)
    damaged.write_bytes(whole)
    (copy / "contexts" / ("ab" * 32 + ".json")).unlink()
    ArtifactStore(copy).put_bytes("contexts", b"[]", suffix=".json")  # whole, and named by nothing
    assert "2 files, 6 bytes would be deleted" in errata("gc", copy, "--dry-run").stdout
    assert "2 files, 6 bytes deleted" in errata("gc", copy).stdout
    assert "0 files, 0 bytes deleted" in errata("gc", copy).stdout and damaged.exists()


def test_bisect(run: SmallRun, tmp_path: Path) -> None:
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps({"prompt": "The capital of France is", "id": "capital"}))
    given = ("bisect", "--probe", probe, "--run", run.directory, "--good", "v2", "--bad", "v3")
    printed = errata(*given).stdout
    assert printed.startswith(f"v3 {run.versions[3]} broke the probe\n")
    for words in ("+ France -> Paris  [paris]", "capital\n    v2: ", "2 of 2 versions asked", "to change once"):
        assert words in printed
    report = json.loads(errata(*given, "--json").stdout)
    assert report["commit"]["sequence"] == 3 and report["broke"] and len(report["asked"]) == 2
    with pytest.raises(UserError, match="cannot be read"):
        errata("bisect", "--probe", tmp_path / "none", "--run", run.directory)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("log", "nowhere"), 2, "errata: there is no run in 'nowhere': want a directory that holds journal.sqlite"),
        (("show", "xyz", "--run", "{run}"), 2, "errata: there is neither an edit nor a version 'xyz'"),
        (("verify", "{damaged}"), 1, ""),
        (("checkout", "head", "--run", "{damaged}", "--output", "{damaged}/out"), 1, "errata: error: v2: "),
    ],
)
def test_how_a_command_ends(run: SmallRun, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run.directory, damaged)
    with run.journal() as journal:
        delta = f"{journal.versions()[2].delta}.safetensors"
    (damaged / "deltas" / delta).write_bytes(b"torn")
    given = [a.format(run=run.directory, damaged=damaged) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "errata.orchestrator.cli", *given],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(words) and len(done.stderr.splitlines()) <= 1
    if not words:
        assert f"deltas/{delta}: " in done.stdout and "nor can v3 to v6" in done.stdout
