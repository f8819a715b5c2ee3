"""Running programs that a language model wrote: in a process of their own, behind walls, with everything limited.

Two strengths, of which ``auto`` takes the first that the machine permits:

* ``namespaces``: the program sees no process but its own, no network device but a loopback that is down, and a file
  system that holds the interpreter and the system's libraries, read-only, and an empty ``/tmp`` in memory. When it
  ends, whatever it started ends.
* ``limits`` (where namespaces are not permitted, as in many containers): no sockets and no child processes (seccomp),
  an empty temporary directory and nothing else of the file system (Landlock, Linux 5.13 or newer; without it the
  user's own rights decide, which is said in a warning). It shares the machine's processes and mounts.

In both: another user where the caller is root, no capabilities, no way to gain rights, a filter of system calls, and
limits on wall time, CPU time, memory, file size, open files and processes. The environment is empty, standard input
and output are ``/dev/null``. A program passes if it runs to its end: leaving early with status 0 does not pass.

Not promised: safety against a hole in the kernel, or that a program which looks for the harness in its own memory
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
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.errors import ErrataError, UserError

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
    """All files together, MiB (``namespaces`` only)."""
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
                    rest = "" if guarded else "; what it may read and write outside its directory is up to user rights"
                    logger.warning(
                        "no namespaces for generated programs (%s): system call filter and limits%s", reasons[0], rest
                    )
                return strength, guarded
            reasons.append(f"{strength}: {report['detail']}")
        raise UserError(f"no sandbox of strength {wanted!r} on this machine ({'; '.join(reasons)})")

    def _ask(self, program: str, strength: str) -> dict[str, Any]:
        place = tempfile.mkdtemp(prefix="errata-sandbox-")
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
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(_JAIL)],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                env={},
                cwd="/",
                start_new_session=True,
                timeout=self.config.seconds + _GRACE_SECONDS,
                check=False,
            )
            report: dict[str, Any] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            # the keeper was killed, and with it what it kept
            return {"status": "timeout", "detail": "the sandbox did not answer"}
        except ValueError:
            return {"status": "unavailable", "detail": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return report
