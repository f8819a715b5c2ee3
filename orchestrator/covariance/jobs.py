"""From the settings of a covariance to what workers are asked to estimate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errata.actors.workers.covariance import CorpusShare, EstimateJob
from errata.editing.estimation.corpus import HUB, CorpusConfig, survey
from errata.editing.estimation.sampler import default_sampler
from errata.editing.estimation.selfgen import SelfGenerationConfig
from errata.editing.remote import is_url
from errata.orchestrator.config.covariance import CovarianceConfig


def estimate_job(config: CovarianceConfig, layers: Sequence[int], version: str, *, seed_shift: int = 0) -> EstimateJob:
    """The estimate of a configuration for a version; every refresh draws with a seed of its own.

    A corpus is read once to be surveyed. A mixture has one job for each component: ``component_job``.

    Args:
        version: digest of the version whose weights are used.
        seed_shift: added to the seed of what the model generates.

    Raises:
        UserError: the corpus cannot be read.
    """
    if config.corpus is not None:
        return _corpus_job(config, config.corpus, layers, version)
    generation = SelfGenerationConfig(**{k: getattr(config, k) for k in SelfGenerationConfig.model_fields})
    if generation.sampler is None and config.vocabulary is not None:
        generation = generation.model_copy(update={"sampler": default_sampler(config.vocabulary)})
    return EstimateJob(
        generation=generation,
        layers=tuple(layers),
        seed=config.seed + seed_shift,
        tokens=config.tokens,
        sequences=config.sequences,
        units_per_block=config.units_per_block,
        version=version,
    )


def component_job(config: CovarianceConfig, name: str, layers: Sequence[int], version: str) -> EstimateJob:
    """The estimate of one component of a mixture that is given as a text.

    Raises:
        UserError: the text cannot be read.
    """
    assert config.mixture is not None
    return _corpus_job(config, config.mixture.components[name].corpus(), layers, version)


def _corpus_job(config: CovarianceConfig, corpus: CorpusConfig, layers: Sequence[int], version: str) -> EstimateJob:
    if not corpus.path.startswith(HUB) and not is_url(corpus.path):  # workers may have another working directory
        corpus = corpus.model_copy(update={"path": str(Path(corpus.path).expanduser().resolve())})
    surveyed = survey(corpus)
    return EstimateJob(
        corpus=CorpusShare(reading=corpus, digest=surveyed.digest, documents=surveyed.documents),
        layers=tuple(layers),
        tokens=config.tokens,
        sequences=config.sequences,
        units_per_block=config.units_per_block,
        version=version,
    )
