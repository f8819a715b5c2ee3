"""Key covariances from what the model says by itself: sampling from random tokens, keys taken as it goes.

MOIR: a sequence starts from a single token drawn uniformly from the vocabulary and is continued by ancestral
sampling (temperature 1, top_p 1, up to 256 new tokens, no filter). The key of a sampled token is the input of the
edited map when that token is fed back, so the decoding pass yields all keys and no second pass is needed.

Work is cut into units that own their seed and their batch of sequences: a unit's result does not depend on who
computes it, so any number of workers gives the same bytes.

Letters: S slots, T length of a sequence, I = d_in.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.editing.estimation.sampler import Sampler, default_sampler, draw
from errata.editing.estimation.sampling_server import SamplingServerConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decode import extend
from errata.editing.model.kv import SlotKV
from errata.editing.wording import counted as counted_of

_OPENING_TOKENS = 32
"""Enough for three words of any language but the longest compounds."""


class SelfGenerationConfig(Closed):
    """How the model is made to speak."""

    seed_mode: Literal["rand", "bos"] = "rand"
    """``rand``: uniform vocabulary tokens; ``bos``: the beginning-of-sequence (or end-of-text) token alone."""
    seed_tokens: int = Field(1, ge=1, le=4)
    """Random tokens per sequence (MOIR, table 2: one is best)."""
    seed_pool: Literal["model", "words"] = "model"
    """What random seed tokens are drawn from: every row of the model's embeddings, or the tokenizer's words alone,
    without special tokens and the rows that only pad the matrix."""
    seed_bos: bool | None = None
    """Whether a BOS stands before random seed tokens; null for what the model's tokenizer does by itself."""
    max_new_tokens: int = Field(256, ge=1)
    """Length at which a sequence ends."""
    sequences_per_unit: int = Field(16, ge=1)
    """Sequences of one unit of work, the smallest share that has a seed of its own."""
    slots: int = Field(16, ge=1)
    """Sequences decoded side by side within a unit."""
    sampler: Sampler | None = None
    """``inversion``: the whole distribution function in float64; ``blocks``: the same distribution in a fraction of the
    time where there are many words. Null for ``inversion`` up to 65 536 words and ``blocks`` beyond."""
    server: SamplingServerConfig | None = None
    """A vLLM server that samples instead; the keys then come from a second pass here."""

    def identity(self) -> dict[str, Any]:
        """What decides the result, as plain data; of a server its engine and model, not where it is."""
        # what was estimated before there was a choice was sampled by inversion, and keeps its digest
        usual = self.sampler in (None, "inversion") or self.server is not None
        unsaid = {"server", *(("sampler",) if usual else ())}
        # nor did they know where seeds may come from
        unsaid |= {key for key, plain in (("seed_pool", "model"), ("seed_bos", None)) if getattr(self, key) == plain}
        plain = self.model_dump(exclude=unsaid)
        return plain if self.server is None else {**plain, "server": {"model": self.server.model}}


@dataclass(frozen=True)
class WorkUnit:
    """A share of the work with everything that decides its result."""

    unit_id: int
    seed: int
    sequences: int


@dataclass(frozen=True)
class UnitResult:
    """What a unit yields: sums float64 (I, I) by layer over ``tokens`` keys, and (NLL, tokens) per sequence."""

    unit_id: int
    sums: Mapping[int, Tensor]
    tokens: int
    documents: tuple[tuple[float, int], ...]
    seconds: float
    openings: tuple[tuple[str, ...], ...] = ()
    """First words of each generated sequence, in the order of ``documents``; empty for given text."""
    sequences: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """(seed tokens, sampled tokens) of each sequence, where they were asked for."""


def unit_of(unit_id: int, *, seed: int, sequences: int) -> WorkUnit:
    """Unit number ``unit_id`` of an estimate with the given seed."""
    digest = hashlib.sha256(f"errata-unit|{seed}|{unit_id}".encode()).digest()
    return WorkUnit(unit_id, int.from_bytes(digest[:8], "big") >> 1, sequences)


def seed_sequences(model: EditableModel, unit: WorkUnit, config: SelfGenerationConfig) -> list[list[int]]:
    """What each sequence of a unit starts from, the unit's own seed deciding."""
    generator = torch.Generator().manual_seed(unit.seed)
    tokenizer = model.text.tokenizer
    if config.seed_mode == "bos":
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError("covariance.seed_mode 'bos' needs a tokenizer with a BOS or EOS token; use 'rand'")
        return [[int(start)]] * unit.sequences
    if config.seed_pool == "words":
        pool = words_of(tokenizer, int(model.hf.config.vocab_size))
        places = torch.randint(len(pool), (unit.sequences, config.seed_tokens), generator=generator).tolist()
        drawn = [[pool[place] for place in row] for row in places]
    else:
        size = int(model.hf.config.vocab_size)
        drawn = torch.randint(size, (unit.sequences, config.seed_tokens), generator=generator).tolist()
    before = list(model.text.bos)
    if config.seed_bos is not None:
        before = [] if not config.seed_bos else before or _bos(tokenizer)
    return [[*before, *tokens] for tokens in drawn]


def words_of(tokenizer: Any, size: int) -> list[int]:
    """Ids of a tokenizer's words below ``size``, ascending: no special token, no added control token."""
    special = set(tokenizer.all_special_ids) | {int(number) for number in tokenizer.added_tokens_decoder}
    return sorted(number for number in set(tokenizer.get_vocab().values()) - special if number < size)


def _bos(tokenizer: Any) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise UserError("covariance.seed_bos true needs a tokenizer with a BOS token")
    return [int(tokenizer.bos_token_id)]


@torch.no_grad()
def run_unit(
    model: EditableModel,
    unit: WorkUnit,
    layers: Sequence[int],
    config: SelfGenerationConfig,
    *,
    keep_tokens: bool = False,
) -> UnitResult:
    """Generate a unit's sequences and sum the keys of their sampled tokens.

    The seed's own keys are excluded; the last sampled token is fed once more for its key. An end-of-text token
    ends a sequence and is not counted. A slot whose sequence has ended takes the unit's next seed at once.
    ``keep_tokens`` returns what was sampled too, so that a second pass can check the keys.
    """
    started = time.perf_counter()
    device = model.device
    waiting = seed_sequences(model, unit, config)
    longest = max(len(s) for s in waiting)
    if model.capacity.positions is not None and longest + config.max_new_tokens > model.capacity.positions:
        raise UserError(
            f"covariance.max_new_tokens {config.max_new_tokens} after {counted_of(longest, 'token')} of the seed: "
            f"the model has {model.capacity.positions} positions"
        )
    slots = min(config.slots, len(waiting))
    generator = torch.Generator(device=device).manual_seed(unit.seed ^ 0x5DEECE66D)
    sampler = config.sampler or default_sampler(int(model.hf.config.vocab_size))
    moments = {layer: model.moments(layer) for layer in layers}
    cache = SlotKV(slots, longest + config.max_new_tokens + 1)
    cache.write_at = cache.write_at.to(device)
    active = [_Sequence(waiting.pop(0)) for _ in range(slots)]
    ended: list[_Sequence] = []
    with model.map_inputs(layers) as inputs:
        while active:
            fed = torch.tensor([[s.next_token()] for s in active], device=device)
            hidden = extend(model, cache, fed)
            cache.write_at = cache.write_at + 1
            counted = [i for i, s in enumerate(active) if s.last_was_sampled]
            if counted:
                rows = torch.tensor(counted, device=device)
                for layer in layers:
                    moments[layer].add(inputs[layer][rows, 0])
            picked, logprobs = draw(model.logits(hidden[:, 0]), generator, sampler)
            losses = (-logprobs).tolist()
            keep: list[int] = []
            for i, (sequence, token) in enumerate(zip(list(active), picked.tolist(), strict=True)):
                if not sequence.take(token, losses[i], model.text.eos_ids, config.max_new_tokens):
                    keep.append(i)
                    continue
                ended.append(sequence)
                if waiting:
                    active[i] = _Sequence(waiting.pop(0))
                    cache.write_at[i] = 0
                    keep.append(i)
            if len(keep) < len(active):
                active = [active[i] for i in keep]
                cache.keep_rows(torch.tensor(keep, dtype=torch.long, device=device))
    sums = {layer: moment.total().cpu() for layer, moment in moments.items()}
    tokens = moments[layers[0]].count if layers else sum(s.sampled for s in ended)
    return UnitResult(
        unit.unit_id,
        sums,
        tokens,
        tuple((s.nll, s.sampled) for s in ended),
        time.perf_counter() - started,
        tuple(opening_words(model, s.tokens) for s in ended),
        tuple((tuple(s.seeds), tuple(s.tokens)) for s in ended) if keep_tokens else (),
    )


def opening_words(model: EditableModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """The first three words of generated tokens (MOIR, figure 10): what stands between white space."""
    return tuple(model.text.decode(tokens[:_OPENING_TOKENS]).split()[:3])


class _Sequence:
    """One sequence on its way: seeds still to be fed, then the tokens it samples."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.tokens: list[int] = []
        self._pending = list(seeds)
        self.sampled = 0
        self.nll = 0.0
        self.last_was_sampled = False
        self._token: int | None = None

    def next_token(self) -> int:
        """The token to feed in this step."""
        if self._pending:
            self.last_was_sampled = False
            return self._pending.pop(0)
        self.last_was_sampled = True
        assert self._token is not None
        return self._token

    def take(self, token: int, loss: float, stops: frozenset[int], limit: int) -> bool:
        """Take a sampled token unless seeds are still pending; True when the sequence has ended."""
        if self._pending:
            return False
        if self.sampled == limit or token in stops:
            return True
        self._token = token
        self.tokens.append(token)
        self.sampled += 1
        self.nll += loss
        return not math.isfinite(loss)
