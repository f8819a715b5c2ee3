"""Writes ``docs/configuration.md`` from the configuration classes; a test holds the page to them.

python docs/configuration_page.py > docs/configuration.md
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from errata.editing.editors import REGISTRY
from errata.orchestrator.config.run import RunConfig

HEAD = """# Configuration

One YAML file, checked as a whole before anything starts: an unknown key or a value that does not fit is one line that
names the key, the value and what is allowed, and exit code 2. `errata run CONFIG --dry-run` prints the file with every
default filled in; `--set dotted.key=value` overrides single keys, the value read as YAML
(`--set editor.layers=[4,5,6]`, `--set refresh.every=null`).

This page is written from the classes by `python docs/configuration_page.py`.
"""


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field, the convention this project documents settings by; base classes included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is BaseModel or not issubclass(cls, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                value = after.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = " ".join(value.value.split())
    return found


def rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every plain field; sections of their own are left to their own table."""
    docs = attribute_docs(model)
    for name, field in model.model_fields.items():
        if section_of(field.annotation) is not None or name == "editor":
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{plain(default)}`"
        yield f"`{prefix}{field.alias or name}`", shown, docs.get(name, "")


def plain(value: Any) -> str:
    """A default as it is written in YAML."""
    if isinstance(value, BaseModel):
        return str(value.model_dump(mode="json"))
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class of a nested section, also of one that may be left out."""
    given = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return given[0] if len(given) == 1 and isinstance(given[0], type) and issubclass(given[0], BaseModel) else None


def tables(model: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    """A table for the class and then one for each section within it."""
    summary = (model.__doc__ or "").strip().splitlines()[0]
    yield f"\n## {title}\n\n{summary}\n"
    found = list(rows(model, prefix))
    if found:
        yield "\n| key | default | meaning |\n|---|---|---|\n"
        yield "".join(f"| {key} | {default} | {meaning} |\n" for key, default, meaning in found)
    docs = attribute_docs(model)
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            yield from tables(section, f"{prefix}{name}.", f"`{prefix}{name}` {docs.get(name, '')}".strip())


def page() -> str:
    """The whole page."""
    parts = [HEAD, *tables(RunConfig, "", "The run")]
    for name, (config, _) in sorted(REGISTRY.items()):
        parts += list(tables(config, "editor.", f"`editor` with `type: {name}`"))
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
