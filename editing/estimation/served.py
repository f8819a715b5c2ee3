"""Self-generation by a server: it samples, and the keys come from a packed second pass over what it sampled.

The unit keeps its seeds and its place in the estimate; what another machine and another engine sample with them is
theirs, so the promise of equal bytes is as good as the server's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from errata.editing.estimation.corpus import second_pass
from errata.editing.estimation.sampling_server import SamplingServerConfig, sample
from errata.editing.estimation.selfgen import SelfGenerationConfig, UnitResult, WorkUnit, opening_words, seed_sequences
from errata.editing.model.adapter import EditableModel


def run_served_unit(
    model: EditableModel,
    unit: WorkUnit,
    layers: Sequence[int],
    config: SelfGenerationConfig,
    server: SamplingServerConfig,
    *,
    keep_tokens: bool = False,
) -> UnitResult:
    """As `errata.editing.estimation.selfgen.run_unit`, with the tokens sampled by ``server``; the model here must be
    the one it serves.

    Raises:
        UserError, ErrataError: as `errata.editing.estimation.sampling_server.sample`.
    """
    started = time.perf_counter()
    seeds = seed_sequences(model, unit, config)
    draws = [
        int.from_bytes(hashlib.sha256(f"{unit.seed}|{place}".encode()).digest()[:4], "big")
        for place in range(len(seeds))
    ]
    samples = sample(server, seeds, draws, max_new_tokens=config.max_new_tokens, stops=model.text.eos_ids)
    sequences = tuple((tuple(start), one.tokens) for start, one in zip(seeds, samples, strict=True))
    sums, tokens = second_pass(model, sequences, layers)
    return UnitResult(
        unit.unit_id,
        sums,
        tokens,
        tuple((one.nll, len(one.tokens)) for one in samples),
        time.perf_counter() - started,
        tuple(opening_words(model, one.tokens) for one in samples),
        sequences if keep_tokens else (),
    )
