"""What settings are where a configuration does not say them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from errata.editing.editors import REGISTRY
from errata.orchestrator.config.run import RunConfig


def defaults_of(editor: str | None) -> dict[str, Any]:
    """Plain data of all settings that have a default, in their sections, with those of an editor of that type.

    Sections that are not there unless they are asked for are left out, and so is whatever has no default.
    """
    defaults = _defaults(RunConfig)
    if editor in REGISTRY:
        defaults["editor"] = _defaults(REGISTRY[editor][0])
    return defaults


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found[name] = _defaults(section) if field.is_required() else _plain(model, name, field)
        elif not field.is_required():
            found[name] = _plain(model, name, field)
    return found


def _plain(model: type[BaseModel], name: str, field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return model.model_construct(**{name: value}).model_dump(mode="json", include={name}, warnings=False)[name]
