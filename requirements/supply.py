"""The supply chain's own checks: hashes that belong to the locks, and known weaknesses of what they name.

    python requirements/supply.py check     # every pin of lock.txt has its hashes, and nothing else has
    python requirements/supply.py audit     # the same, and pip-audit where its service can be reached

Standard library only, but for the tools of ``requirements/tools.txt`` (`make audit` installs them).
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOCK, HASHES, TOOLS = HERE / "lock.txt", HERE / "lock-hashes.txt", HERE / "tools.txt"
SERVICE = ("api.osv.dev", 443)
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\b")


def pins(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Version and hashes of each requirement of a file, by its normal name.

    Raises:
        ValueError: a line is neither a pin, nor a hash, nor a remark.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        pin = _PIN.match(line)
        if pin is None:
            raise ValueError(f"{path.name}: no pin: {line[:80]!r}")
        name = re.sub(r"[-_.]+", "-", pin[1]).lower()
        found[name] = pin[2], tuple(_HASH.findall(line))
    return found


def problems(lock: Path = LOCK, hashes: Path = HASHES, tools: Path = TOOLS) -> list[str]:
    """What is wrong with the files, in words."""
    plain, hashed = pins(lock), pins(hashes)
    wrong = [f"{name}: {plain[name][0]} has no hashes" for name in plain if name not in hashed]
    wrong += [f"{name}: is in {hashes.name} alone" for name in hashed if name not in plain]
    for name in plain.keys() & hashed.keys():
        if plain[name][0] != hashed[name][0]:
            wrong.append(f"{name}: {plain[name][0]} in {lock.name}, {hashed[name][0]} in {hashes.name}")
    for path in (hashes, tools):
        wrong += [f"{name}: without a hash in {path.name}" for name, (_, sums) in pins(path).items() if not sums]
    return sorted(wrong)


def reachable(seconds: float = 5.0) -> bool:
    """Whether the service that knows of weaknesses answers."""
    try:
        with socket.create_connection(SERVICE, timeout=seconds):
            return True
    except OSError:
        return False


def audit() -> int:
    """0: nothing known; 1: something is; 2: the service could not be asked, which is no finding."""
    if not reachable():
        print(
            f"notice: {SERVICE[0]} cannot be reached from here: known weaknesses were NOT looked for", file=sys.stderr
        )
        return 2
    tool = Path(sys.executable).with_name("pip-audit")
    command = [
        str(tool),
        "--requirement",
        str(HASHES),
        "--require-hashes",
        "--disable-pip",
        "--vulnerability-service",
        "osv",
    ]
    return subprocess.run([*command, "--strict"], check=False).returncode


def main() -> int:
    """Run one of the two."""
    wrong = problems()
    for line in wrong:
        print(f"requirements: {line}; write them anew: make hashes", file=sys.stderr)
    if wrong:
        return 1
    if sys.argv[1:] == ["audit"]:
        # what cannot be asked must not stop a build that has no network
        return {2: 0}.get(code := audit(), code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
