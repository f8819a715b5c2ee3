"""SHA-256 digests of JSON values, tensors and files: the keys under which everything is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 20


def digest_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of keys and of white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over names, dtypes, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # bfloat16 has no NumPy type: the bytes are read through an integer view of the same width
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
