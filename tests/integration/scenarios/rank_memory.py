"""How much memory two ranks need at most while each reads its part of a checkpoint; prints bytes by rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from errata.actors.settings import ModelSpec
from errata.actors.sharded.loading import load_part
from errata.actors.sharded.rank import Group
from tests.helpers.ranks import run_ranks


def memory(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_while_loading(group: Group, small: str, directory: str) -> int:
    """Bytes by which this process was larger at its largest than before; what a first load imports is there already."""
    load_part(ModelSpec(name=small, digest="0" * 64), group)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = memory("VmRSS")
    load_part(ModelSpec(name=directory, digest="0" * 64), group)
    return memory("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(run_ranks(2, peak_while_loading, *sys.argv[1:3])))
