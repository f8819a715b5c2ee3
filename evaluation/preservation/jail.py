"""The inside of the sandbox: one program, one process, as little of the machine as the kernel lets us take away.

Run as ``python -I -S jail.py``; the first line of standard input is a job (JSON), and the job goes on while standard
input is open: its end is the end of whoever wanted the verdict, and of the program. Prints a verdict (JSON). Standard
library only: it starts in an interpreter without site-packages. ``sandbox.py`` is the way to use it and says what is
promised.

Two processes: the *keeper* makes the walls, watches time, disk and its parent, and reports; its child, the *tenant*,
runs the program. In mode ``namespaces`` both are inside bubblewrap's namespaces already, and the keeper is process 1
there, so that its end is the end of whatever the program started.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)

# --- kernel numbers (linux/prctl.h, seccomp.h, landlock.h, fcntl.h, asm-generic/ioctls.h) ---

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAP_VERSION_3 = 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
NEW_SPACES = 0x7E020000 | 0x80
"""Flags of clone that make namespaces of any kind."""
O_WRITES, O_UNNAMED = 0o1 | 0o2 | 0o100 | 0o1000, 0o20000000
"""Flags of open that write, create or cut off; and the one that makes a file without a name, for none to count."""

_ARCH = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_ABSENT = 1 << 20
_CLONE3 = 435
# What a solution of a programming exercise needs, by (x86_64, aarch64); whatever is not here fails with EPERM.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233),
    "dup": (32, 23), "nanosleep": (35, 101), "getitimer": (36, 102), "setitimer": (38, 103), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "ftruncate": (77, 46), "getcwd": (79, 17), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "set_tid_address": (218, 96), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24),
    "pipe2": (293, 59), "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436),
    "faccessat2": (439, 439),
    # x86-64 keeps the older forms beside these
    "stat": (4, _ABSENT), "lstat": (6, _ABSENT), "poll": (7, _ABSENT), "access": (21, _ABSENT),
    "pipe": (22, _ABSENT), "select": (23, _ABSENT), "dup2": (33, _ABSENT), "readlink": (89, _ABSENT),
    "arch_prctl": (158, _ABSENT), "time": (201, _ABSENT),
}  # fmt: skip
_FOR_CHILDREN = {
    "kill": (62, 129), "tgkill": (234, 131), "execve": (59, 221), "wait4": (61, 260), "waitid": (247, 95),
    "setpgid": (109, 154), "setsid": (112, 157), "fork": (57, _ABSENT), "vfork": (58, _ABSENT),
}  # fmt: skip
# Calls of which only some do no harm: which argument says so, and the values that may pass.
_FCNTL, _IOCTL, _PRLIMIT, _OPENAT, _OPEN, _CLONE = (72, 25), (16, 29), (302, 261), (257, 56), (2, _ABSENT), (56, 220)
_HARMLESS_FCNTL = (0, 1, 2, 3, 4, 1030)
"""Copies of a descriptor and its flags. Not the owner and the signal of a descriptor, leases and notices."""
_HARMLESS_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Whether it is a terminal and how large, how much can be read, non-blocking, close-on-exec."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MOST_ANSWER = 4096
_MOST_FILES = 1024
_LOOK_SECONDS = 0.02
"""How often the files are counted; what is written between two looks comes on top of the limit."""


class Unavailable(Exception):
    """The kernel or this container does not permit what the mode needs."""


def _call(name: str, *args: Any) -> int:
    result = getattr(LIBC, name)(*args)
    if result < 0:
        error = ctypes.get_errno()
        raise Unavailable(f"{name}: {os.strerror(error)}")
    return int(result)


def _syscall(name: str, number: int, *args: Any) -> int:
    result = LIBC.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise Unavailable(f"{name}: {os.strerror(ctypes.get_errno())}")
    return int(result)


def _arch() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _ARCH:
        raise Unavailable(f"no table of system calls for {machine}")
    return _ARCH[machine]


# --- the file system ---


def visible() -> list[str]:
    """What the program may read: the interpreter, the system's libraries, three devices."""
    prefixes = dict.fromkeys(os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix))
    folders = [p for p in _SYSTEM if os.path.exists(p)]
    folders += [p for p in prefixes if not any(p == s or p.startswith(s + "/") for s in _SYSTEM)]
    return folders + [p for p in (*_SYSTEM_FILES, *DEVICES) if os.path.exists(p)]


def _file_rules(writable: str) -> int | None:
    """A Landlock rule set: read what the interpreter needs, write in one place. None where the kernel has none."""
    abi = LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if abi < 1:
        return None
    refer, truncate = (1 << 13 if abi >= 2 else 0), (1 << 14 if abi >= 3 else 0)
    handled = (1 << 13) - 1 | refer | truncate
    read_file, read_dir, write_file, execute = 1 << 2, 1 << 3, 1 << 1, 1
    ruleset = _syscall("landlock", LANDLOCK_CREATE, struct.pack("=Q", handled), ctypes.c_size_t(8), ctypes.c_uint(0))
    rules = [(writable, handled)]
    for path in visible():
        if path in DEVICES:
            rules.append((path, read_file | write_file | truncate))
        else:
            rules.append((path, read_file | execute | (read_dir if os.path.isdir(path) else 0)))
    for path, allowed in rules:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, parent)
        _syscall("landlock", LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(parent)
    return ruleset


def _open_to_all(path: str) -> bool:
    """Whether every user may go there."""
    while path != "/":
        if not os.stat(path).st_mode & 1:
            return False
        path = os.path.dirname(path)
    return True


# --- rights ---


def _no_capabilities() -> None:
    for number in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)  # fails beyond the last one: no matter
    _call("capset", struct.pack("=Ii", CAP_VERSION_3, 0), bytes(24))


def _step(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026


def _argument(place: int, *, high: bool = False) -> bytes:
    return _step(_LOAD, 0, 0, 16 + 8 * place + 4 * high)


def _only_with(number: int, checks: list[bytes]) -> list[bytes]:
    """Steps for one call: checks that fall through where the call may pass, and jump two on where it may not."""
    body = [*checks, _step(_ANSWER, 0, 0, _ALLOW), _step(_ANSWER, 0, 0, _REFUSE)]
    return [_step(_EQUAL, 0, len(body), number), *body]


def _one_of(place: int, values: tuple[int, ...]) -> list[bytes]:
    """Checks that an argument is one of some values; behind them come the steps that allow and that refuse."""
    checks = [_step(_EQUAL, len(values) - 1 - i, 0 if i < len(values) - 1 else 1, v) for i, v in enumerate(values)]
    return [_argument(place), *checks]


def _filter_of(column: int, audit: int, alone: bool, writes: bool) -> bytes:
    """The filter's program: what is allowed, by number, and for some calls by their arguments."""
    load_number = _step(_LOAD, 0, 0, 0)
    steps = [_step(_LOAD, 0, 0, 4), _step(_EQUAL, 1, 0, audit), _step(_ANSWER, 0, 0, _REFUSE), load_number]
    # numbers of the x32 form of calls
    steps += [_step(_AT_LEAST, 0, 1, 0x40000000), _step(_ANSWER, 0, 0, _REFUSE)]
    # its flags are out of a filter's sight: "not known", and the C library takes clone
    steps += [_step(_EQUAL, 0, 1, _CLONE3), _step(_ANSWER, 0, 0, _REFUSE if alone else _UNKNOWN)]
    steps += _only_with(_FCNTL[column], _one_of(1, _HARMLESS_FCNTL))
    steps += _only_with(_IOCTL[column], _one_of(1, _HARMLESS_IOCTL))
    # of this process, and only to be read: no new limits
    zero = [_argument(0), _step(_EQUAL, 0, 5, 0), _argument(2), _step(_EQUAL, 0, 3, 0)]
    steps += _only_with(_PRLIMIT[column], [*zero, _argument(2, high=True), _step(_EQUAL, 0, 1, 0)])
    barred = O_UNNAMED | (0 if writes else O_WRITES)
    steps += _only_with(_OPENAT[column], [_argument(2), _step(_ANY_BIT, 1, 0, barred)])
    steps += _only_with(_OPEN[column], [_argument(1), _step(_ANY_BIT, 1, 0, barred)])
    if not alone:
        steps += _only_with(_CLONE[column], [_argument(0), _step(_ANY_BIT, 1, 0, NEW_SPACES)])
    numbers = sorted(pair[column] for pair in ({**_ALLOWED, **({} if alone else _FOR_CHILDREN)}).values())
    steps += [_step(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [_step(_ANSWER, 0, 0, _REFUSE), _step(_ANSWER, 0, 0, _ALLOW)]
    return b"".join(steps)


def _filter_system_calls(alone: bool, writes: bool) -> None:
    """Seccomp: what is not on the list fails with EPERM.

    Args:
        alone: no processes and threads.
        writes: files may be opened for writing; Landlock says where.
    """
    audit, column = _arch()
    program = _filter_of(column, audit, alone, writes)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    wanted = Program(len(program) // 8, ctypes.addressof(buffer))
    _call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(wanted), 0, 0)


def _limit(limits: dict[str, int], processes: int) -> None:
    def at_most(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    at_most(resource.RLIMIT_CORE, 0)
    at_most(resource.RLIMIT_CPU, limits["cpu_seconds"])
    at_most(resource.RLIMIT_FSIZE, limits["file_mb"] << 20)
    at_most(resource.RLIMIT_NOFILE, limits["open_files"])
    at_most(resource.RLIMIT_MEMLOCK, 0)
    at_most(resource.RLIMIT_NPROC, processes)
    at_most(resource.RLIMIT_AS, limits["memory_mb"] << 20)


def _become(user: int) -> None:
    os.setgroups([])
    for candidate in (user, 65534):
        try:
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
            return
        except OSError:  # a container that maps few user numbers
            continue
    raise Unavailable("no other user number can be taken")


# --- tenant and keeper ---


def _tenant(job: dict[str, Any], answer: int, proof: int, walls: dict[str, Any]) -> None:
    """Run the program; the token in front of what is said tells that it came to its end. Never returns."""
    nothing = os.open("/dev/null", os.O_RDWR)
    # above the numbers that are wanted, so that none of them is written over
    answer, proof = os.dup(answer), os.dup(proof)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.dup2(answer, 3)
    os.dup2(proof, 4)
    os.closerange(5, 65536)
    try:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        rules = _file_rules(os.getcwd()) if walls["landlock"] else None
        if walls["user"] is not None:
            _become(walls["user"])
        _limit(job["limits"], walls["processes"])
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if walls["capabilities"]:
            _no_capabilities()
        if rules is not None:
            _syscall("landlock", LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
            os.close(rules)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user forgets it
        if os.getppid() != walls["keeper"]:
            os._exit(1)  # it had died before that was asked for
        _filter_system_calls(walls["alone"], walls["writes"])
    except BaseException as error:
        os.write(3, os.read(4, 64) + f"unavailable: {error}".encode())
        os._exit(1)
    program = job["program"]
    job.clear()
    try:
        # The token is read once, and is then nowhere but among the arguments of a call that has not begun: no name, no
        # container, nothing that a program could follow from a frame to it.
        os.write(3, os.read(4, 64) + _ended(program))
    finally:
        os._exit(0)


def _ended(program: str) -> bytes:
    """Run a program; how it ended, nothing where it came to its end."""
    try:
        os.close(4)
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        return b""
    except BaseException as error:
        try:
            return b"raised: " + f"{type(error).__name__}: {error}".encode(errors="replace")[:500]
        except BaseException:
            return b"raised: an exception that cannot be shown"


def _walls(job: dict[str, Any]) -> dict[str, Any]:
    """What has to be known before the tenant exists."""
    extra, root = job["limits"]["processes"], os.geteuid() == 0
    walls: dict[str, Any] = {"user": job["user"] if root else None, "capabilities": root, "landlock": False}
    walls["alone"] = extra == 0 or job["mode"] == "limits"
    walls["keeper"] = os.getpid()
    if job["mode"] == "namespaces":
        os.chdir("/tmp")
        # counted: the tenant, and where it has no user of its own the keeper too
        return {**walls, "writes": True, "capabilities": True, "processes": extra + (1 if root else 2)}
    os.chdir(job["place"])
    abi = LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if root and not all(_open_to_all(os.path.realpath(p)) for p in (sys.base_prefix, sys.base_exec_prefix)):
        # another user could not read the interpreter's library; root without rights is held by Landlock alone
        if abi < 1:
            raise Unavailable("no Landlock, and the interpreter is in a place that is closed to other users")
        walls["user"] = None
        os.chown(".", 0, 0)
    # without a process namespace nothing collects what a tenant leaves behind: it may start nothing; and without
    # Landlock nothing says where it may write: it may write nowhere
    return {**walls, "landlock": abi >= 1, "writes": abi >= 1, "processes": 1}


def main() -> None:
    """The keeper."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.loads(_first_line(0))
    try:
        walls = _walls(job)
    except (Unavailable, OSError) as error:
        print(json.dumps({"status": "unavailable", "detail": str(error)}))
        return
    listen, answer = os.pipe()
    proof, prove = os.pipe()
    started = time.monotonic()
    tenant = os.fork()
    if tenant == 0:
        os.close(listen)
        os.close(prove)
        _tenant(job, answer, proof, walls)
    os.close(answer)
    os.close(proof)
    # made when the tenant has its own memory already
    token = os.urandom(16).hex().encode()
    os.write(prove, token)
    os.close(prove)
    watch = _Watch(tenant, listen, started + job["limits"]["seconds"], job["limits"]["disk_mb"] << 20)
    watch.until_it_ends()
    print(json.dumps({**_verdict(job, token, watch), "landlock": walls["landlock"]}), flush=True)


def _first_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            raise SystemExit(1)
        line += piece
    return line


class _Watch:
    """What the keeper looks at while the tenant runs, and what it saw."""

    def __init__(self, tenant: int, listen: int, deadline: float, most_bytes: int) -> None:
        self._tenant, self._listen, self._deadline, self._most_bytes = tenant, listen, deadline, most_bytes
        self.said = b""
        self.reason: str | None = None
        """Why it was ended, or None where it ended by itself."""
        self.status = 0
        """As ``waitpid`` gives it."""

    def until_it_ends(self) -> None:
        """Listen to it, and end it when its time or its room is used up, or nobody wants the verdict any more."""
        while True:
            ended, self.status = os.waitpid(self._tenant, os.WNOHANG)
            if ended:
                break
            self.reason = self._why_not()
            if self.reason is not None:
                os.kill(self._tenant, signal.SIGKILL)
                self.status = os.waitpid(self._tenant, 0)[1]
                return
            self._hear(_LOOK_SECONDS)
        while self._hear(0.0):
            pass

    def _why_not(self) -> str | None:
        if time.monotonic() >= self._deadline:
            return "time"
        if _used() > self._most_bytes:
            return "disk"
        if select.select([0], [], [], 0)[0] and not os.read(0, 4096):
            return "parent"
        return None

    def _hear(self, seconds: float) -> bool:
        """Take in what it says within a time; whether anything came."""
        if self._listen < 0 or not select.select([self._listen], [], [], seconds)[0]:
            if self._listen < 0:
                time.sleep(seconds)
            return False
        piece = os.read(self._listen, _MOST_ANSWER)
        if not piece:  # it has closed its end, and goes on perhaps
            os.close(self._listen)
            self._listen = -1
            return False
        self.said = (self.said + piece)[:_MOST_ANSWER]
        return True


def _used() -> int:
    """Bytes on the disk of the files in the directory; there are no others: a program can make no directory, and take
    no name away. More files than one may have count as all there is."""
    total = 0
    for number, entry in enumerate(os.scandir(".")):
        if number >= _MOST_FILES:
            return 1 << 62
        try:
            total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total


def _verdict(job: dict[str, Any], token: bytes, watch: _Watch) -> dict[str, str]:
    limits, said = job["limits"], watch.said
    if said.startswith(token + b"unavailable: "):
        return {"status": "unavailable", "detail": said.decode(errors="replace").partition(": ")[2]}
    if watch.reason == "disk":
        return {"status": "failed", "detail": f"more than {limits['disk_mb']} MiB of files"}
    if watch.reason is not None:
        return {"status": "timeout", "detail": f"still running after {limits['seconds']} s"}
    if os.WIFSIGNALED(watch.status):
        number = os.WTERMSIG(watch.status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            # the kernel's answer to the limit of CPU time; it would end a process so too if memory ran out
            return {"status": "timeout", "detail": f"killed: {limits['cpu_seconds']} s of CPU time used"}
        return {"status": "failed", "detail": f"ended by {signal.Signals(number).name}"}
    if said == token:
        return {"status": "passed", "detail": ""}
    if said.startswith(token + b"raised: "):
        return {"status": "failed", "detail": said.decode(errors="replace").partition(": ")[2]}
    return {"status": "failed", "detail": "it left before its end"}


if __name__ == "__main__":
    main()
