"""Covariances in a twenty-fifth of the space: sixteen levels for most entries, half precision for a few.

``C = D R D`` with ``D`` the roots of the diagonal. Below the diagonal of the correlations ``R`` each entry is one of
sixteen levels (Lloyd 1982, least squares on the entries themselves), except the hundredth part whose error would weigh
most in ``C``, which are kept in half precision. Of a language model's keys that changes a tenth of what another sample
of the same size changes (docs/covariance.md); of keys that are nearly all correlated, more. All of ``R`` off its
diagonal is then shrunk by as little as makes the matrix positive definite.

Unpacking multiplies numbers and adds none, so it gives the same bytes on every machine, and the covariance's digest is
one of its content like any other's. Its source is the one it was packed from with a key ``packed`` beside it, which
names the digest of the whole one: nobody takes the one for the other.

Letters: I = d_in of the edited map, N = I (I - 1) / 2 entries below the diagonal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.tensors import header_of, read_tensors, write_tensors

FORMAT = "errata-covariance-packed-1"
PACKED = "packed"
"""Key of a packed covariance's source that says so."""
_LEVELS = 16
_EXACT = 0.01
_SAMPLED = 1 << 20
"""Entries that the levels are found from, evenly taken."""
_ROUNDS = 25
_LEAST = 1e-3
"""Smallest eigenvalue of the shrunk correlations."""
_RECORD = "record"


def is_packed(source: Mapping[str, Any]) -> bool:
    """Whether a covariance's source says that it was packed."""
    return PACKED in source


def whole_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """The source of the covariance that was packed."""
    return {key: value for key, value in source.items() if key != PACKED}


def save_packed(covariance: KeyCovariance, path: Path) -> KeyCovariance:
    """Write a covariance packed; what `load_packed` reads from the file.

    Raises:
        UserError: it is packed already, counts no tokens, or has no energy in a direction of the basis.
    """
    if is_packed(covariance.source):
        raise UserError("the covariance is packed already")
    tensors: dict[str, Tensor] = {}
    for layer in covariance.layers:
        for name, value in _pack(covariance.mean(layer), layer).items():
            tensors[f"{layer}.{name}"] = value
    source = {**covariance.source, PACKED: {"levels": _LEVELS, "of": covariance.digest}}
    packed = KeyCovariance(_unpacked(tensors, covariance.tokens), covariance.tokens, source, covariance.record)
    if covariance.record is not None:
        tensors[_RECORD] = torch.frombuffer(bytearray(covariance.record.to_bytes()), dtype=torch.uint8)
    metadata = {
        "tokens": str(covariance.tokens),
        "source": json.dumps(source, sort_keys=True),
        "digest": packed.digest,
    }
    write_tensors(path, tensors, FORMAT, metadata)
    return packed


def load_packed(path: Path) -> KeyCovariance:
    """Read a packed covariance and check it against its digest.

    Raises:
        DamagedFileError: it is not such a file, is cut short, or its bytes have changed.
    """
    metadata, tensors = read_tensors(path, FORMAT, "packed covariance")
    try:
        record = tensors.pop(_RECORD, None)
        tokens = int(metadata["tokens"])
        loaded = KeyCovariance(
            _unpacked(tensors, tokens),
            tokens,
            json.loads(metadata["source"]),
            None if record is None else SampleRecord.from_bytes(record.numpy().tobytes()),
        )
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise DamagedFileError(f"packed covariance {path.name!r} cannot be read: {error}") from error
    if loaded.digest != metadata.get("digest"):
        raise DamagedFileError(
            f"packed covariance {path.name!r}: digest {loaded.digest[:12]}, want {str(metadata.get('digest'))[:12]}"
        )
    return loaded


def origin_of(path: Path) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """What a packed covariance was made from, its layers and the tokens that it counts, by its header alone.

    Raises:
        DamagedFileError: it is no such file.
    """
    metadata, names = header_of(path, "packed covariance")
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}")
        layers = tuple(sorted({int(name.partition(".")[0]) for name in names if name != _RECORD}))
        return whole_source(json.loads(metadata["source"])), layers, int(metadata["tokens"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"packed covariance {path.name!r} cannot be read: {error}") from error


def load_covariance(path: Path) -> KeyCovariance:
    """Read a covariance, packed or not.

    Raises:
        DamagedFileError: it is neither, is cut short, or its bytes have changed.
    """
    metadata, _ = header_of(path, "covariance file")
    return load_packed(path) if metadata.get("format") == FORMAT else KeyCovariance.load(path)


def relative_error(packed: KeyCovariance, whole: KeyCovariance, layer: int) -> float:
    """Frobenius norm of what packing changed in a layer's matrix, relative to the matrix."""
    was_II = whole.mean(layer)
    return float(torch.linalg.matrix_norm(packed.mean(layer) - was_II) / torch.linalg.matrix_norm(was_II))


def _pack(mean_II: Tensor, layer: int) -> dict[str, Tensor]:
    # float32 from here on, as it will be read: what is stored has to be what the errors were weighed with
    scale_I = mean_II.diagonal().sqrt().float().double()
    if not bool((scale_I > 0).all()):
        raise UserError(f"layer {layer}: a covariance without energy in some direction of the basis cannot be packed")
    size = mean_II.shape[0]
    row_N, column_N = torch.tril_indices(size, size, -1)
    entry_N = (mean_II / scale_I[:, None] / scale_I[None, :])[row_N, column_N]
    step = max(1, len(entry_N) // _SAMPLED)
    levels = _lloyd(entry_N[::step])
    code_N = torch.bucketize(entry_N, (levels[1:] + levels[:-1]) / 2)
    weighed_N = (levels[code_N] - entry_N).abs() * scale_I[row_N] * scale_I[column_N]
    at = weighed_N.topk(math.ceil(_EXACT * len(entry_N))).indices.sort().values if len(entry_N) else weighed_N.long()
    exact = entry_N[at].half()
    padded = torch.cat([code_N, code_N.new_zeros(len(code_N) % 2)]).to(torch.uint8)
    return {
        "scale": scale_I.float(),
        "levels": levels.float(),
        "codes": (padded[0::2] | (padded[1::2] << 4)).contiguous(),
        "at": at.to(torch.int32),
        "exact": exact,
        "shrink": _shrink(_correlations(levels.float(), code_N, at, exact, size)),
    }


def _unpacked(tensors: Mapping[str, Tensor], tokens: int) -> dict[int, Tensor]:
    """Sums by layer, float64 (I, I)."""
    sums = {}
    for layer in sorted({int(name.partition(".")[0]) for name in tensors}):
        part = {name: tensors[f"{layer}.{name}"] for name in ("scale", "levels", "codes", "at", "exact", "shrink")}
        size = len(part["scale"])
        count = size * (size - 1) // 2
        code_N = torch.stack([part["codes"] & 15, part["codes"] >> 4], dim=1).flatten()[:count].long()
        matrix_II = _correlations(part["levels"], code_N, part["at"].long(), part["exact"], size)
        matrix_II *= part["shrink"].double()
        matrix_II.fill_diagonal_(1.0)
        scale_I = part["scale"].double()
        sums[layer] = matrix_II * (scale_I[:, None] * scale_I[None, :]) * float(tokens)
    return sums


def _correlations(levels: Tensor, code_N: Tensor, at: Tensor, exact: Tensor, size: int) -> Tensor:
    entry_N = levels.double()[code_N]
    entry_N[at] = exact.double()
    row_N, column_N = torch.tril_indices(size, size, -1)
    matrix_II = torch.eye(size, dtype=torch.float64)
    matrix_II[row_N, column_N] = entry_N
    matrix_II[column_N, row_N] = entry_N
    return matrix_II


def _shrink(matrix_II: Tensor) -> Tensor:
    """The largest factor of what is off the diagonal that leaves no eigenvalue below the least; a scalar, float32."""
    lowest = float(torch.linalg.eigvalsh(matrix_II)[0])
    factor = 1.0 if lowest >= _LEAST else (1 - _LEAST) / (1 - lowest)
    return torch.tensor(factor, dtype=torch.float32)


def _lloyd(entry: Tensor) -> Tensor:
    """Levels that minimize the squared distance of the nearest one, ascending; float64 (16,)."""
    if not len(entry):
        return torch.zeros(_LEVELS, dtype=torch.float64)
    ordered = entry.sort().values
    levels = ordered[((torch.arange(_LEVELS) + 0.5) / _LEVELS * len(ordered)).long()].clone()
    for _ in range(_ROUNDS):
        nearest = torch.bucketize(ordered, (levels[1:] + levels[:-1]) / 2)
        count = torch.bincount(nearest, minlength=_LEVELS)
        total = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, nearest, ordered)
        levels = torch.where(count > 0, total / count.clamp(min=1), levels)
    return levels
