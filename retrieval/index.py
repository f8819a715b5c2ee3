"""Nearest vectors by inner product, with ids: a full scan while small, inverted lists with a tail when large.

The scan reads vectors in half precision, which is four to seven times faster than in float32 where memory
bandwidth is short; the owner keeps the float32 vectors, scores the candidates again with them, and knows by
``SCAN_ERROR`` when enough candidates were looked at for the result to be exact.
The index is a cache: its owner can build it again at any time.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.extras import Later

logger = logging.getLogger(__name__)

# Any: the library's type hints come and go between releases and miss members that are there. Imported when an index
# is made: reading a run's history needs none
faiss: Any = Later("faiss")

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

SCAN_ERROR = 6e-4
"""Bound of |scan score - inner product| for unit vectors: rounding to half precision changes each coordinate by
2^-11 at most (relative), so the product by 2^-11 (Cauchy-Schwarz); the rest is for float32 sums of up to some
thousand terms and for subnormal halves."""

# Batches from this size on go through a matrix product, 4-10 times faster; the library's own default differs
# between releases, so it is stated.
_BLAS_FROM = 20
# k-means needs points per centroid: below 39 the library warns, above 64 more points change little
_POINTS_PER_LIST = 39
_TRAIN_POINTS_PER_LIST = 64
_FLAT, _LISTS = "flat.faiss", "lists.faiss"


class IndexConfig(Closed):
    """When the search stops being exhaustive, and how far it looks then."""

    exact_limit: int = Field(200_000, ge=1)
    """Up to this many vectors every search looks at all of them."""
    nprobe: int = Field(16, ge=1)
    """Inverted lists visited per query, beyond ``exact_limit``."""
    tail_share: float = Field(0.1, gt=0, le=1)
    """New vectors are searched exactly until they are this share of the lists; then they join the lists."""


class VectorIndex:
    """FAISS behind four verbs: build, add, remove, search.

    Not thread-safe. Single queries are faster on one thread, so the constructor sets the library's
    thread count to one (a setting for the whole process).
    """

    def __init__(self, dim: int, config: IndexConfig | None = None) -> None:
        self.dim = dim
        self.config = config or IndexConfig()
        faiss.omp_set_num_threads(1)
        faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM
        self._flat = self._new_flat()
        self._lists: Any | None = None
        self._trained_on = 0

    def __len__(self) -> int:
        return int(self._flat.ntotal) + (int(self._lists.ntotal) if self._lists is not None else 0)

    @property
    def exact(self) -> bool:
        """Whether a search looks at every vector."""
        return self._lists is None

    @property
    def needs_build(self) -> bool:
        """Whether the content has outgrown the structure, or shrunk below it; searches stay right."""
        if self._lists is None:
            return len(self) > self.config.exact_limit
        return len(self) > 2 * self._trained_on or len(self) <= self.config.exact_limit // 2

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Replace the content by ``vectors`` (n, dim), float32, under ``ids`` (n,), int64 and distinct."""
        self._flat, self._lists, self._trained_on = self._new_flat(), None, 0
        if len(ids) <= self.config.exact_limit:
            if len(ids):
                self._flat.add_with_ids(vectors, ids)
            return
        count = len(ids)
        lists = max(1, min(int(4 * math.sqrt(count)), count // _POINTS_PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dim), self.dim, lists, faiss.METRIC_INNER_PRODUCT)
        # a hash table from id to place: removing needs no scan of all lists
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
        index.nprobe = min(self.config.nprobe, lists)
        index.train(vectors[_sample(count, lists * _TRAIN_POINTS_PER_LIST)])
        index.add_with_ids(vectors, ids)
        self._lists, self._trained_on = index, count

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors under ids that are not in the index (FAISS would keep both under one id)."""
        if not len(ids):
            return
        self._flat.add_with_ids(vectors, ids)
        lists = self._lists
        if lists is not None and self._flat.ntotal > self.config.tail_share * lists.ntotal:
            count = int(self._flat.ntotal)
            tail_ids = faiss.vector_to_array(self._flat.id_map).astype(np.int64)
            lists.add_with_ids(self._flat.index.reconstruct_n(0, count), tail_ids)
            self._flat = self._new_flat()

    def remove(self, ids: Ids) -> int:
        """Take vectors out by id; returns how many were there."""
        if not len(ids):
            return 0
        removed = int(self._flat.remove_ids(ids))
        if self._lists is not None and removed < len(ids):
            removed += int(self._lists.remove_ids(ids))
        return removed

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Scan scores (n, k), descending, and ids (n, k), padded with ``-inf`` and ``-1``.

        For unit vectors a score is within ``SCAN_ERROR`` of the inner product; for others of at least that length the
        bound grows with the product of their lengths.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, ids = self._search_one(self._flat, queries, k)
        if self._lists is None:
            return scores, ids
        more_scores, more_ids = self._search_one(self._lists, queries, k)
        scores, ids = np.hstack([scores, more_scores]), np.hstack([ids, more_ids])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def _search_one(self, index: Any, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
        if not index.ntotal or not len(queries):
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        scores, ids = index.search(queries, k)
        scores[ids < 0] = -np.inf
        return scores, ids

    def save(self, directory: Path) -> dict[str, Path]:
        """Write the index files into an existing directory; returns name -> path."""
        parts = {_FLAT: self._flat} | ({_LISTS: self._lists} if self._lists is not None else {})
        for name, part in parts.items():
            faiss.write_index(part, str(directory / name))
        return {name: directory / name for name in parts}

    def load(self, files: dict[str, Path], ids: Ids) -> None:
        """Read files written by :meth:`save`.

        Args:
            files: name -> path, as returned by :meth:`save`.
            ids: (n,) the ids the owner expects to find, in any order.

        Raises:
            ValueError: a file is missing, unreadable, of another shape, or holds other ids. The content is
                unchanged then.
        """
        try:
            flat = faiss.read_index(str(files[_FLAT]))
            lists = faiss.read_index(str(files[_LISTS])) if _LISTS in files else None
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"index not readable: {str(error).splitlines()[0]}") from error
        right = isinstance(flat, faiss.IndexIDMap2) and isinstance(
            faiss.downcast_index(flat.index), faiss.IndexScalarQuantizer
        )
        if not right or (lists is not None and not isinstance(lists, faiss.IndexIVFFlat)):
            raise ValueError(f"index of another kind: {type(flat).__name__}, {type(lists).__name__}")
        held = [faiss.vector_to_array(flat.id_map)]
        if lists is not None:
            held += [_list_ids(lists, number) for number in range(lists.nlist)]
        if flat.d != self.dim or (lists is not None and lists.d != self.dim):
            raise ValueError(f"index of dimension {flat.d}, expected {self.dim}")
        if not np.array_equal(np.sort(np.concatenate(held)), np.sort(ids)):
            raise ValueError(f"index holds other ids than the {len(ids)} expected")
        if (lists is None) != (len(ids) <= self.config.exact_limit):
            raise ValueError("index of another size class than the configuration asks for")
        flat.index = faiss.downcast_index(flat.index)
        self._flat, self._lists = flat, lists
        if lists is not None:
            lists.nprobe = min(self.config.nprobe, lists.nlist)
            self._trained_on = int(lists.ntotal)

    def _new_flat(self) -> Any:
        half = faiss.ScalarQuantizer.QT_fp16
        return faiss.IndexIDMap2(faiss.IndexScalarQuantizer(self.dim, half, faiss.METRIC_INNER_PRODUCT))


def _list_ids(index: Any, number: int) -> Ids:
    size = index.invlists.list_size(number)
    if not size:
        return np.zeros(0, np.int64)
    return np.asarray(faiss.rev_swig_ptr(index.invlists.get_ids(number), size), dtype=np.int64).copy()


def _sample(count: int, at_most: int) -> NDArray[np.int64]:
    # evenly spread and without a random generator: the same content trains the same lists
    return np.linspace(0, count - 1, min(count, at_most)).astype(np.int64)
