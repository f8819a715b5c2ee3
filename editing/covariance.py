"""Second moments of keys: what an editor preserves.

``C = E[k k^T]``, uncentered, a mean per token, for each edited layer; carried as a float64 sum and a token count, so
that shards merge by addition. A covariance is known by the digest of its content and of what it was made from.

Letters: I = d_in of the edited map.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.digest import digest_json, digest_tensors
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.tensors import read_tensors, write_tensors

_FORMAT = "errata-covariance-1"
_RECORD = "record"
_PANELS = 6
"""Of a product's panels only what lies on or below the diagonal is computed: 7/12 of it with six."""
_NARROWEST = 256
"""Columns of a panel; narrower products waste more than symmetry saves."""


@dataclass(frozen=True)
class SampleRecord:
    """What is remembered of the documents behind a covariance besides their keys.

    ``documents`` holds (sum of -log p in nats, predicted tokens) per document; ``openings`` the first words of each
    generated one. Either may be empty where it was not taken.
    """

    documents: tuple[tuple[float, int], ...] = ()
    openings: tuple[tuple[str, ...], ...] = ()

    def to_bytes(self) -> bytes:
        """JSON; equal records give equal bytes."""
        return json.dumps({"documents": self.documents, "openings": self.openings}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SampleRecord:
        """The record that ``to_bytes`` wrote; raises ValueError or KeyError for anything else."""
        fields = json.loads(data)
        documents = tuple((float(nll), int(count)) for nll, count in fields["documents"])
        return cls(documents, tuple(tuple(str(word) for word in words) for words in fields["openings"]))


@dataclass(frozen=True)
class KeyCovariance:
    """Sums of key outer products by layer, float64 (I, I) on the CPU, over ``tokens`` tokens.

    ``source`` says what it was made from (kind, seed, budget, model version, dtype); it is part of the digest.
    ``record`` is not: the matrices are what they are whether or not somebody remembers the documents. It travels in
    the same file under a checksum of its own.
    """

    sums: Mapping[int, Tensor]
    tokens: int
    source: Mapping[str, Any]
    record: SampleRecord | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sums, the token count and the source."""
        content = digest_tensors({str(layer): value for layer, value in self.sums.items()})
        return digest_json({"sums": content, "tokens": self.tokens, "source": dict(self.source)})

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers covered, ascending."""
        return tuple(sorted(self.sums))

    def mean(self, layer: int) -> Tensor:
        """C of one layer, float64 (I, I).

        Raises:
            UserError: the layer is not covered or no token was counted.
        """
        if layer not in self.sums:
            raise UserError(f"the covariance covers layers {list(self.layers)}, not layer {layer}")
        if self.tokens <= 0:
            raise UserError("the covariance counts no tokens; estimate it with a budget above 0")
        return self.sums[layer] / self.tokens

    def save(self, path: Path) -> None:
        """Write a safetensors file that carries its own digest, and the record if there is one."""
        metadata = {
            "tokens": str(self.tokens),
            "source": json.dumps(dict(self.source), sort_keys=True),
            "digest": self.digest,
        }
        tensors = {str(layer): value.contiguous() for layer, value in self.sums.items()}
        if self.record is not None:
            data = self.record.to_bytes()
            metadata["record_digest"] = hashlib.sha256(data).hexdigest()
            tensors[_RECORD] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        write_tensors(path, tensors, _FORMAT, metadata)

    @classmethod
    def load(cls, path: Path) -> KeyCovariance:
        """Read a file and check it against its digest.

        Raises:
            DamagedFileError: it is not such a file, is cut short, or its bytes have changed.
        """
        metadata, tensors = read_tensors(path, _FORMAT, "covariance file")
        try:
            record = _checked_record(tensors.pop(_RECORD, None), metadata.get("record_digest"))
            sums = {int(name): value for name, value in tensors.items()}
            loaded = cls(sums, int(metadata["tokens"]), json.loads(metadata["source"]), record)
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFileError(f"covariance file {path.name!r} cannot be read: {error}") from error
        if loaded.digest != metadata.get("digest"):
            raise DamagedFileError(
                f"covariance file {path.name!r}: digest {loaded.digest[:12]}, want {str(metadata.get('digest'))[:12]}"
            )
        return loaded

    @classmethod
    def identity(cls, sizes: Mapping[int, int]) -> KeyCovariance:
        """C = I for every layer; ``sizes`` gives d_in by layer."""
        sums = {layer: torch.eye(size, dtype=torch.float64) for layer, size in sizes.items()}
        return cls(sums, 1, {"kind": "identity"})


def _checked_record(data: Tensor | None, digest: str | None) -> SampleRecord | None:
    if data is None and digest is None:
        return None
    content = b"" if data is None else data.numpy().tobytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("the record of its documents is not what was written")
    return SampleRecord.from_bytes(content)


def merge(parts: Sequence[KeyCovariance], source: Mapping[str, Any] | None = None) -> KeyCovariance:
    """Sum of covariances over the same layers, in the order given; counts add exactly, records are joined.

    Raises:
        UserError: nothing to merge, or the parts cover different layers or maps of different widths.
    """
    if not parts:
        raise UserError("nothing to merge: give at least one covariance")
    layers = parts[0].layers
    for part in parts[1:]:
        if part.layers != layers:
            raise UserError(f"covariances cover different layers: {list(layers)} and {list(part.layers)}")
        for layer in layers:
            if part.sums[layer].shape != parts[0].sums[layer].shape:
                raise UserError(
                    f"covariances of different widths at layer {layer}: {parts[0].sums[layer].shape[0]} and "
                    f"{part.sums[layer].shape[0]}; they are of different models"
                )
    sums = {layer: parts[0].sums[layer].clone() for layer in layers}
    for part in parts[1:]:
        for layer in layers:
            sums[layer] += part.sums[layer]
    made_from = source if source is not None else {"kind": "merge", "parts": [part.digest for part in parts]}
    return KeyCovariance(sums, sum(part.tokens for part in parts), made_from, joined_record(parts))


def joined_record(parts: Sequence[KeyCovariance]) -> SampleRecord | None:
    """The documents of all parts, in order; None where a part has no record."""
    records = [part.record for part in parts if part.record is not None]
    if len(records) < len(parts):
        return None
    return SampleRecord(
        tuple(document for record in records for document in record.documents),
        tuple(words for record in records for words in record.openings),
    )


class MomentAccumulator:
    """Adds up k k^T of one layer: keys gather in a buffer, products are taken in blocks, sums kept in float64.

    Half-precision keys multiply with a float32 accumulator; blocks have a fixed size, so the result does not depend
    on how the keys arrived. Of a wide product little more than the lower half is computed, in panels of columns.
    """

    def __init__(self, size: int, *, block: int = 256, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.count = 0
        self._buffer = torch.zeros(block, size, dtype=torch.float32, device=device)
        self._fill = 0
        panels = max(1, min(_PANELS, size // _NARROWEST))
        edges = [size * i // panels for i in range(panels + 1)]
        self._panels = [slice(a, b) for a, b in pairwise(edges)]

    def add(self, keys: Tensor) -> None:
        """Take keys (n, I) of any floating type."""
        at = 0
        while at < keys.shape[0]:
            take = min(keys.shape[0] - at, self._buffer.shape[0] - self._fill)
            self._buffer[self._fill : self._fill + take] = keys[at : at + take]
            self._fill += take
            at += take
            if self._fill == self._buffer.shape[0]:
                self._flush()
        self.count += keys.shape[0]

    def _flush(self) -> None:
        if self._fill:
            block = self._buffer[: self._fill]
            for panel in self._panels:
                self.sum[panel.start :, panel] += block[:, panel.start :].T @ block[:, panel]
            self._fill = 0

    def total(self) -> Tensor:
        """The sum so far, float64 (I, I); symmetric."""
        self._flush()
        if len(self._panels) == 1:
            return 0.5 * (self.sum + self.sum.T)
        lower = self.sum.tril()
        return lower + lower.tril(-1).T
