"""One worker's part of a covariance estimate, and what an estimate is asked by and answers with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.model import VersionedModel, load_for
from errata.editing.closed import Closed
from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import ErrataError
from errata.editing.estimation.corpus import CorpusConfig, CorpusReader, check_digest, run_corpus_unit, second_pass
from errata.editing.estimation.selfgen import SelfGenerationConfig, UnitResult, run_unit, unit_of
from errata.editing.estimation.served import run_served_unit

Array = np.ndarray[Any, np.dtype[np.float64]]
Sums = dict[int, Array]
"""By layer, float64 (d_in, d_in), symmetric."""


class CorpusShare(Closed):
    """A corpus as an estimate was planned on it; a worker that finds another text there refuses to use it."""

    reading: CorpusConfig
    digest: str
    documents: int = Field(ge=1)
    """How many there are."""


class EstimateJob(Closed):
    """One estimate: what is run, on which version, up to which budget."""

    generation: SelfGenerationConfig = SelfGenerationConfig()
    corpus: CorpusShare | None = None
    """Text to run instead of what the model generates."""
    layers: tuple[int, ...] = Field(min_length=1)
    seed: int = 0
    tokens: int | None = Field(None, ge=1)
    sequences: int | None = Field(None, ge=1)
    units_per_block: int = Field(1, ge=1)
    version: str
    """Digest of the version whose weights are used; part of the result's source."""

    @model_validator(mode="after")
    def _one_budget(self) -> EstimateJob:
        if (self.tokens is None) == (self.sequences is None):
            raise ValueError(f"give one budget: tokens ({self.tokens}) or sequences ({self.sequences})")
        return self

    @property
    def per_unit(self) -> int:
        """Sequences or documents of a full unit."""
        return self.generation.sequences_per_unit if self.corpus is None else self.corpus.reading.documents_per_unit

    @property
    def most(self) -> int | None:
        """Sequences or documents that the job can come to; None where only the tokens are bounded."""
        if self.corpus is None:
            return self.sequences
        return self.corpus.documents if self.sequences is None else min(self.sequences, self.corpus.documents)

    def source(self, dtype: str) -> dict[str, Any]:
        """All that decides the result, as it is stored with it."""
        common = {
            "version": self.version,
            "dtype": dtype,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "units_per_block": self.units_per_block,
        }
        if self.corpus is not None:
            return {"kind": "corpus", "text": self.corpus.digest, **common, **self.corpus.reading.identity()}
        return {"kind": "self_generated", "seed": self.seed, **common, **self.generation.identity()}


@dataclass(frozen=True)
class BlockInfo:
    """What is known of a finished block without its sums."""

    block: int
    tokens: int
    documents: tuple[tuple[float, int], ...]
    seconds: float
    openings: tuple[tuple[str, ...], ...] = ()
    pieces: int = 0
    """How many its sums were handed over in."""


@dataclass(frozen=True)
class EstimateProgress:
    """How far an estimate is. ``share`` is 0..1; ``seconds_left`` is None until a rate is known."""

    tokens: int
    share: float
    tokens_per_second: float
    seconds_left: float | None
    repeated: int
    per_worker: float = 0.0
    """Tokens per second of a worker while it is at a block, the mean of those finished."""


@dataclass(frozen=True)
class Estimate:
    """A finished estimate: the covariance, (NLL, tokens) per document, and how it went."""

    covariance: KeyCovariance
    documents: tuple[tuple[float, int], ...]
    seconds: float
    repeated_blocks: int
    openings: tuple[tuple[str, ...], ...] = ()
    blocks_by_node: Mapping[str, int] = field(default_factory=dict)
    """Finished blocks of each machine, by Ray's name of it."""

    @property
    def recorded(self) -> KeyCovariance:
        """The covariance with its documents' likelihoods and first words beside it, as it is stored."""
        return replace(self.covariance, record=SampleRecord(self.documents, self.openings))


@dataclass(frozen=True)
class KeyCheck:
    """Keys taken while decoding against a packed second pass over the same tokens."""

    tokens: int
    errors: Mapping[int, float]
    """``|S_fused - S_second|_F / |S_second|_F`` by layer."""


class UnitWorker:
    """Computes blocks of units on one model. Plain class; `UnitActor` is its shell."""

    def __init__(self, spec: ModelSpec, role: RoleConfig, versioned: VersionedModel | None = None) -> None:
        self._versioned = versioned or VersionedModel(load_for(role, spec))
        self._reader: tuple[CorpusShare, CorpusReader] | None = None

    def block(
        self, job: EstimateJob, index: int, sequences: int, weights: Mapping[int, Tensor]
    ) -> tuple[BlockInfo, Sums]:
        """Sums of a block's units, added in their order; ``sequences`` is what is left for this block at most."""
        started = time.perf_counter()
        self._versioned.show(job.version, weights)
        sums: Sums = {}
        tokens, documents, openings = 0, list[tuple[float, int]](), list[tuple[str, ...]]()
        for place in range(job.units_per_block):
            take = min(job.per_unit, sequences - place * job.per_unit)
            if take <= 0:
                break
            result = self._unit(job, index * job.units_per_block + place, take)
            for layer, value in result.sums.items():
                array = value.numpy()
                sums[layer] = array if layer not in sums else sums[layer] + array
            tokens += result.tokens
            documents += result.documents
            openings += result.openings
        seconds = time.perf_counter() - started
        return BlockInfo(index, tokens, tuple(documents), seconds, tuple(openings)), sums

    def _unit(self, job: EstimateJob, unit_id: int, take: int) -> UnitResult:
        if job.corpus is None:
            unit = unit_of(unit_id, seed=job.seed, sequences=take)
            server = job.generation.server
            if server is not None:
                return run_served_unit(self._versioned.model, unit, job.layers, job.generation, server)
            return run_unit(self._versioned.model, unit, job.layers, job.generation)
        if self._reader is None or self._reader[0] != job.corpus:
            check_digest(job.corpus.reading, job.corpus.digest)
            self._reader = job.corpus, CorpusReader(job.corpus.reading)
        first = unit_id * job.per_unit
        texts = self._reader[1].take(first, take)
        return run_corpus_unit(self._versioned.model, unit_id, first, texts, job.layers, job.corpus.reading)

    def check(self, job: EstimateJob, sequences: int, weights: Mapping[int, Tensor]) -> KeyCheck:
        """Sample the first unit again and compare its keys with those of a packed second pass."""
        self._versioned.show(job.version, weights)
        unit = unit_of(0, seed=job.seed, sequences=sequences)
        fused = run_unit(self._versioned.model, unit, job.layers, job.generation, keep_tokens=True)
        sums, tokens = second_pass(self._versioned.model, fused.sequences, job.layers)
        if tokens != fused.tokens:
            raise ErrataError(f"the decoding pass took {fused.tokens} keys, a second pass {tokens}")
        errors = {i: float((fused.sums[i] - sums[i]).norm() / sums[i].norm().clamp_min(1e-300)) for i in job.layers}
        return KeyCheck(tokens, errors)
