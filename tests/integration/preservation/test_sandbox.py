"""What a generated program cannot do, in both strengths; each attempt is bounded should a wall be missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from errata.editing.errors import UserError
from errata.evaluation.preservation import jail as jail_module
from errata.evaluation.preservation import sandbox as sandbox_module
from errata.evaluation.preservation.sandbox import Sandbox, SandboxConfig
from tests.helpers.sandboxes import sandbox_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is for Linux")

LIMITS = SandboxConfig(seconds=30, cpu_seconds=1, memory_mb=512, file_mb=2, disk_mb=8)


@pytest.fixture(scope="module", params=["namespaces", "limits"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(LIMITS, request.param)


@pytest.fixture
def secret() -> Iterator[str]:
    os.environ["ERRATA_TEST_SECRET"] = "hush"
    yield "ERRATA_TEST_SECRET"
    del os.environ["ERRATA_TEST_SECRET"]


def test_a_right_program_passes_and_a_wrong_one_fails(sandbox: Sandbox) -> None:
    right = "import collections, hashlib, math\ndef f(x):\n    return x + 1\nassert f(1) == 2"
    assert sandbox.run(right).passed
    verdict = sandbox.run("def f(x):\n    return x\nassert f(1) == 2, 'off by one'")
    assert (verdict.status, verdict.detail) == ("failed", "AssertionError: off by one")
    assert sandbox.run("def f(:").detail.startswith("SyntaxError")


@pytest.mark.parametrize("leave", ["import os\nos._exit(0)", "raise SystemExit(0)", "import sys\nsys.exit()"])
def test_leaving_early_is_not_passing(sandbox: Sandbox, leave: str) -> None:
    assert sandbox.run(leave).status == "failed"


def test_an_endless_loop_is_stopped(sandbox: Sandbox) -> None:
    started = time.monotonic()
    verdict = sandbox.run("while True:\n    pass")
    assert verdict.status == "timeout" and "CPU" in verdict.detail
    assert time.monotonic() - started < 60


def test_sleeping_is_stopped_even_with_the_way_to_the_keeper_closed(sandbox: Sandbox) -> None:
    quick = Sandbox(sandbox.config.model_copy(update={"seconds": 1.0}))
    verdict = quick.run("import os, time\nos.closerange(0, 64)\ntime.sleep(60)")
    assert verdict.status == "timeout" and "1.0 s" in verdict.detail


def test_a_fork_bomb_goes_nowhere(sandbox: Sandbox) -> None:
    before = len(psutil.pids())
    bomb = "import os, time\nfor _ in range(4):\n    os.fork()\ntime.sleep(2)"  # sixteen, if nothing stopped it
    verdict = sandbox.run(bomb)
    assert verdict.status == "failed" and verdict.detail.startswith(("PermissionError", "BlockingIOError"))
    assert sandbox.run("import threading\nthreading.Thread(target=print).start()").status == "failed"
    assert len(psutil.pids()) < before + 12
    assert sandbox.run("import subprocess\nsubprocess.run(['/bin/true'])").status == "failed"


def test_children_are_counted_and_end_with_the_program() -> None:
    try:
        sandbox = Sandbox(LIMITS.model_copy(update={"strength": "namespaces", "processes": 2}))
    except UserError as error:
        pytest.skip(str(error))
    bomb = (
        "import os, time\nmade = 0\ntry:\n    for _ in range(6):\n        if os.fork() == 0:\n"
        "            time.sleep(77)\n        made += 1\nexcept OSError:\n    raise RuntimeError(made)"
    )
    started = time.monotonic()
    assert sandbox.run(bomb).detail == "RuntimeError: 2"
    assert time.monotonic() - started < 60  # the sleepers did not hold it up
    grandchild = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(77)"
    assert sandbox.run(grandchild).passed
    jailed = [
        p for p in psutil.process_iter(["cmdline", "ppid"]) if any("jail.py" in c for c in p.info["cmdline"] or [])
    ]
    assert not [p for p in jailed if p.info["ppid"] in (1, os.getpid())]


def test_nothing_is_written_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    target = tmp_path / "out.txt"
    for path in (target, Path("/errata-out"), Path(sys.base_prefix) / "lib" / "errata-out"):
        verdict = sandbox.run(f"open({str(path)!r}, 'w').write('x')")
        assert verdict.status == "failed" and not path.exists(), path
    assert sandbox.run("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'").passed
    assert sandbox.run("import os\nassert os.listdir('.') == []").passed  # nothing is left of an earlier one
    assert "File too large" in sandbox.run("open('big', 'wb').write(bytes(5 << 20))").detail


def test_files_of_the_machine_are_not_read(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "private").write_text("x")
    for path in (tmp_path / "private", Path(__file__).resolve(), Path("/etc/passwd")):
        assert sandbox.run(f"open({str(path)!r}).read()").status == "failed", path


def test_there_is_no_network(sandbox: Sandbox) -> None:
    for kind in ("AF_INET, socket.SOCK_STREAM", "AF_INET, socket.SOCK_DGRAM", "AF_UNIX, socket.SOCK_STREAM"):
        verdict = sandbox.run(f"import socket\nsocket.socket(socket.{kind})")
        assert verdict.detail.startswith("PermissionError"), kind


def test_the_environment_stays_outside(sandbox: Sandbox, secret: str) -> None:
    assert sandbox.run(f"import os\nassert {secret!r} not in os.environ").passed
    reading = "import os\nopen(f'/proc/{{}}/environ'.format({})).read()"
    for process in ("os.getppid()", str(os.getpid()), "'self'"):
        assert sandbox.run(reading.format(process)).status == "failed"


def test_other_processes_get_no_signal_and_memory_ends(sandbox: Sandbox) -> None:
    assert sandbox.run(f"import os\nos.kill({os.getpid()}, 0)").detail.startswith("PermissionError")
    assert sandbox.run("x = bytearray(1 << 30)").detail.startswith("MemoryError")
    assert sandbox.run("import ctypes\nctypes.string_at(0)").detail == "ended by SIGSEGV"


def test_no_way_back_to_rights(sandbox: Sandbox) -> None:
    status = sandbox.run("import os\nos.setuid(0)\nos.listdir('/proc/1')").status
    assert status == "failed"
    new_space = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x10000000) == 0"
    assert sandbox.run(new_space).status == "failed"


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="takes root to become another")
@pytest.mark.parametrize("mode", ["namespaces", "limits"])
def test_without_root_too(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = 65534
    with tempfile.TemporaryDirectory() as place:  # not below pytest's own, which is closed to other users
        jail = Path(place) / "jail.py"
        jail.write_text(Path(jail_module.__file__).read_text())
        os.chown(place, nobody, nobody)
        monkeypatch.setattr(sandbox_module, "_JAIL", jail)
        monkeypatch.setattr(os, "geteuid", lambda: nobody)
        monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
        try:
            command = sandbox_module._command(mode, 8)
        except OSError as error:
            pytest.skip(str(error))
        monkeypatch.undo()

        def run(program: str) -> dict[str, str]:
            job = {"program": program, "mode": mode, "place": place, "user": 1}
            job["limits"] = LIMITS.model_dump(exclude={"strength"})
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                user=nobody,
                group=nobody,
                extra_groups=[],
                cwd="/",
            )
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            with process, process.stdin, process.stdout, process.stderr:
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                said, problem = process.stdout.read(), process.stderr.read()
            if not said:
                return {"status": "unavailable", "detail": problem.decode()}
            found: dict[str, str] = json.loads(said)
            return found

        first = run("assert 1 + 1 == 2")
        if first["status"] == "unavailable":
            pytest.skip(first["detail"])
        assert first["status"] == "passed"
        assert run("import os\nos.fork()")["status"] == "failed"
        assert run("import socket\nsocket.socket()")["status"] == "failed"
        assert run("open('/tmp/../errata-out', 'w')")["status"] == "failed"
        assert run(f"import os\nopen('/proc/{os.getpid()}/environ').read()")["status"] == "failed"
        assert run("import os\nassert os.getuid() == 65534\nos.setuid(0)")["status"] == "failed"


def test_many_at_once_keep_their_order() -> None:
    verdicts = Sandbox(LIMITS).run_all([f"assert {n} % 2 == 0" for n in range(6)], parallel=2)
    assert [v.passed for v in verdicts] == [True, False] * 3


def test_a_strength_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux, this is darwin"):
        Sandbox()
