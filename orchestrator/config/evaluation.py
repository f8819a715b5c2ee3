"""What is measured, and the memory that is asked beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, plain_text
from errata.evaluation.judge import ContainsJudgeConfig, JudgeConfig
from errata.evaluation.outcomes import ARMS, IKE_ARMS, Arm
from errata.evaluation.reasoning import ReasoningMarks
from errata.orchestrator.config.presets import find_data
from errata.retrieval.embedder import EmbedderConfig, SentenceEmbedderConfig
from errata.retrieval.ike import IkeConfig
from errata.retrieval.index import IndexConfig
from errata.retrieval.scr import ScrConfig
from errata.retrieval.statements import StatementConfig


class TextConfig(Closed):
    """A text and how its documents are read."""

    path: str
    """A file, a URL or ``hub:NAME[:SPLIT]``, as that of ``covariance.corpus``."""
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
        documents = [plain_text(document) for document in CorpusReader(corpus).take(self.skip, self.documents)]
        if not any(document.strip() for document in documents):
            raise UserError(f"{self.path!r} holds no text behind its first {self.skip} documents")
        return documents


class MemoryConfig(Closed):
    """The external memory and how it is consulted."""

    embedder: EmbedderConfig = SentenceEmbedderConfig()
    """What turns statements and questions into vectors: ``type: sentence`` or, without a model, ``hash``."""
    index: IndexConfig = IndexConfig()
    statement: StatementConfig = StatementConfig()
    """The sentence under which an edit is remembered."""
    scr: ScrConfig = ScrConfig()

    @model_validator(mode="after")
    def _similarities_are_cosines(self) -> MemoryConfig:
        if not self.unit and self.scr.style != "paper":
            raise ValueError(
                f"embedder.normalize false needs scr.style 'paper', got {self.scr.style!r}, which counts in cosines"
            )
        return self

    @property
    def unit(self) -> bool:
        """Whether similarities are cosines."""
        return not isinstance(self.embedder, SentenceEmbedderConfig) or self.embedder.normalize


class FreeTextConfig(Closed):
    """Free continuations of texts about edited subjects: fluency, fluency*, consistency, and with them S_e."""

    facts: int = Field(24, ge=1)
    """At most this many facts, spread over their ages."""
    openings: str | None = None
    """CounterFact's full records, whose ``generation_prompts`` are continued; null, or a fact that is not among them:
    the edit's own prompt."""
    references: str | None = None
    """ROME's ``attribute_snippets.json``, the texts that consistency compares with; needs ``openings``."""
    max_new_tokens: int = Field(100, ge=1)
    """Length of a continuation."""

    @model_validator(mode="after")
    def _references_need_records(self) -> FreeTextConfig:
        if self.references is not None and self.openings is None:
            raise ValueError("references are found by the records in openings; give both")
        return self


class EvaluationConfig(Closed):
    """What is measured, when, and on how many facts."""

    every: int | None = Field(None, ge=1)
    """Edits between two points of the timeline; null for the end only."""
    sample: int = Field(24, ge=1)
    """Facts of a timeline point: the same ones each time, from the first points' edits."""
    arms: tuple[Arm, ...] = ARMS
    """Ways of knowing that are asked; ``base`` is always among them. `ike` and `ike_oracle`, in-context editing for
    comparison, are asked only where they are named."""
    max_new_tokens: int = Field(12, ge=1)
    """Length at which a generated answer ends."""
    stop_at_newline: bool = True
    """Whether a newline ends it too."""
    judge: JudgeConfig = ContainsJudgeConfig()
    """Who decides whether a generated answer is right: ``contains``, ``exact``, ``f1`` (``{type: f1, threshold: 0.8}``)
    or a language model (``{type: llm, endpoint: {base_url: ..., model: ...}}``)."""
    reasoning: ReasoningMarks | None = None
    """Marks around what a reasoning model writes before its answer, which alone is judged; null: all of it is the
    answer. Reasoning takes ``stop_at_newline: false`` and a long ``max_new_tokens``."""
    final: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Facts asked about at the end: all, or at most so many, spread evenly over their ages."""
    ike: IkeConfig | None = None
    """What the arms `ike` and `ike_oracle` demonstrate with; null where they are not asked."""
    free_text: FreeTextConfig | None = None
    """Measure free continuations at the end; null for none."""
    held_out: str | None = "configs/text/heldout.txt"
    """Text on which perplexity is measured; null for none."""
    texts: dict[str, TextConfig] = Field({})
    """More texts on which perplexity is measured at every point, each under its name: ``code``, ``math``."""
    latency_questions: int = Field(8, ge=0)
    """Questions asked one by one at the end to measure ``query_seconds``."""

    @field_validator("judge", mode="before")
    @classmethod
    def _judge_by_name(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _reasoning_has_lines(self) -> EvaluationConfig:
        if self.reasoning is not None and self.stop_at_newline:
            raise ValueError("reasoning goes over many lines: it needs stop_at_newline false")
        return self

    @model_validator(mode="after")
    def _has_base(self) -> EvaluationConfig:
        if "base" not in self.arms:
            raise ValueError(f"arms must include 'base', against which locality is measured; got {list(self.arms)}")
        return self

    @model_validator(mode="after")
    def _ike_has_demonstrations(self) -> EvaluationConfig:
        asked = [arm for arm in self.arms if arm in IKE_ARMS]
        if asked and self.ike is None:
            raise ValueError(f"arms {asked} need ike.demonstrations, records of a training split")
        return self
