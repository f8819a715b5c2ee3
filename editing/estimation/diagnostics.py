"""What a covariance says, and whether a new estimate may be believed: spectra, overlaps, likelihood of documents.

Pure functions. Letters: I = d_in of the edited map, n documents, G grid points.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Documents = Sequence[tuple[float, int]]
"""(sum of -log p in nats, predicted tokens) per document."""

BINS = 512
"""Points of the common grid (MOIR, D.3)."""

FEWEST_DOCUMENTS = 30
"""Below this a divergence says little: at 20 documents two samples of one distribution reach 0.12 nats, at 50 0.05."""

_KDE_ELEMENTS = 1 << 22
_LENGTH_SLACK = 0.1


# ---------------------------------------------------------------- spectra


def eigenspectrum(mean: Tensor) -> Tensor:
    """Eigenvalues of C (I, I), descending, float64 (I,); what rounding pushed below zero is zero."""
    return torch.linalg.eigvalsh(mean.double()).flip(0).clamp_min(0.0)


def effective_rank(eigenvalues: Tensor) -> float:
    """``exp(H(p))`` with p the eigenvalues divided by their sum (Roy & Vetterli 2007); 0 for a zero matrix.

    Between 1 (one direction) and I (all directions alike).
    """
    total = eigenvalues.sum()
    if float(total) <= 0.0:
        return 0.0
    share = eigenvalues[eigenvalues > 0] / total
    return float(torch.exp(-(share * share.log()).sum()))


def null_space_dimension(eigenvalues: Tensor, tau: float) -> int:
    """Directions that AlphaEdit may change: eigenvalues below ``tau`` (the rule of its projector)."""
    return int((eigenvalues < tau).sum())


def decompose(mean: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``eigenspectrum`` (I,) and ``leading_subspace`` (I, k) of C (I, I) by one decomposition.

    Raises:
        ValueError: k is not within 1..I.
    """
    if not 1 <= k <= mean.shape[0]:
        raise ValueError(f"k must be within 1..{mean.shape[0]}, got {k}")
    values, vectors = torch.linalg.eigh(mean.double())
    return values.flip(0).clamp_min(0.0), vectors.flip(1)[:, :k].contiguous()


def energy_basis(mean: Tensor, share: float) -> Tensor:
    """Orthonormal eigenvectors (I, k) of the largest eigenvalues of C: the fewest that hold ``share`` of its trace.

    Raises:
        ValueError: share is not within (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    values, vectors = decompose(mean, mean.shape[0])
    held = values.cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1
    return vectors[:, :count].contiguous()


def leading_subspace(mean: Tensor, k: int) -> Tensor:
    """Orthonormal eigenvectors of the ``k`` largest eigenvalues of C, float64 (I, k), largest first.

    Raises:
        ValueError: k is not within 1..I.
    """
    return decompose(mean, k)[1]


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine of the principal angles between two bases (I, k): ``|U^T V|_F^2 / k``, 0..1.

    Raises:
        ValueError: the bases differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"bases of different shapes: {tuple(first.shape)} and {tuple(second.shape)}")
    return float((first.T @ second).square().sum()) / first.shape[1]


# ---------------------------------------------------------------- drift


def energy_outside(basis: Tensor, moment: Tensor) -> float:
    """Share of key energy that a subspace misses: ``1 - tr(V^T M V) / tr(M)``, 0..1; 0 for a zero moment, 1 for one
    that is no number.

    Args:
        basis: orthonormal columns V (I, k), such as the leading eigenvectors of the covariance in force.
        moment: second moment of new keys (I, I), a sum or a mean.
    """
    total = float(moment.diagonal().sum())
    if not math.isfinite(total):
        return 1.0
    if total <= 0.0:
        return 0.0
    inside = float((basis.to(moment.dtype) * (moment @ basis.to(moment.dtype))).sum())
    return min(1.0, max(0.0, 1.0 - inside / total))


def key_energy_outside(basis: Tensor, keys: Tensor) -> float:
    """``energy_outside`` for keys (n, I) themselves, without their moment."""
    keys = keys.to(basis.dtype)
    total = float(keys.square().sum())
    return 0.0 if total <= 0.0 else min(1.0, max(0.0, 1.0 - float((keys @ basis).square().sum()) / total))


def nll_shift(first: Documents, new: Documents) -> float:
    """How far the mean per-document NLL has moved, in standard deviations of the first sample; signed.

    0.0 where either has too few documents to tell; infinite where the first has no spread and the mean moved.
    """
    before, after = per_token_nll(first), per_token_nll(new)
    if before.numel() < 2 or after.numel() < 1:
        return 0.0
    moved, spread = float(after.mean() - before.mean()), float(before.std())
    return moved / spread if spread > 0 else math.copysign(math.inf, moved) if moved else 0.0


# ---------------------------------------------------------------- likelihood of documents


def per_token_nll(documents: Documents) -> Tensor:
    """NLL per predicted token of each document, nats, float64 (n,) (MOIR, eq. 21); empty documents are left out."""
    return torch.tensor([nll / count for nll, count in documents if count > 0], dtype=torch.float64)


def density(sample: Tensor, grid: Tensor) -> Tensor:
    """Gaussian kernel density (G,) of a sample (n,) on a grid (G,), bandwidth by Scott's rule ``s n^(-1/5)``.

    ``s`` is the sample's standard deviation (n - 1). A sample without spread gets the grid's step as its bandwidth.
    """
    step = float(grid[1] - grid[0])
    spread = float(sample.std()) if sample.numel() > 1 else 0.0
    bandwidth = max(spread * sample.numel() ** -0.2, 0.0) or step
    total = torch.zeros_like(grid)
    rows = max(1, _KDE_ELEMENTS // grid.numel())
    for part in sample.split(rows):
        total += torch.exp(-0.5 * ((grid[None, :] - part[:, None]) / bandwidth).square()).sum(dim=0)
    return total / (sample.numel() * bandwidth * math.sqrt(2.0 * math.pi))


def common_grid(samples: Sequence[Tensor], bins: int = BINS) -> Tensor:
    """``bins`` points over the pooled [0.5, 99.5] percentiles of samples (n_i,), float64 (bins,)."""
    pooled = torch.cat(list(samples)).double()
    low, high = (float(_quantile(pooled, q)) for q in (0.005, 0.995))
    if not high > low:  # one value only: any width shows it
        low, high = low - 0.5, high + 0.5
    return torch.linspace(low, high, bins, dtype=torch.float64)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Linear interpolation; torch.quantile refuses more than 16 million values."""
    ordered = values.sort().values
    place = q * (ordered.numel() - 1)
    below = int(place)
    above = min(below + 1, ordered.numel() - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def jensen_shannon(first: Tensor, second: Tensor, bins: int = BINS) -> float:
    """Jensen-Shannon divergence of two samples (n,) and (m,), nats, 0..ln 2 (MOIR, eq. 22; not its root).

    Densities on the common grid are normalized to sum to one.

    Raises:
        ValueError: a sample is empty.
    """
    if not first.numel() or not second.numel():
        raise ValueError("a divergence needs at least one value on each side")
    grid = common_grid([first, second], bins)
    p, q = (density(sample.double(), grid) for sample in (first, second))
    p, q = p / p.sum(), q / q.sum()
    m = 0.5 * (p + q)

    def kl(x: Tensor) -> float:
        on = x > 0
        return float((x[on] * (x[on] / m[on]).log()).sum())

    return min(max(0.5 * kl(p) + 0.5 * kl(q), 0.0), math.log(2.0))


def sanity(first: Documents, new: Documents, bound: float) -> tuple[bool, float | None]:
    """Whether a new estimate may replace the first one: JSD of per-document NLL at most ``bound``, and that JSD.

    A document whose likelihood is no finite number fails the check outright (JSD ln 2), and so does a model that has
    come to end most of its documents before their first token. With fewer than ``FEWEST_DOCUMENTS`` on either side
    nothing can be told: (True, None).
    """
    before, after = per_token_nll(first), per_token_nll(new)
    if not bool(torch.isfinite(after).all()):
        return False, math.log(2.0)
    before = before[torch.isfinite(before)]
    if len(new) >= FEWEST_DOCUMENTS and _empty_share(new) > 0.5 >= _empty_share(first):
        return False, math.log(2.0)
    if min(before.numel(), after.numel()) < FEWEST_DOCUMENTS:
        return True, None
    divergence = jensen_shannon(before, after)
    return divergence <= bound, divergence


def _empty_share(documents: Documents) -> float:
    return sum(count == 0 for _, count in documents) / len(documents) if documents else 0.0


@dataclass(frozen=True)
class Comparable:
    """Per-token NLL (n,) by name, and whether the documents could be chosen of equal length."""

    samples: Mapping[str, Tensor]
    equal_length: bool


def of_equal_length(documents: Mapping[str, Documents], fewest: int = FEWEST_DOCUMENTS) -> Comparable:
    """Documents that may be compared: within a tenth of the longest length that every source reaches.

    The mean NLL of a short document spreads more and sits higher than that of a long one, so lengths must agree;
    where that leaves a source fewer than ``fewest`` documents, all are taken and ``equal_length`` is False.
    """
    longest = [max((count for _, count in docs), default=0) for docs in documents.values()]
    target = min(longest, default=0)
    low, high = target * (1 - _LENGTH_SLACK), target * (1 + _LENGTH_SLACK)
    chosen = {name: [d for d in docs if low <= d[1] <= high] for name, docs in documents.items()}
    equal = all(len(documents_left) >= min(fewest, len(documents[name])) for name, documents_left in chosen.items())
    return Comparable({n: per_token_nll(chosen[n] if equal else documents[n]) for n in documents}, equal)


# ---------------------------------------------------------------- first words


@dataclass(frozen=True)
class WordShare:
    """A word and the share of sequences that have it at a place."""

    word: str
    share: float


def opening_shares(openings: Sequence[Sequence[str]], place: int, most: int = 10) -> list[WordShare]:
    """The commonest words at a place (0, 1, 2) of generated sequences (MOIR, figure 10), most frequent first.

    The share is of all sequences, also of those that end before. Ties stand in alphabetical order.
    """
    counts = Counter(words[place] for words in openings if len(words) > place)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [WordShare(word, count / len(openings)) for word, count in ranked]
