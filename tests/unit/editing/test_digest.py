"""Digests change with everything they stand for, and with nothing else."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from errata.editing.digest import digest_file, digest_json, digest_tensors


def test_json_digests_ignore_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    values = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {"a": None}, [1, 2], [2, 1], "é", "e"]
    assert len({digest_json(v) for v in values}) == len(values)
    assert digest_json("é") == hashlib.sha256('"é"'.encode()).hexdigest()
    with pytest.raises(ValueError, match="JSON"):
        digest_json({"a": math.nan})


def test_tensor_digests_see_name_type_shape_and_bytes() -> None:
    base = torch.arange(6, dtype=torch.float32)
    variants = [
        {"w": base},
        {"v": base},
        {"w": base.reshape(2, 3)},
        {"w": base.reshape(3, 2)},
        {"w": base.double()},
        {"w": base.bfloat16()},
        {"w": base + 1e-7},
        {"w": base, "v": base},
        {"w": torch.zeros(0)},
        {},
    ]
    assert len({digest_tensors(v) for v in variants}) == len(variants)
    assert digest_tensors({"w": base, "v": 2 * base}) == digest_tensors({"v": 2 * base, "w": base})


def test_tensor_digests_do_not_depend_on_memory_layout() -> None:
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    turned = base.T.contiguous().T
    assert not turned.is_contiguous() and digest_tensors({"w": turned}) == digest_tensors({"w": base})


def test_file_digests_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in (b"", b"x" * ((1 << 20) + 5)):
        path.write_bytes(content)
        assert digest_file(path) == hashlib.sha256(content).hexdigest()
