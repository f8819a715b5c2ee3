"""Running programs that a language model wrote: in a process of their own, behind walls, with everything limited.

Two strengths, of which ``auto`` takes the first that the machine permits:

* ``namespaces``, made by bubblewrap (``bwrap``, where it is installed and works): the program sees no process but its
  own, no network device but a loopback that is down, and a file system that holds the interpreter and the system's
  libraries, read-only, and an empty ``/tmp`` in memory. When it ends, whatever it started ends.
* ``limits`` (where there is no bubblewrap, or namespaces are not permitted, as in many containers): an empty temporary
  directory and nothing else of the file system (Landlock, Linux 5.13 or newer; without it the program may write
  nowhere and reads what the user may read, which is said in a warning). It shares the machine's processes and mounts.

In both: another user where the caller is root, no capabilities, no way to gain rights, and limits on wall time, CPU
time, memory, file size, open files, all files together and processes. Of system calls those pass that are on a list;
of some only with arguments that do no harm: no owner or signal of a descriptor (fcntl), no limits (prlimit), no control
of devices (ioctl); modes, times and owners of files, process controls (prctl) and signals are not on the list. A file
once made cannot be renamed or removed, and there are no directories to be made. Disk is looked at fifty times a second,
and what is written between two looks comes on top of its limit. The environment is empty, standard input and output
are ``/dev/null``. A program ends with whoever wanted its verdict, and cannot prevent that.

A program passes if it runs to its end: leaving early with status 0 does not pass, and the proof of having ended is
nowhere among a program's names, objects and descriptors. Each of these sentences is a test
(``tests/integration/preservation/test_escapes.py``).

Not promised: safety against a hole in the kernel, or that a program which searches its own raw memory (``ctypes``)
cannot claim to have passed. Linux on x86-64 and ARM64 only.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.errors import ErrataError, UserError
from errata.evaluation.preservation.jail import DEVICES, visible

logger = logging.getLogger(__name__)

Strength = Literal["auto", "namespaces", "limits"]
_JAIL = Path(__file__).with_name("jail.py")
_GRACE_SECONDS = 10.0
"""For starting an interpreter on a busy machine; not part of a program's time."""
_FIRST_USER = 0x70000000
"""User numbers that no system hands out; each run takes one of its own, so that processes are counted apart."""


class SandboxConfig(Closed):
    """Limits of one program."""

    strength: Strength = "auto"
    """``namespaces`` and ``limits`` refuse to run where they cannot be had."""
    seconds: float = Field(10.0, gt=0, le=3600)
    """Wall time."""
    cpu_seconds: int = Field(10, ge=1)
    """CPU time of each process."""
    memory_mb: int = Field(1024, ge=64)
    """Address space of each process, MiB."""
    file_mb: int = Field(4, ge=0)
    """Largest file, MiB."""
    disk_mb: int = Field(16, ge=1)
    """All files together, MiB."""
    open_files: int = Field(32, ge=8)
    processes: int = Field(0, ge=0, le=64)
    """Child processes and threads beside the program itself (``namespaces`` only; none in ``limits``)."""


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended."""

    status: Literal["passed", "failed", "timeout"]
    detail: str
    """The exception, the signal, or empty."""
    seconds: float

    @property
    def passed(self) -> bool:
        """It ran to its end."""
        return self.status == "passed"


class Sandbox:
    """Runs programs; several threads may use one.

    Raises:
        UserError: the configured strength cannot be had on this machine; the message says what is missing.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self.strength, self.files_guarded = self._choose()

    def run(self, program: str) -> ProgramResult:
        """Run a Python program as ``__main__`` and say how it ended.

        Raises:
            ErrataError: the sandbox itself failed; nothing is known about the program then.
        """
        started = time.perf_counter()
        report = self._ask(program, self.strength)
        if report["status"] == "unavailable":
            raise ErrataError(f"the sandbox ({self.strength}) could not be built: {report['detail']}")
        return ProgramResult(report["status"], report["detail"], time.perf_counter() - started)

    def run_all(self, programs: Sequence[str], *, parallel: int = 1) -> list[ProgramResult]:
        """``run`` for each, in order, ``parallel`` at a time."""
        with ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
            return list(pool.map(self.run, programs))

    def _choose(self) -> tuple[Literal["namespaces", "limits"], bool]:
        if not sys.platform.startswith("linux"):
            raise UserError(f"the sandbox for generated programs needs Linux, this is {sys.platform}")
        wanted = self.config.strength
        tries: list[Literal["namespaces", "limits"]] = ["namespaces", "limits"] if wanted == "auto" else [wanted]
        reasons: list[str] = []
        for strength in tries:
            report = self._ask("", strength)
            if report["status"] == "passed":
                guarded = strength == "namespaces" or bool(report.get("landlock"))
                if reasons:
                    rest = "" if guarded else "; they may write nowhere, and read what the user may"
                    logger.warning(
                        "no namespaces for generated programs (%s): filter of system calls and limits%s",
                        reasons[0],
                        rest,
                    )
                return strength, guarded
            reasons.append(f"{strength}: {report['detail']}")
        raise UserError(f"no sandbox of strength {wanted!r} on this machine ({'; '.join(reasons)})")

    def _ask(self, program: str, strength: str) -> dict[str, Any]:
        place, problem = tempfile.mkdtemp(prefix="errata-sandbox-"), ""
        user = _FIRST_USER + secrets.randbelow(1 << 24)
        if strength == "limits" and os.geteuid() == 0:
            os.chown(place, user, user)
        job = {
            "program": program,
            "token": secrets.token_hex(16),
            "mode": strength,
            "place": place,
            "user": user,
            "limits": self.config.model_dump(exclude={"strength"}),
        }
        try:
            said, problem = _verdict_of(_command(strength, self.config.disk_mb), json.dumps(job), self.config.seconds)
            report: dict[str, Any] = json.loads(said)
        except TimeoutError:
            # the keeper was killed, and with it what it kept
            return {"status": "timeout", "detail": "the sandbox did not answer"}
        except OSError as error:
            return {"status": "unavailable", "detail": str(error)}
        except ValueError:
            return {"status": "unavailable", "detail": (problem.strip().splitlines() or ["no answer"])[-1]}
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return report


def _verdict_of(command: Sequence[str], job: str, seconds: float) -> tuple[str, str]:
    """What a keeper prints and complains of; it ends with its standard input, and so with this process.

    Raises:
        TimeoutError: it did not answer within the program's time and some more.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds + _GRACE_SECONDS, give_up)
    timer.start()
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        with process.stdin, process.stdout, process.stderr:
            try:
                process.stdin.write(job.encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended; what it says tells why
            said, problem = process.stdout.read(), process.stderr.read()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    if late.is_set():
        raise TimeoutError
    return said.decode(errors="replace"), problem.decode(errors="replace")


def _command(strength: str, megabytes: int) -> list[str]:
    """How the keeper is started.

    Raises:
        OSError: bubblewrap is wanted and not installed.
    """
    interpreter = os.path.realpath(sys.executable)
    if strength == "limits":
        return [interpreter, "-I", "-S", str(_JAIL)]
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bubblewrap (bwrap) is not installed")
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        # the keeper gives the program a user of its own, takes rights from it, and ends it
        kept = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SETPCAP")
        rights = ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
    else:
        rights = ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    shown: list[str] = []
    for path in visible():
        # bubblewrap would make them for itself alone
        above = [str(parent) for parent in reversed(Path(path).parents) if str(parent) != "/"]
        shown += [word for parent in above for word in ("--perms", "0755", "--dir", parent)]
        if os.path.islink(path):
            shown += ["--symlink", os.readlink(path), path]
        else:
            shown += ["--dev-bind" if path in DEVICES else "--ro-bind", path, path]
    return [
        program, *spaces, *rights, "--die-with-parent", "--as-pid-1", "--new-session", *shown,
        "--size", str((megabytes + 1) << 20), "--perms", "1777", "--tmpfs", "/tmp",
        "--ro-bind", str(_JAIL), "/jail.py", "--remount-ro", "/", "--chdir", "/tmp",
        interpreter, "-I", "-S", "/jail.py",
    ]  # fmt: skip
