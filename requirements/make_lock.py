"""Write the locks of this folder from what is installed: `python requirements/make_lock.py`.

A lock is the closure of what its roots need, found in the metadata of the installed distributions, each at the version
that is installed. So a lock names nothing that nothing asks for, and what is not installed is found out here:

    python3.11 -m venv fresh && fresh/bin/pip install --group dev -e . && fresh/bin/python requirements/make_lock.py

| file | for |
|---|---|
| lock.txt | everything: `make`, CI, the tests |
| runtime.txt | the image: what serving, running, estimating, tracking and reporting import; no tests, no linters |
| deepspeed.txt | what the image for sharded models has beyond runtime.txt |

With `--check` nothing is written and the exit code says whether the files are what would be.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path(__file__).resolve().parent
OWN = "errata-llm"
IMAGE_EXTRAS = ("cluster", "data", "hub", "kafka", "memory", "redis", "report", "s3", "serve", "tracking")
"""What the image can do. Not here: `eval` and `peft`, which no pod imports, and `deepspeed`, an image of its own."""
_ACCELERATOR = re.compile(r"nvidia-.*|triton|cuda-.*")


@dataclass(frozen=True)
class Lock:
    """One file: what has to be in it, and what is in another file already."""

    name: str
    header: str
    roots: tuple[str, ...]
    beyond: tuple[str, ...] = ()


def locks(project: dict[str, object]) -> tuple[Lock, ...]:
    """The files of this folder. ``project`` is pyproject.toml as it is read."""
    build = tuple(_texts(project["build-system"], "requires"))
    dev = tuple(_texts(project["dependency-groups"], "dev"))
    image = (f"{OWN}[{','.join(IMAGE_EXTRAS)}]", *build)
    return (
        Lock("lock.txt", _EVERYTHING, (*dev, *build)),
        Lock("runtime.txt", _RUNTIME, image),
        Lock("deepspeed.txt", _DEEPSPEED, (f"{OWN}[deepspeed]",), beyond=image),
    )


def closure(roots: Iterable[str], project: dict[str, object]) -> set[str]:
    """Normal names of all that ``roots`` need, themselves included, this project left out.

    What torch's builds for an accelerator bring with them is left out too: a lock is for any of its builds.

    Raises:
        SystemExit: something that is needed is not installed.
    """
    found: set[str] = set()
    done: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in roots]
    while waiting:
        wanted = waiting.pop()
        name, extras = normal(wanted.name), frozenset(wanted.extras)
        if (name, extras) in done or _ACCELERATOR.fullmatch(name):
            continue
        done.add((name, extras))
        if name != OWN:
            found.add(name)
        needs = own_needs(project, extras) if name == OWN else _needs(name, extras)
        waiting += needs
    return found


def own_needs(project: dict[str, object], extras: Iterable[str]) -> list[Requirement]:
    """What this project needs by pyproject.toml, whatever is installed of it."""
    section = project["project"]
    assert isinstance(section, dict)
    texts = list(_texts(section, "dependencies"))
    for extra in extras:
        texts += _texts(section["optional-dependencies"], extra)
    return [Requirement(text) for text in texts]


def render(lock: Lock, project: dict[str, object]) -> str:
    """The file's text: the header, and one line a distribution in the order of the names."""
    names = closure(lock.roots, project)
    if lock.beyond:
        names -= closure(lock.beyond, project)
    return lock.header + "".join(f"{line}\n" for line in sorted(map(pin, names), key=str.lower))


def pin(name: str) -> str:
    """``Name==VERSION`` as the distribution writes itself, without a local version: any index that has it will do."""
    found = distribution(name)
    return f"{found.metadata['Name']}=={found.version.partition('+')[0]}"


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_project() -> dict[str, object]:
    """pyproject.toml."""
    return tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` say which are not what they should be."""
    project, stale = read_project(), []
    for lock in locks(project):
        path, text = FOLDER / lock.name, render(lock, project)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(lock.name)
    if stale:
        print(f"not what is installed: {', '.join(stale)}; run python requirements/make_lock.py", file=sys.stderr)
    return 1 if stale else 0


def _needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    try:
        texts = distribution(name).requires or ()
    except PackageNotFoundError:
        raise SystemExit(f"{name} is needed and not installed: pip install --group dev -e .") from None
    for wanted in map(Requirement, texts):
        marker = wanted.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield wanted


def _texts(section: object, key: str) -> list[str]:
    assert isinstance(section, dict)
    return [str(text) for text in section[key]]


_EVERYTHING = """\
# Exact versions that `make setup` and CI install (Linux x86-64, CPU; CPython 3.11 or newer).
# pyproject.toml states the ranges the code works with; this file states what it was tested with.
#
# Written by requirements/make_lock.py, in an environment made with pip >= 25.1 by `pip install --group dev -e .`
#
# torch has no local version suffix (`+cpu`), so that any index that carries the release will do. Where the default
# torch wheel brings CUDA packages, those come unpinned as its dependencies.
"""
_RUNTIME = """\
# What the image installs: the part of lock.txt that serving, running, estimating, tracking and reporting need.
# Written by requirements/make_lock.py.
"""
_DEEPSPEED = """\
# What the image for models that are spread over several devices has beyond runtime.txt: the extra `deepspeed`.
# Written by requirements/make_lock.py.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
