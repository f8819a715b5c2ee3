"""The OpenAPI description: bodies are parsed by hand, so their schemas are put in by hand as well."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from errata.orchestrator.service.bodies import (
    EditIn,
    EditsIn,
    EvaluationIn,
    PublicationIn,
    QueryIn,
    ReasonIn,
)
from errata.orchestrator.service.completions import ChatIn, TextIn

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    EditIn,
    EditsIn,
    QueryIn,
    EvaluationIn,
    PublicationIn,
    ReasonIn,
    ChatIn,
    TextIn,
)


def takes(*models: type[BaseModel], required: bool = True, lists: bool = False) -> dict[str, Any]:
    """``openapi_extra`` of an operation whose body is one of some models, or a list of the first."""
    refs: list[dict[str, Any]] = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    if lists:
        refs.append({"type": "array", "minItems": 1, "items": refs[0]})
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Replace ``app.openapi`` by one that knows the bodies, the form of errors and the tokens."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        schema = plain()
        _, bodies = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REF)
        parts = schema.setdefault("components", {})
        parts.setdefault("schemas", {}).update(bodies["$defs"])
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        parts["schemas"]["Error"] = _ERROR
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _finish(path, operation)
        app.openapi_schema = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _finish(path: str, operation: dict[str, Any]) -> None:
    answer = {"content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    codes = {"400": "Not readable.", "408": "The body did not come in time.", "421": "Not a name of this service."}
    if path.startswith("/v1") or path == "/metrics":
        operation["security"] = [{"token": []}]
        codes |= {"401": "No token, or one that is not known.", "403": "The token's role does not allow it."}
        codes |= {"404": "It is not there.", "409": "It does not fit what is there.", "422": "It does not fit."}
        codes |= {"413": "Too large.", "415": "No JSON.", "429": "Busy; Retry-After says when to come back."}
    if "questions" in operation.get("tags", ()) and "requestBody" in operation:
        codes |= {"504": "The answer took longer than service.answer_seconds."}
    codes |= {"503": "Starting, ending or broken."}
    for code, text in codes.items():
        operation["responses"][code] = {"description": text, **answer}


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "code", "message"],
            "properties": {
                "type": {"type": "string"},
                "code": {"type": "string"},
                "message": {"type": "string"},
                "param": {"type": "null"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
