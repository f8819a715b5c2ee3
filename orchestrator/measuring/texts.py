"""Texts of several domains on which perplexity is measured beside the held-out one: code, mathematics, Wikipedia."""

from __future__ import annotations

from collections.abc import Mapping

from errata.editing.errors import UserError
from errata.orchestrator.config.evaluation import TextConfig


def read_texts(texts: Mapping[str, TextConfig]) -> dict[str, list[str]]:
    """Documents by name.

    Raises:
        UserError: a text cannot be read; the message names it.
    """
    contents = {}
    for name, text in texts.items():
        try:
            contents[name] = text.read()
        except UserError as error:
            raise UserError(f"evaluation.texts.{name}: {error}") from error
    return contents
