"""`errata doctor`: what would not work is named, what would is not complained of."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from errata.actors.nodes import NodeFacts, unplaceable
from errata.actors.settings import RayConfig
from errata.editing.errors import UserError
from errata.orchestrator import doctor
from errata.orchestrator.cli import app
from errata.orchestrator.config.loading import load_config
from errata.orchestrator.config.run import RunConfig
from tests.helpers.tiny import save_tiny

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /data nfs4 rw 0 0
/dev/sdb1 /data/fast xfs rw 0 0
none /with\\040space tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/", "ext4"), ("/var/lib", "ext4"), ("/data/x", "nfs4"), ("/data/fast/run", "xfs"), ("/database", "ext4")],
)
def test_the_file_system_is_that_of_the_longest_mount_above(place, kind):
    assert doctor.file_system(Path(place), MOUNTS) == kind


def test_a_mount_with_a_space_is_understood():
    assert doctor.file_system(Path("/with space/run"), MOUNTS) == "tmpfs"


def test_a_journal_on_a_network_file_system_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "file_system", lambda place: "nfs4")
    state, said = doctor.storage(tmp_path)
    assert state == "fail" and "nfs4" in said


def test_a_full_disk_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 62)
    assert doctor.storage(tmp_path)[0] == "fail"


def test_a_directory_that_is_not_there_yet_is_judged_by_what_is_above_it(tmp_path):
    state, said = doctor.storage(tmp_path / "runs" / "new")
    assert state in ("ok", "warning") and "new" in said
    assert not (tmp_path / "runs").exists()


def test_the_versions_here_are_in_order_and_one_that_is_not_is_named(monkeypatch):
    assert doctor.versions()[0] == "ok"
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch<1", "no-such-thing>=1", 'other>=1; extra == "peft"'])
    state, said = doctor.versions()
    assert state == "fail" and "torch" in said and "no-such-thing is missing" in said and "other" not in said


class _Server(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (403, "fail"), (500, "fail")])
def test_mlflow_is_asked_for_its_health(status, state, monkeypatch):
    monkeypatch.setattr(_Server, "status", status)
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        assert doctor.mlflow_answers(f"http://127.0.0.1:{server.server_port}/")[0] == state
    finally:
        server.shutdown()
        server.server_close()
    assert doctor.mlflow_answers(f"http://127.0.0.1:{server.server_port}")[0] == "fail"
    assert doctor.mlflow_answers(None)[0] == "ok"


def test_a_redis_that_is_not_there_fails():
    state, said = doctor.redis_answers("redis://127.0.0.1:1/0")
    assert state == "fail" and "127.0.0.1:1" in said


def test_weights_that_are_cut_off_are_named(tmp_path):
    model = save_tiny(tmp_path / "model")
    assert doctor.weight_bytes(model) == (model / "model.safetensors").stat().st_size
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut off"):
        doctor.weight_bytes(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no"):
        doctor.weight_bytes(model)


@pytest.mark.parametrize(
    "fault",
    [
        "lacks 'lm_head.weight'",
        "NaN or infinite numbers in 'lm_head.weight'",
        "Git LFS pointer",
        "quantized (gptq)",
        "only there as pytorch_model.bin",
    ],
)
def test_what_a_run_would_refuse_of_a_checkpoint_is_refused_here(fault, tmp_path):
    config = load_config(str(_config(tmp_path)))
    model, file = tmp_path / "model", tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if fault.startswith("lacks"):
        save_file({name: t for name, t in tensors.items() if name != "lm_head.weight"}, file, metadata={"format": "pt"})
    elif fault.startswith("NaN"):
        tensors["lm_head.weight"][0, 0] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
    elif fault.startswith("Git"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 538090408\n")
    elif fault.startswith("quantized"):
        plain = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**plain, "quantization_config": {"quant_method": "gptq"}}))
    else:
        file.rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=re.escape(fault)):
        doctor.model(config)


def test_where_the_model_is_staged_and_whether_there_is_room_is_said(tmp_path, monkeypatch):
    config = load_config(str(_config(tmp_path)))
    monkeypatch.delenv("ERRATA_STAGE", raising=False)
    state, said = doctor.model(config)
    assert state == "ok" and "staged in" not in said
    monkeypatch.setenv("ERRATA_STAGE", str(tmp_path / "stage"))
    state, said = doctor.model(config)
    assert state == "ok" and f"staged in {tmp_path / 'stage'} with" in said
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    state, said = doctor.model(config)
    assert state == "warning" and "no room" in said


def test_a_check_that_breaks_has_failed_and_hides_no_other():
    def broken():
        raise RuntimeError("first line\nsecond")

    found = list(doctor.examine([("a", broken), ("b", lambda: ("ok", "well"))]))
    assert [(f.check, f.state, f.said) for f in found] == [
        ("a", "fail", "RuntimeError: first line"),
        ("b", "ok", "well"),
    ]


def test_actors_without_a_place_are_counted():
    config = RayConfig.model_validate(
        {
            "generation_workers": 3,
            "evaluation_workers": 0,
            "generation": {"num_gpus": 1, "labels": {"errata.io/group": "gpu"}},
            "editor": {"labels": {"errata.io/group": "editor"}},
        }
    )
    gpu = NodeFacts(8, 2, {"CPU": 8, "GPU": 2}, {"errata.io/group": "gpu"})
    assert unplaceable(config, [gpu]) == ["editor 1 of 1", "generation 3 of 3"]
    editor = NodeFacts(1, 0, {"CPU": 1}, {"errata.io/group": "editor"})
    assert unplaceable(config, [gpu, editor, gpu]) == []
    # a model on two ranks: three generators are six actors, the memory is one
    assert unplaceable(config, [gpu, editor, gpu], 2) == ["editor 1 of 1", "generation 3 of 3"]
    two = NodeFacts(2, 0, {"CPU": 2}, {"errata.io/group": "editor"})
    assert unplaceable(config, [gpu, two, gpu, gpu], 2) == []


def _config(tmp_path: Path, **changes) -> Path:
    import yaml

    data = {
        "model": {"name": str(save_tiny(tmp_path / "model", layers=4))},
        "editor": {"type": "alphaedit", "layers": [1, 2]},
        "stream": {"path": ""},
        "covariance": {"tokens": 100},
        "memory": {"embedder": {"type": "hash"}},
        **changes,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_command_passes_where_all_is_well_and_prints_json(tmp_path):
    path = _config(tmp_path)
    done = CliRunner().invoke(app, ["doctor", str(path), "--output", str(tmp_path / "run"), "--json"])
    told = json.loads(done.output)
    assert done.exit_code == 0 and told["ok"] is True
    states = {check["check"]: check["state"] for check in told["checks"]}
    assert set(states) == {"versions", "storage", "redis", "model", "embedder", "mlflow", "ray", "ray's token", "gpu"}
    assert states["model"] == states["embedder"] == "ok" and states["redis"] == "skip"


def test_the_command_fails_where_something_does(tmp_path):
    path = _config(tmp_path, editor={"type": "alphaedit", "layers": [1, 99]})
    done = CliRunner().invoke(app, ["doctor", str(path), "--output", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "FAIL  model" in done.output and "layer 99" in done.output


def test_without_a_configuration_the_machine_is_looked_at(tmp_path):
    names = [name for name, _ in doctor.checks_of(None, output=tmp_path)]
    assert names[:2] == ["versions", "storage"] and "gpu" in names


def test_a_gpu_is_wanted_where_a_role_computes_on_one(tmp_path):
    config = RunConfig.model_validate(
        {
            "model": {"name": "x"},
            "editor": {"type": "memit", "layers": [1]},
            "stream": {"path": ""},
            "covariance": {"tokens": 1},
            "ray": {"editor": {"device": "cuda", "num_gpus": 1}},
        }
    )
    assert doctor.gpus(RayConfig())[0] == "skip"
    state, said = doctor.gpus(config.ray)
    assert state == doctor.local_gpus()[0].replace("skip", "fail") and (state == "ok" or "editor" in said)


@pytest.mark.parametrize(
    ("address", "environment", "state", "said"),
    [
        ("local", {}, "ok", "this machine only"),
        ("local", {"RAY_AUTH_MODE": "disabled"}, "warning", "may run code as this user"),
        ("auto", {}, "warning", "RAY_AUTH_MODE=token"),
        ("auto", {"RAY_AUTH_MODE": "token"}, "fail", "RAY_AUTH_TOKEN is not set"),
        ("auto", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 64}, "ok", "given"),
        ("auto", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/token"}, "ok", "given"),
    ],
)
def test_a_ray_without_a_token_is_told_of(address: str, environment: dict[str, str], state: str, said: str) -> None:
    found, text = doctor.ray_token(RayConfig(address=address), environment)
    assert found == state and said in text
