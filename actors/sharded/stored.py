"""A covariance that lies in Ray's object store by layer, and is read where a layer of it is wanted.

For d_in = 28 672 a layer is 6.6 GB in float64. Given to every rank as a value, each of them would hold every layer for
the whole lifetime; so only the rank that factors a layer reads it, from the one copy its node has, and keeps nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance


class StoredSums(Mapping[int, Tensor]):
    """Sums by layer, float64 (I, I), each read when it is asked for. Not to be written to: all readers share them."""

    def __init__(self, references: Mapping[int, Any]) -> None:
        self._references = dict(references)

    def __getitem__(self, layer: int) -> Tensor:
        array: np.ndarray[Any, Any] = ray.get(self._references[layer])
        with warnings.catch_warnings():
            # that it could not be written to is what is wanted
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)

    def __contains__(self, layer: object) -> bool:
        return layer in self._references  # the one that is inherited would read it

    def __iter__(self) -> Iterator[int]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


@dataclass(frozen=True)
class StoredCovariance(KeyCovariance):
    """What `stored` makes; equal to the covariance it was made from in all but where its sums are."""

    known_digest: str = ""

    @cached_property
    def digest(self) -> str:
        """As in the base class, of whoever stored it: computing it would read every layer."""
        return self.known_digest


def stored(item: Any) -> Any:
    """A covariance with its sums in the object store, where they are as long as somebody holds it; all else as it is.

    The record of its documents stays behind: no editor looks at it.
    """
    if not isinstance(item, KeyCovariance) or isinstance(item, StoredCovariance):
        return item
    references = {layer: ray.put(value.numpy()) for layer, value in item.sums.items()}
    return StoredCovariance(StoredSums(references), item.tokens, item.source, None, item.digest)
