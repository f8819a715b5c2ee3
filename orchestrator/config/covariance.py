"""What is preserved, and how much is sampled to find out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from errata.editing.estimation.corpus import CorpusConfig
from errata.editing.estimation.mixture import MixtureConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig


class CovarianceConfig(SelfGenerationConfig):
    """What is preserved, and how much is sampled to find out."""

    source: Literal["self_generated", "corpus", "mixture", "identity"] = "self_generated"
    """``self_generated`` samples from the model, ``corpus`` runs a text, ``mixture`` weighs several texts;
    ``identity`` preserves nothing in particular."""
    corpus: CorpusConfig | None = None
    """The text of ``source: corpus``."""
    mixture: MixtureConfig | None = None
    """Weights and components of ``source: mixture``."""
    store: str | None = None
    """Directory or URL (``hf://ORG/NAME``, ``s3://``, ``https://``, ...) in which the first estimate is looked up, and
    kept for other runs; null to estimate anew."""
    packed: bool = False
    """Take a packed covariance where no whole one is kept: of the store, or one that comes with the installation; one
    estimated for more tokens will do."""
    seed: int = Field(0, ge=0)
    """Seed of the first estimate; a refresh adds the number of edits at which it was triggered."""
    tokens: int | None = Field(None, ge=1)
    """Budget in sampled tokens, or in those of a text; exclusive with ``sequences``."""
    sequences: int | None = Field(None, ge=1)
    """Budget in sequences, or in documents of a text."""
    units_per_block: int = Field(1, ge=1)
    """Units that a worker sums before it hands over; what a dying worker can lose."""
    _vocabulary: int | None = PrivateAttr(None)

    @property
    def vocabulary(self) -> int | None:
        """Words of the model that these settings are for, where that was said."""
        return self._vocabulary

    def for_vocabulary(self, words: int) -> CovarianceConfig:
        """The same settings for a model of that many words, which decide what ``sampler: null`` means."""
        settled = self.model_copy()
        settled._vocabulary = words
        return settled

    @model_validator(mode="after")
    def _one_budget(self) -> CovarianceConfig:
        if self.source != "identity" and (self.tokens is None) == (self.sequences is None):
            raise ValueError(f"give one of tokens and sequences, got tokens={self.tokens}, sequences={self.sequences}")
        return self

    @model_validator(mode="after")
    def _source_is_described(self) -> CovarianceConfig:
        for kind in ("corpus", "mixture"):
            given = getattr(self, kind) is not None
            if given and self.source != kind:
                raise ValueError(f"section {kind!r} is of no use with source {self.source!r}; write source: {kind}")
            if not given and self.source == kind:
                raise ValueError(f"source {kind!r} needs a section {kind!r}")
        return self
