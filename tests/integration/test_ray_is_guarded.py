"""A Ray that a run starts listens to this machine only, and answers nobody without its token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STARTS = """
import json, os, subprocess, sys
import psutil, ray
from errata.actors.connection import connect
from errata.actors.settings import RayConfig

connect(RayConfig())

@ray.remote
class Actor:
    def mode(self):
        return os.environ["RAY_AUTH_MODE"]

mode = ray.get(Actor.remote().mode.remote())
own = psutil.Process()
listening = []
for process in (own, *own.children(recursive=True)):
    listening += [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
address = ray.get_runtime_context().gcs_address
ASKS = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))"

def asked(**token):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", ASKS, address]
    done = subprocess.run(command, env=environment | token, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout.strip()

own_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
print(json.dumps({
    "mode": mode,
    "listening": sorted(set(listening)),
    "without": asked(RAY_AUTH_MODE="disabled"),
    "wrong": asked(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
    "right": asked(**own_token),
    "constant": ray._private.ray_constants.ENABLE_RAY_CLUSTER,
}))
"""


def test_a_local_ray_is_on_loopback_and_wants_a_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path / "nowhere")  # no file of a home directory is needed, or made
    done = subprocess.run([sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["mode"] == "token"
    assert len(found["listening"]) >= 1
    assert {ip.removeprefix("::ffff:") for ip in found["listening"]} <= {"127.0.0.1", "::1"}, found["listening"]
    assert found["right"] == [0, "1"], found
    assert found["without"][0] != 0 and found["wrong"][0] != 0, found
    assert found["constant"] is True, "another cluster may be joined from this process afterwards"
    assert not (tmp_path / "nowhere").exists()
