"""A configuration error in one line: the key, the value, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from errata.editing.editors import REGISTRY


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line for the first problem: the key, the value, and what is allowed."""
    first = error.errors()[0]
    # a tag of a discriminated union stands in the location but is no key of the file
    path = [str(p) for p in first["loc"] if not (p in REGISTRY or p in ("sentence", "hash"))]
    key = ".".join(path) or "(top level)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    kind, message, value = first["type"], first["msg"].removeprefix("Value error, "), first.get("input")
    if kind == "extra_forbidden":
        allowed = _keys_beside(model, first["loc"])
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = f"; allowed: {', '.join(allowed)}" if allowed else ""
        return f"{source}: unknown key {key!r} = {_short(value)}{hint}{listed}{more}"
    if kind == "missing":
        return f"{source}: key {key!r} is missing{more}"
    if kind == "union_tag_invalid":
        context = first.get("ctx", {})
        return f"{source}: {key}.type = {context.get('tag')!r}; allowed: {context.get('expected_tags')}{more}"
    if kind == "union_tag_not_found":
        return f"{source}: key {key + '.type'!r} is missing{more}"
    if isinstance(value, Mapping):
        return f"{source}: {key}: {message}{more}"
    return f"{source}: {key} = {_short(value)}: {message}{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where an unknown one was found."""
    options = [model]
    for part in location[:-1]:
        # after a union the location names which of its members was meant: the default of their ``type``
        tagged = [m for m in options if "type" in m.model_fields and m.model_fields["type"].default == part]
        if tagged:
            options = tagged
            continue
        fields = [field for m in options for name, field in m.model_fields.items() if part in (name, field.alias)]
        options = _models_in(fields[0].annotation) if fields else []
    return sorted({field.alias or name for m in options for name, field in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation names, by itself or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
