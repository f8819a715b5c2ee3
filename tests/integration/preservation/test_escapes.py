"""An escape corpus: what programs have tried against the sandbox, each in both strengths. A new hole is a new line.

Every attempt is harmless should a wall be missing: it aims at a process, a file or a directory of the test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from errata.evaluation.preservation.jail import _filter_of
from errata.evaluation.preservation.sandbox import Sandbox, SandboxConfig
from tests.helpers.sandboxes import sandbox_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is for Linux")

LIMITS = SandboxConfig(seconds=20, cpu_seconds=5, memory_mb=512, file_mb=4, disk_mb=16)
CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
"""


@pytest.fixture(scope="module", params=["namespaces", "limits"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(LIMITS, request.param)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another session that has nothing to do with it."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that anybody may change, in a directory that anybody may write to."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.owner() == Path.home().owner():
            folder.chmod(folder.stat().st_mode | 0o755)
    tmp_path.chmod(0o777)
    file = tmp_path / "outside.txt"
    file.write_text("as it was")
    file.chmod(0o666)
    return file


# ---------------------------------------------------------------- other processes

SIGNALS = {
    "kill": "os.kill(PID, 9)",
    "the group": "os.killpg(PID, 9)",
    "a queued signal": CALL + "call('sigqueue', PID, 9, 0)",
    "a thread's signal": CALL + "call('syscall', 234, PID, PID, 9)",
    "a descriptor's owner and signal (F_SETSIG)": (
        "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, PID)\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
    ),
    "F_SETSIG alone": "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9)",
    "F_SETOWN_EX": "import fcntl, struct\nr, w = os.pipe()\nfcntl.fcntl(r, 15, struct.pack('ii', 1, PID))",
    "the owner by ioctl (FIOSETOWN)": (
        "import fcntl, struct\nr, w = os.pipe()\nfcntl.ioctl(r, 0x8901, struct.pack('i', PID))"
    ),
    "pidfd": CALL + "call('syscall', 434, PID, 0)",
    "ptrace": CALL + "call('ptrace', 16, PID, 0, 0)",
    "its limits (prlimit)": "import resource\nresource.prlimit(PID, resource.RLIMIT_NOFILE, (8, 8))",
    "its priority": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "its processors": "os.sched_setaffinity(PID, {0})",
    "its memory": "open('/proc/PID/mem', 'r+b')".replace("PID", "%d' % PID + '"),
}


@pytest.mark.parametrize("attempt", SIGNALS)
def test_nothing_reaches_another_process(sandbox: Sandbox, victim: subprocess.Popen[bytes], attempt: str) -> None:
    seen = psutil.Process(victim.pid)
    before = (seen.nice(), seen.cpu_affinity(), seen.rlimit(psutil.RLIMIT_NOFILE))
    verdict = sandbox.run(f"import os\nPID = {victim.pid}\n{SIGNALS[attempt]}")
    assert verdict.status == "failed", attempt
    assert victim.poll() is None
    assert (seen.nice(), seen.cpu_affinity(), seen.rlimit(psutil.RLIMIT_NOFILE)) == before


RIGHTS = {
    "its own limits up": "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))",
    "its own limits by prlimit": "import resource\nresource.prlimit(0, resource.RLIMIT_CPU, (1, 1))",
    "its parent's death unnoticed (prctl)": CALL + "call('prctl', 1, 0, 0, 0, 0)",
    "a keyring": CALL + "call('syscall', 248, b'user', b'x', b'y', 1, -2)",
    "a file without a name": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "a file in memory": "os.memfd_create('x')",
    "a namespace": CALL + "call('unshare', 0x10000000)",
    "a mount": CALL + "call('mount', b'none', b'.', b'tmpfs', 0, None)",
    "the performance counters": CALL + "call('syscall', 298, 0, 0, -1, -1, 0)",
    "io_uring": CALL + "call('syscall', 425, 1, 0)",
    "bpf": CALL + "call('syscall', 321, 0, 0, 0)",
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "a process": "os.fork()",
    "another program": "os.execv('/usr/bin/true', ['true'])",
    "a socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a pair of sockets": "import socket\nsocket.socketpair()",
    "a terminal's input (TIOCSTI)": "import fcntl\nfcntl.ioctl(0, 0x5412, b'x')",
    "shared memory": CALL + "call('shmget', 0, 4096, 0o1600)",
    "a larger file than it may": "open('x', 'wb').write(bytes(5 << 20))",
    "a directory": "os.mkdir('x')",
    "a name taken away": "open('x', 'w').close()\nos.unlink('x')",
}


@pytest.mark.parametrize("attempt", RIGHTS)
def test_nothing_is_gained(sandbox: Sandbox, attempt: str) -> None:
    assert sandbox.run(f"import os\n{RIGHTS[attempt]}").status == "failed", attempt


# ---------------------------------------------------------------- files

FILES = {
    "its mode": "os.chmod(PATH, 0o600)",
    "its mode by a descriptor": "os.fchmod(os.open(PATH, os.O_RDONLY), 0o600)",
    "its times": "os.utime(PATH, (1, 1))",
    "its owner": "os.chown(PATH, os.getuid(), os.getgid())",
    "its attributes": "os.setxattr(PATH, 'user.x', b'y')",
    "its content": "open(PATH, 'w').write('changed')",
    "its end": "os.truncate(PATH, 0)",
    "its name": "os.rename(PATH, PATH + '2')",
    "its place": "os.unlink(PATH)",
    "a link to it": "os.link(PATH, 'mine')",
    "a link beside it": "os.symlink('/etc/passwd', PATH + '2')",
    "a file beside it": "open(PATH + '2', 'w').write('x')",
    "a directory beside it": "os.mkdir(PATH + '2')",
    "a pipe beside it": "os.mkfifo(PATH + '2')",
    "its reading": "open(PATH).read()",
}


@pytest.mark.parametrize("attempt", FILES)
def test_nothing_outside_is_changed_or_read(sandbox: Sandbox, outside: Path, attempt: str) -> None:
    def look() -> tuple[object, ...]:
        told = outside.stat()
        return sorted(outside.parent.iterdir()), told.st_mode, told.st_mtime_ns, told.st_uid, outside.read_text()

    before = look()
    verdict = sandbox.run(f"import os\nPATH = {str(outside)!r}\n{FILES[attempt]}")
    assert verdict.status == "failed" and look() == before, attempt


def test_all_files_together_are_bounded(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    kept: list[int] = []
    remove = shutil.rmtree

    def count(path: str, **options: bool) -> None:
        kept.append(sum(file.stat().st_blocks * 512 for file in Path(path).rglob("*") if file.is_file()))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", count)
    verdict = sandbox.run("for n in range(133):\n    open(str(n), 'wb').write(bytes(4 << 20))")
    assert verdict.status == "failed" and verdict.detail in (
        "more than 16 MiB of files", "OSError: [Errno 28] No space left on device"
    )  # fmt: skip
    # it wanted 532 MiB; what it writes between two looks comes on top of the 16
    assert kept[-1] < 300 << 20
    assert sandbox.run("for n in range(3000):\n    open(str(n), 'w').close()").status == "failed"


# ---------------------------------------------------------------- the verdict

FORGERIES = {
    "leaving with 0": "os._exit(0)",
    "writing what it finds in frames": """
        import sys
        frame = sys._getframe()
        while frame:
            for value in frame.f_locals.values():
                if isinstance(value, (bytes, str)):
                    for fd in range(32):
                        try: os.write(fd, value if isinstance(value, bytes) else value.encode())
                        except OSError: pass
            frame = frame.f_back
        os._exit(0)""",
    "writing what the collector knows": """
        import gc
        seen = set()
        for thing in gc.get_objects():
            for value in [thing, *gc.get_referents(thing)]:
                if isinstance(value, (bytes, str)) and 8 <= len(value) <= 64 and value not in seen:
                    seen.add(value)
                    try: os.write(3, value if isinstance(value, bytes) else value.encode())
                    except OSError: pass
        os._exit(0)""",
    "reading the proof itself": """
        for fd in range(3, 32):
            try: os.write(3, os.read(fd, 64))
            except OSError: pass
        os._exit(0)""",
    "a verdict of its own": """
        for fd in range(32):
            try: os.write(fd, b'{"status": "passed", "detail": ""}\\n')
            except OSError: pass
        os._exit(0)""",
    "the keeper's output": """
        os.write(os.open('/proc/%d/fd/1' % os.getppid(), os.O_WRONLY), b'{"status": "passed", "detail": ""}')""",
    "another way to write": """
        real = os.write
        os.write = lambda fd, data: real(fd, data[:32])
        raise ValueError""",
    "listening to calls": """
        import sys
        heard = []
        sys.setprofile(lambda frame, event, argument: heard.append(argument))
        def last():
            pass
        last()
        sys.setprofile(None)
        for thing in heard:
            if isinstance(thing, bytes):
                os.write(3, thing)
        raise SystemExit(0)""",
    "leaving by an exception": "raise SystemExit(0)",
}


@pytest.mark.parametrize("attempt", FORGERIES)
def test_a_verdict_is_not_forged(sandbox: Sandbox, attempt: str) -> None:
    verdict = sandbox.run("import os\n" + textwrap.dedent(FORGERIES[attempt]))
    assert verdict.status == "failed", (attempt, verdict)


# ---------------------------------------------------------------- death

PARENT = """
import sys
from errata.evaluation.preservation.sandbox import Sandbox, SandboxConfig
sandbox = Sandbox(SandboxConfig(strength={strength!r}, seconds=300, cpu_seconds=300))
print("ready", flush=True)
sandbox.run({program!r})
"""
HOLDS_ON = """
import ctypes, os, signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # do not tell me of my parent's death
while True: time.sleep(0.05)
"""


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize("who", ["the parent", "the keeper"])
def test_a_program_does_not_outlive_whoever_wanted_its_verdict(sandbox: Sandbox, who: str) -> None:
    text = PARENT.format(strength=sandbox.strength, program=HOLDS_ON)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"

        def below() -> list[psutil.Process]:
            return psutil.Process(parent.pid).children(recursive=True)

        least = 2 if sandbox.strength == "limits" else 3
        assert eventually(lambda: len(below()) >= least), "keeper and tenant are there"
        jailed = below()
        (parent if who == "the parent" else jailed[0]).send_signal(signal.SIGKILL)
        if who == "the parent":
            parent.wait(20)
        assert eventually(lambda: not [p for p in jailed if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
    finally:
        parent.kill()
        parent.wait()


# ---------------------------------------------------------------- the filter itself


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("alone", [True, False])
def test_the_filter_allows_what_is_listed_and_nothing_else(column: int, alone: bool) -> None:
    """By a machine of its own: the filter is a program of a few instructions, whose meaning is documented."""
    import struct

    program = [struct.unpack("=HBBI", step) for step in _steps(_filter_of(column, 7, alone, True))]

    def runs(number: int, *arguments: int, audit: int = 7) -> bool:
        data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
        at, held = 0, 0
        while True:
            code, yes, no, value = program[at]
            at += 1
            if code == 0x20:
                held = struct.unpack_from("=I", data, value)[0]
            elif code == 0x06:
                return value == 0x7FFF0000
            else:
                true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
                at += yes if true else no

    read, write, kill, fcntl, ioctl, prlimit, openat = (pair[column] for pair in (
        (0, 63), (1, 64), (62, 129), (72, 25), (16, 29), (302, 261), (257, 56),
    ))  # fmt: skip
    assert runs(read) and runs(write) and runs(kill) is not alone
    assert not runs(read, audit=8) and not runs(0x40000000 | read)
    assert runs(fcntl, 3, 1) and runs(fcntl, 3, 1030) and not runs(fcntl, 3, 8) and not runs(fcntl, 3, 10)
    assert runs(ioctl, 1, 0x5401) and not runs(ioctl, 1, 0x5412)
    assert runs(prlimit, 0, 7, 0, 99) and not runs(prlimit, 0, 7, 99, 0) and not runs(prlimit, 5, 7, 0, 99)
    assert not runs(prlimit, 0, 7, 1 << 32, 0), "an address above four gigabytes is one too"
    assert runs(openat, 0, 0, 0) and runs(openat, 0, 0, 0o102) and not runs(openat, 0, 0, 0o20000000)
    allowed = sum(runs(number) for number in range(600))
    assert 55 <= allowed <= 100, allowed


def test_without_landlock_nothing_is_opened_for_writing() -> None:
    assert os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC == 0o1 | 0o2 | 0o100 | 0o1000
    assert _filter_of(0, 7, True, True) != _filter_of(0, 7, True, False)


def _steps(program: bytes) -> list[bytes]:
    return [program[at : at + 8] for at in range(0, len(program), 8)]
