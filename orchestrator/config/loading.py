"""Configurations read: found by name, composed of files and overrides, checked, with the files they name."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from errata.editing.editors.gradient.mend_network import load_network, network_digest
from errata.editing.errors import UserError
from errata.editing.estimation.mixture import ComponentConfig
from errata.editing.texts import clean_all
from errata.orchestrator.config.explain import _short, explain
from errata.orchestrator.config.model_presets import find_preset, for_editor, settled
from errata.orchestrator.config.presets import configs_root, find_config, find_data
from errata.orchestrator.config.run import RunConfig


def load_config(name_or_path: str, overrides: Sequence[str] = (), preset: str | None = None) -> RunConfig:
    """Read a configuration file, lay a model's preset over it, apply ``dotted.key=value`` overrides, check everything.

    Raises:
        UserError: the file is missing or no YAML mapping, what it extends is not there, an override has no ``=``,
            a value does not fit, or the settings are none of this model.
    """
    path = find_config(name_or_path)
    return build_config(composed(path, overrides, preset), source=path)


def composed(path: Path, overrides: Sequence[str], preset: str | None = None) -> dict[str, Any]:
    """Plain data of a run: its file, the preset over it, the overrides over both.

    Raises:
        UserError: as `load_config`, but for values that do not fit.
    """
    data = read_composed(path)
    chosen = overridden(data, overrides)
    if preset is None:
        preset = settled(data, chosen, overrides, read_composed, source=path)
    if preset is None:
        return chosen
    editor = chosen.get("editor")
    kind = editor.get("type") if isinstance(editor, Mapping) else None
    return overridden(overlaid(data, for_editor(read_composed(find_preset(preset)), kind)), overrides)


def overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain data with ``dotted.key=value`` overrides applied in order."""
    changed = copy.deepcopy(dict(data))
    for override in overrides:
        apply_override(changed, override)
    return changed


def read_composed(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain data of a configuration file, laid over the files that its key ``extends`` names, unchecked.

    ``extends`` holds one name or path, or a list of them, each over the ones before it: a file beside this one, or
    what `find_config` finds, such as the shipped ``models/gpt2-xl``. ``above`` are the files that led here.

    Raises:
        UserError: a file is missing, is no YAML mapping, or extends itself.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, got {type(data).__name__}")
    names = data.pop("extends", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: extends = {_short(names)}: want a name or a list of names")
    chain = (*above, path.resolve())
    below: dict[str, Any] = {}
    for name in names:
        beside = [path.parent / name, path.parent / f"{name}.yaml"]
        try:
            file = next((candidate for candidate in beside if candidate.is_file()), None) or find_config(name)
        except UserError as error:
            raise UserError(f"{path}: extends: {error}") from error
        if file.resolve() in chain:
            raise UserError(f"{path}: extends = {name!r}: a configuration cannot extend itself")
        below = overlaid(below, read_composed(file, chain))
    return overlaid(below, data)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one: sections are joined key by key, else the value above wins; null there drops a section."""
    joined = dict(below)
    for key, value in above.items():
        under = joined.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            joined[key] = overlaid(under, value)
        elif isinstance(under, Mapping) and value is None:
            del joined[key]
        else:
            joined[key] = value
    return joined


def check_config(data: Mapping[str, Any], source: Path | str | None = None) -> RunConfig:
    """Check plain data; the files it names are left as they are given. ``source`` is named in errors.

    Raises:
        UserError: a key is unknown or missing, a value does not fit, or a text holds NUL or half of a surrogate pair.
    """
    try:
        clean_all(data)  # white space stays: a separator may be nothing else
    except ValueError as error:
        raise UserError(f"{source or 'configuration'}: {error}") from error
    editor = data.get("editor")
    kind = editor.get("type") if isinstance(editor, Mapping) else None
    try:
        return RunConfig.model_validate(_with_shipped_weights(for_editor(data, kind, under=True)))
    except ValidationError as error:
        raise UserError(explain(error, RunConfig, str(source) if source else "configuration")) from error


def build_config(data: Mapping[str, Any], source: Path | None = None) -> RunConfig:
    """Check plain data and resolve the data files it names; ``source`` is named in errors."""
    return with_found_files(check_config(data, source), source)


def with_found_files(config: RunConfig, source: Path | None = None) -> RunConfig:
    """The same configuration with the data files it names found: beside ``source``, or among the shipped ones."""
    beside = source.parent if source else None
    update: dict[str, Any] = {}
    if config.stream.path:
        streams = {k: find_data(v, beside) for k in ("path", "portability") if (v := getattr(config.stream, k))}
        update["stream"] = config.stream.model_copy(update=streams)
    named = {key: path for key in ("sentinels", "held_out") if (path := getattr(config.guard, key)) is not None}
    if named:
        found_files = {key: find_data(path, beside) for key, path in named.items()}
        update["guard"] = config.guard.model_copy(update=found_files)
    if config.evaluation.held_out is not None:
        held_out = find_data(config.evaluation.held_out, beside)
        update["evaluation"] = config.evaluation.model_copy(update={"held_out": held_out})
    if config.evaluation.texts:
        evaluation = update.get("evaluation", config.evaluation)
        texts = {name: text.found(beside) for name, text in evaluation.texts.items()}
        update["evaluation"] = evaluation.model_copy(update={"texts": texts})
    if (free := config.evaluation.free_text) is not None:
        evaluation = update.get("evaluation", config.evaluation)
        named = {key: path for key in ("openings", "references") if (path := getattr(free, key)) is not None}
        free = free.model_copy(update={key: find_data(path, beside) for key, path in named.items()})
        update["evaluation"] = evaluation.model_copy(update={"free_text": free})
    if (ike := config.evaluation.ike) is not None:
        evaluation = update.get("evaluation", config.evaluation)
        ike = ike.model_copy(update={"demonstrations": find_data(ike.demonstrations, beside)})
        update["evaluation"] = evaluation.model_copy(update={"ike": ike})
    if config.covariance.corpus is not None:
        text = config.covariance.corpus
        text = text.model_copy(update={"path": find_data(text.path, beside)})
        update["covariance"] = config.covariance.model_copy(update={"corpus": text})
    if config.covariance.mixture is not None:
        mixture = config.covariance.mixture
        components = {name: _found(part, beside) for name, part in mixture.components.items()}
        mixture = mixture.model_copy(update={"components": components})
        update["covariance"] = config.covariance.model_copy(update={"mixture": mixture})
    trained = getattr(config.editor, "trained", None)
    if trained is not None:
        trained = Path(find_data(str(trained), beside))
        if not trained.is_file():
            made = "`errata train-editor` makes one"
            raise UserError(f"editor.trained = {str(trained)!r}: there is no such file; {made}")
        digest = config.editor.digest or network_digest(load_network(trained)[0])
        update["editor"] = config.editor.model_copy(update={"trained": trained, "digest": digest})
    return config.model_copy(update=update)


def _found(component: ComponentConfig, beside: Path | None) -> ComponentConfig:
    places = {key: find_data(path, beside) for key in ("path", "file") if (path := getattr(component, key)) is not None}
    return component.model_copy(update=places)


def _with_shipped_weights(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same data with the name of shipped mixture weights replaced by the weights."""
    covariance = data.get("covariance")
    mixture = covariance.get("mixture") if isinstance(covariance, Mapping) else None
    if not isinstance(covariance, Mapping) or not isinstance(mixture, Mapping):
        return data
    name = mixture.get("weights")
    if not isinstance(name, str):
        return data
    root = configs_root() / "covariances"
    known = sorted(path.stem for path in root.glob("*.yaml"))
    if name not in known:
        raise UserError(f"covariance.mixture.weights = {name!r}: no such weights; shipped: {', '.join(known)}")
    weights = yaml.safe_load((root / f"{name}.yaml").read_text(encoding="utf-8"))["weights"]
    return {**data, "covariance": {**covariance, "mixture": {**mixture, "weights": weights}}}


def _value_of(text: str) -> Any:
    """The value of an override, as YAML without comments: on a command line ``#`` is a sign like any other."""
    if not text.strip():
        return ""
    node = yaml.compose(text)
    read = 0 if node is None else node.end_mark.index
    if "#" in text[read:] and (node is None or isinstance(node, yaml.ScalarNode)):
        return text.strip()
    return yaml.safe_load(text)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value``; the value is read as YAML, so numbers, lists and null work.

    Raises:
        UserError: no ``=``, an empty key, or a key below something that is no mapping.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override!r}: want dotted.key=value")
    try:
        value = _value_of(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key.strip()}: value {text!r} is not valid YAML") from error
    place: Any = data
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise UserError(f"--set {key.strip()}: {part!r} holds {place!r} and has no keys below it")
    place[parts[-1]] = value
