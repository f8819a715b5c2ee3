"""One token per row from a next-token distribution: exact ancestral sampling with one uniform number a row.

Two ways that draw from the same distribution and turn the same uniform number into the same token but for rounding.
``inversion`` computes the whole distribution function in float64. With a vocabulary of 262 144 words that took as long
as a third of the model's products, so ``blocks`` adds up blocks of words in float32, inverts the distribution
function of the blocks in float64, and then that of the words of the one block that was hit.

Letters: S rows, V words, K words of a block.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sampler = Literal["inversion", "blocks"]

LARGE_VOCABULARY = 1 << 16
"""Words beyond which ``blocks`` is the default: what was sampled from smaller vocabularies keeps its digest."""
_BLOCK = 512
"""Words of a block: a row of 262 144 has 512 blocks, so both searches are short."""


def default_sampler(vocabulary: int) -> Sampler:
    """How a vocabulary of that many words is sampled unless a setting says otherwise."""
    return "blocks" if vocabulary > LARGE_VOCABULARY else "inversion"


def draw(logits: Tensor, generator: torch.Generator, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """A token per row (S,), int64, and its log-probability (S,), float32, from logits (S, V) of any floating type."""
    if sampler == "blocks":
        return _by_blocks(logits.float(), generator)
    logprobs = logits.float().log_softmax(dim=-1)
    picked = by_inversion(logprobs, generator)
    return picked.squeeze(1), logprobs.gather(1, picked).squeeze(1)


def by_inversion(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row (S, 1) from log-probabilities (S, V), by inverting the distribution function.

    Exact ancestral sampling with one uniform number per row; drawing one per vocabulary entry, as the library's
    multinomial does, took a tenth of the whole estimate.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    uniform = torch.rand(logprobs.shape[0], 1, generator=generator, dtype=torch.float64, device=logprobs.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.clamp_max(logprobs.shape[1] - 1)


def _by_blocks(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows, words = logits.shape
    largest = logits.amax(dim=1, keepdim=True)
    weights = (logits - largest).exp_()
    whole = words // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=-1) if whole else weights[:, :0]
    if whole < words:
        sums = torch.cat([sums, weights[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    cumulative = sums.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = torch.rand(rows, 1, generator=generator, dtype=torch.float64, device=logits.device)
    wanted = uniform * total
    block = _first_beyond(cumulative, wanted)
    size = sums.double().gather(1, block)
    # a share of the block, so that its float32 sum and the float64 one of its words need not agree to the last bit
    share = ((wanted - (cumulative.gather(1, block) - size)) / size).clamp(0.0, 1.0)
    places = block * _BLOCK + torch.arange(min(_BLOCK, words), device=logits.device)
    inside = weights.gather(1, places.clamp_max(words - 1)).double().masked_fill(places >= words, 0.0).cumsum(dim=-1)
    picked = block * _BLOCK + _first_beyond(inside, share * inside[:, -1:])
    logprobs = logits.gather(1, picked) - largest - total.log().float()
    return picked.squeeze(1), logprobs.squeeze(1)


def _first_beyond(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """The first place of each row (S, n) whose value is larger than ``wanted`` (S, 1); never one that adds nothing."""
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(wanted))
    return torch.searchsorted(cumulative, torch.minimum(wanted, below), right=True).clamp_max(cumulative.shape[1] - 1)
