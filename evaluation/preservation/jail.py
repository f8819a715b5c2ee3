"""The inside of the sandbox: one program, one process, as little of the machine as the kernel lets us take away.

Run as ``python -I -S jail.py`` with a job (JSON) on standard input; prints a verdict (JSON). Standard library only:
it starts in an interpreter without site-packages. ``sandbox.py`` is the way to use it and says what is promised.

Two processes: the *keeper* makes the walls, measures the time and reports; its child, the *tenant*, runs the
program. In mode ``namespaces`` the tenant is process 1 of its own process namespace, so that its end is the end of
whatever it started.
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

# --- kernel numbers (linux/sched.h, mount.h, prctl.h, seccomp.h, landlock.h) ---

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAP_VERSION_3 = 0x20080522
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446

_ARCH = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_PIVOT_ROOT = (155, 41)
_CLONE, _CLONE3 = (56, 220), 435
# What a solution of a programming exercise never needs: (x86_64, aarch64).
_DENIED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": _PIVOT_ROOT,
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (MOUNT_SETATTR, MOUNT_SETATTR),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),
}
# x86-64 alone has fork and vfork; on ARM64 the numbers given are again those of clone
_MAKES_PROCESSES = {"clone": _CLONE, "fork": (57, 220), "vfork": (58, 220), "clone3": (_CLONE3, _CLONE3)}
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MOST_ANSWER = 4096


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


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


def _show(path: str, root: str) -> None:
    """Make a directory or file visible, read-only, at the same place below ``root``; links stay links."""
    target = root + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, None, MS_BIND | MS_REC)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    if path not in _DEVICES:
        attributes |= MOUNT_ATTR_NODEV
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall("mount_setattr", MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, wanted, ctypes.c_size_t(32))


def _visible() -> list[str]:
    prefixes = dict.fromkeys(os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix))
    folders = [p for p in _SYSTEM if os.path.exists(p)]
    folders += [p for p in prefixes if not any(p == s or p.startswith(s + "/") for s in _SYSTEM)]
    return folders + [p for p in (*_SYSTEM_FILES, *_DEVICES) if os.path.exists(p)]


def _own_root(place: str, megabytes: int) -> None:
    """Replace the root by an empty one: system libraries and the interpreter read-only, /tmp in memory, no /proc."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", place, "tmpfs", MS_NOSUID, "size=256k,mode=755")
    os.makedirs(place + "/tmp")
    _mount("tmpfs", place + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={megabytes}m,nr_inodes=1k,mode=1777")
    for path in _visible():
        _show(path, place)
    _mount(None, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    os.chdir(place)
    _syscall("pivot_root", _PIVOT_ROOT[_arch()[1]], b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


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
    for path in _visible():
        if path in _DEVICES:
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


def _filter_system_calls(alone: bool) -> None:
    """Seccomp: the calls above fail with EPERM; ``alone``: so does everything that makes a process or a thread.

    Else new user namespaces are refused, and clone3, whose flags a filter cannot see, is "not known", so that the
    C library falls back to clone.
    """
    audit, column = _arch()
    denied = {**_DENIED, **(_MAKES_PROCESSES if alone else {})}

    def step(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, jump_true, jump_false, value)

    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026
    numbers = sorted(pair[column] for pair in denied.values())
    # from behind: [allow] [refuse] [unknown]; jumps count the steps that are skipped
    head = [step(load, 0, 0, 4), step(equal, 1, 0, audit), step(answer, 0, 0, refuse), step(load, 0, 0, 0)]
    body: list[bytes] = []
    total = len(numbers) + 4
    # order of the body: x32 numbers, clone3, the denied ones, clone with its flags
    body.append(step(at_least, total + 1, 0, 0x40000000))
    body.append(step(equal, total if alone else total + 1, 0, _CLONE3))
    for place, number in enumerate(numbers):
        body.append(step(equal, total - 1 - place, 0, number))
    body.append(step(equal, 0, 1, _CLONE[column]))
    body.append(step(load, 0, 0, 16))
    tail = [
        step(any_bit, 1, 0, NEW_USER),
        step(answer, 0, 0, allow),
        step(answer, 0, 0, refuse),
        step(answer, 0, 0, unknown),
    ]
    # not a clone: the accumulator holds a call's number, none of which has the flag's bit
    program = b"".join([*head, *body, *tail])
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


def _tenant(job: dict[str, Any], answer: int, walls: dict[str, Any]) -> None:
    """Run the program; the token on the pipe says that it came to its end. Never returns."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.dup2(answer, 3)
    os.closerange(4, 65536)
    token = job["token"].encode()
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
        _filter_system_calls(walls["alone"])
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user forgets it
    except BaseException as error:
        os.write(3, token + f"unavailable: {error}".encode())
        os._exit(1)
    try:
        scope = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(job["program"], "<program>", "exec"), scope)
        say = token
    except BaseException as error:
        try:
            say = f"{type(error).__name__}: {error}".encode(errors="replace")[:500]
        except BaseException:
            say = b"an exception that cannot be shown"
    try:
        os.write(3, say)
    finally:
        os._exit(0)


def _walls(job: dict[str, Any]) -> dict[str, Any]:
    """Build what has to be built before the tenant exists."""
    extra, root = job["limits"]["processes"], os.geteuid() == 0
    walls: dict[str, Any] = {"user": job["user"] if root else None, "capabilities": root, "landlock": False}
    walls["alone"] = extra == 0 or job["mode"] == "limits"
    if job["mode"] == "namespaces":
        spaces = NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
        user, group = os.geteuid(), os.getegid()
        _call("unshare", spaces if root else spaces | NEW_USER)
        if not root:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"65534 {user} 1"),
                ("gid_map", f"65534 {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        _own_root(job["place"], job["limits"]["disk_mb"])
        # counted: the tenant, and in a user namespace the keeper too
        return {**walls, "capabilities": True, "processes": extra + (1 if root else 2)}
    os.chdir(job["place"])
    abi = LIBC.syscall(ctypes.c_long(LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if root and not all(_open_to_all(os.path.realpath(p)) for p in (sys.base_prefix, sys.base_exec_prefix)):
        # another user could not read the interpreter's library; root without rights is held by Landlock alone
        if abi < 1:
            raise Unavailable("no Landlock, and the interpreter is in a place that is closed to other users")
        walls["user"] = None
        os.chown(".", 0, 0)
    # without a process namespace nothing collects what a tenant leaves behind: it may start nothing
    return {**walls, "landlock": abi >= 1, "processes": 1}


def main() -> None:
    """The keeper."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.load(sys.stdin)
    try:
        walls = _walls(job)
    except (Unavailable, OSError) as error:
        print(json.dumps({"status": "unavailable", "detail": str(error)}))
        return
    listen, answer = os.pipe()
    started = time.monotonic()
    tenant = os.fork()
    if tenant == 0:
        os.close(listen)
        _tenant(job, answer, walls)
    os.close(answer)
    said, over = _listen(listen, started + job["limits"]["seconds"])
    status, over = _end(tenant, started + job["limits"]["seconds"], over)
    print(json.dumps({**_verdict(job, said, over, status), "landlock": walls["landlock"]}))


def _listen(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """What the tenant says until it ends, and whether its time was over before."""
    said = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return said, True
        piece = os.read(pipe, _MOST_ANSWER)
        if not piece:
            return said, False
        said = (said + piece)[:_MOST_ANSWER]


def _end(tenant: int, deadline: float, over: bool) -> tuple[int, bool]:
    """Wait for the tenant, which may have closed the pipe and gone on, and end it when its time is over."""
    while not over:
        ended, status = os.waitpid(tenant, os.WNOHANG)
        if ended:
            return status, False
        time.sleep(0.002)
        over = time.monotonic() >= deadline
    os.kill(tenant, signal.SIGKILL)
    return os.waitpid(tenant, 0)[1], True


def _verdict(job: dict[str, Any], said: bytes, over: bool, status: int) -> dict[str, str]:
    token = job["token"].encode()
    if said.startswith(token + b"unavailable: "):
        return {"status": "unavailable", "detail": said.decode(errors="replace").partition(": ")[2]}
    if over:
        return {"status": "timeout", "detail": f"still running after {job['limits']['seconds']} s"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            # the kernel's answer to the limit of CPU time; it would end a process so too if memory ran out
            return {"status": "timeout", "detail": f"killed: {job['limits']['cpu_seconds']} s of CPU time used"}
        return {"status": "failed", "detail": f"ended by {signal.Signals(number).name}"}
    if said == token:
        return {"status": "passed", "detail": ""}
    return {"status": "failed", "detail": said.decode(errors="replace") or "it left before its end"}


if __name__ == "__main__":
    main()
