"""Finding shipped configurations and data by name, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

import errata
from errata.editing.errors import UserError
from errata.editing.remote import is_url


def configs_root() -> Path:
    """The directory of shipped configurations: ``configs/`` of the checkout, else the copy in the wheel."""
    package = Path(errata.__file__).resolve().parent
    packaged = package / "_configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def find_config(name_or_path: str) -> Path:
    """A configuration file by path, or a shipped one by name: ``quickstart``, ``configs/quickstart.yaml``.

    Raises:
        UserError: neither; the message lists the shipped names.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    root = configs_root()
    name = name_or_path.removeprefix("configs/")
    for candidate in (root / f"{name}.yaml", root / name):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
    raise UserError(f"configuration {name_or_path!r} is not there; give a file or one of: {', '.join(known)}")


def find_data(path: str, beside: Path | None = None) -> str:
    """A data file named in a configuration: as given, beside the configuration, or among the shipped files.

    Returns the path as given when it is nowhere, so that whoever opens it names what is missing.
    """
    if path.startswith("hub:") or is_url(path):
        return path
    given = Path(path).expanduser()
    root = configs_root()
    # shipped configurations name shipped data as in the checkout: configs/streams/...
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    for candidate in (given, *([beside / given] if beside else []), root / inside):
        if candidate.is_file():
            return str(candidate)
    return path
