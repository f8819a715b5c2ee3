"""Texts of several domains on which perplexity is measured beside the held-out one: code, mathematics, Wikipedia."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from editing.corpus import CorpusConfig, CorpusReader
from editing.errors import UserError
from orchestrator.presets import find_data


class TextConfig(BaseModel):
    """A text and how its documents are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """A file, or ``hub:NAME[:SPLIT]``, as that of ``covariance.corpus``."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """As that of ``covariance.corpus``."""
    fields: tuple[str, ...] = Field(("text",), min_length=1)
    """Fields of a record that hold its text; several are joined by a newline. Plain text has none."""
    split: Literal["blank_line", "line", "file"] = "blank_line"
    """What ends a document of a plain text file."""
    skip: int = Field(0, ge=0)
    """Documents passed over at the beginning."""
    documents: int = Field(16, ge=1)
    """At most this many documents; each is cut into windows of 256 tokens."""

    def found(self, beside: Path | None) -> TextConfig:
        """The same text with its file found: beside a configuration, or among the shipped ones."""
        return self.model_copy(update={"path": find_data(self.path, beside)})

    def read(self) -> list[str]:
        """Its documents.

        Raises:
            UserError: the file is not there or malformed, or holds no document behind those passed over.
        """
        corpus = CorpusConfig(path=self.path, format=self.format, fields=self.fields, split=self.split)
        documents = CorpusReader(corpus).take(self.skip, self.documents)
        if not any(document.strip() for document in documents):
            raise UserError(f"{self.path!r} holds no text behind its first {self.skip} documents")
        return documents


def read_texts(texts: Mapping[str, TextConfig]) -> dict[str, list[str]]:
    """Documents by name.

    Raises:
        UserError: a text cannot be read; the message names it.
    """
    found = {}
    for name, text in texts.items():
        try:
            found[name] = text.read()
        except UserError as error:
            raise UserError(f"evaluation.texts.{name}: {error}") from error
    return found
