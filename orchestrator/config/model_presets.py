"""Settings that belong to a model: presets, the model a preset is of, and runs whose settings were made for another.

A preset is part of a run's configuration (``model``, ``editor``, ...) with keys of its own: ``editors`` holds what is
for one type of editor only, ``matches`` what its model is recognized by, ``basis`` where its settings come from, and
``measured`` what `errata calibrate` found with them. Order: defaults, configuration, preset,
``--set``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.editing.checkpoint.fetch import fetchable_name, model_dir
from errata.editing.checkpoint.fingerprint import Fingerprint, fingerprint
from errata.editing.checkpoint.kept import imported_dir
from errata.editing.errors import UserError
from errata.orchestrator.config.presets import configs_root

logger = logging.getLogger(__name__)

OWN_KEYS = ("editors", "matches", "basis", "measured")
"""Keys of a preset that no run has."""
BASES = {
    "measured": "measured by this project",
    "published": "as published with a method, by the source that the preset names",
    "carried_over": "carried over from a relative of the model: not measured",
}
"""Where a preset's settings come from."""
ALLOWED_PERPLEXITY = 1.05
"""Perplexity of held-out text over the unedited model's, up to which settings cost nothing in a calibration."""
_FOLDER = "models"

Reader = Callable[[Path], dict[str, Any]]


def find_preset(name_or_path: str) -> Path:
    """A preset by path, or a shipped one by name, with ``models/`` before it or not.

    Raises:
        UserError: neither; the message lists the shipped ones.
    """
    path, known = Path(name_or_path).expanduser(), shipped()
    preset = path if path.is_file() else known.get(name_or_path) or known.get(f"{_FOLDER}/{name_or_path}")
    if preset is not None:
        return preset
    raise UserError(f"--preset {name_or_path!r} is not there; give a file or one of: {', '.join(known)}")


def shipped() -> dict[str, Path]:
    """Shipped presets by name: ``models/gpt2-xl``."""
    return {f"{_FOLDER}/{path.stem}": path for path in sorted((configs_root() / _FOLDER).glob("*.yaml"))}


def for_editor(preset: Mapping[str, Any], kind: str | None, *, under: bool = False) -> dict[str, Any]:
    """A preset as part of a run's configuration: what it holds for that type of editor is laid over ``editor``.

    ``under``: laid under it instead, where a file that extends the preset has its own say there.
    """
    plain = {key: copy.deepcopy(value) for key, value in preset.items() if key not in OWN_KEYS}
    special = preset.get("editors")
    own = special.get(kind) if isinstance(special, Mapping) else None
    if own:
        given = dict(plain.get("editor") or {})
        below, above = (dict(own), given) if under else (given, dict(own))
        plain["editor"] = {**below, **above}
        if isinstance(below.get("values"), dict) and isinstance(above.get("values"), dict):
            plain["editor"]["values"] = {**below["values"], **above["values"]}
    return plain


def local_directory(model: str) -> Path | None:
    """Where a model lies on this machine, if it can be said without fetching anything."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path
    return model_dir(model) if fetchable_name(model) else imported_dir(model)


def preset_of(model: str, read: Reader) -> str | None:
    """The shipped preset of a model: by its name where that is said, else by its configuration and weights."""
    presets = {name: read(path) for name, path in shipped().items()}
    for name, plain in presets.items():
        if _one_name(str(plain.get("model", {}).get("name")), model):
            return name
    directory = local_directory(model)
    if directory is None:
        return None
    try:
        seen = fingerprint(directory)
    except UserError:
        return None
    for name, plain in presets.items():
        if "matches" in plain and _fingerprint(plain["matches"], name).matches(seen):
            return name
    return None


def settled(
    data: dict[str, Any], chosen: Mapping[str, Any], overrides: Sequence[str], read: Reader, *, source: Path
) -> str | None:
    """The preset that a run needs and was not given, or None where its own settings are those of its model.

    Args:
        data: the configuration as it is in its files; ``chosen`` with the overrides applied.
        read: reads a preset's file.

    Raises:
        UserError: there are no layers for this model, or they were made for another one; one line with the three ways.
    """
    editor, model = chosen.get("editor"), _model_name(chosen)
    if model is None or not isinstance(editor, Mapping) or "type" not in editor:
        return None  # what is missing is said when the configuration is checked
    if any(override.partition("=")[0].strip() in ("editor", "editor.layers") for override in overrides):
        return None
    named = _model_name(data)
    if editor.get("layers") is None:
        preset = preset_of(model, read)
        if preset is None:
            raise UserError(f"{source}: editor.layers is missing and model {model!r} has no preset; {_ways(None)}")
        logger.info("model %s: settings of preset %s", model, preset)
        if read(shipped()[preset]).get("basis") == "carried_over":
            logger.warning("preset %s was never measured on its model; `errata calibrate %s` does that", preset, model)
        return preset
    if named is None or _one_name(named, model):
        return None
    preset = preset_of(model, read)
    if preset is not None and preset == preset_of(named, read):
        return None  # the same model in another place
    if (
        preset is None
        and local_directory(model) is None
        and (Path(model).is_absolute() or model.startswith((".", "~")))
    ):
        return None  # whoever opens it says that it is not there
    raise UserError(f"{source}: editor.layers were made for {named!r}, not for model {model!r}; {_ways(preset)}")


def _ways(preset: str | None) -> str:
    own = f"--preset {preset}, which is this model's" if preset else "--preset NAME with a preset of your own"
    return (
        f"three ways: {own}; `errata calibrate MODEL`, which finds settings by measuring; or layers of your own by "
        "--set editor.layers=[...] (`errata locate` shows which)"
    )


def _model_name(data: Mapping[str, Any]) -> str | None:
    section = data.get("model")
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) else None


def _one_name(a: str, b: str) -> bool:
    """Whether two names mean one model: equal, or a fetched model's two names."""
    return a == b or (fetchable_name(a) is not None and fetchable_name(a) == fetchable_name(b))


def _fingerprint(given: Any, name: str) -> Fingerprint:
    try:
        return Fingerprint.model_validate(given)
    except ValidationError as error:
        raise UserError(f"preset {name!r}: matches: {error.errors()[0]['msg']}") from error
