"""What is remembered of the documents travels with the covariance, under a checksum of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from errata.editing.covariance import KeyCovariance, SampleRecord, merge
from errata.editing.errors import DamagedFileError, UserError

RECORD = SampleRecord(((1.25, 3), (0.0, 0)), (("Sure", "I"), ("ü\x00",), ()))


def covariance(record: SampleRecord | None = RECORD, size: int = 3) -> KeyCovariance:
    return KeyCovariance({2: torch.eye(size, dtype=torch.float64)}, 4, {"kind": "test"}, record)


def test_a_record_comes_back_and_is_no_part_of_the_digest(tmp_path: Path) -> None:
    covariance().save(tmp_path / "c.safetensors")
    back = KeyCovariance.load(tmp_path / "c.safetensors")
    assert back.record == RECORD and back.layers == (2,)
    assert back.digest == covariance(None).digest
    covariance(None).save(tmp_path / "bare.safetensors")
    assert KeyCovariance.load(tmp_path / "bare.safetensors").record is None


def test_a_changed_record_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    covariance().save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    other = replace(covariance(), record=SampleRecord(((1.5, 3),))).record
    assert other is not None
    tensors["record"] = torch.frombuffer(bytearray(other.to_bytes()), dtype=torch.uint8)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DamagedFileError, match="the record of its documents is not what was written"):
        KeyCovariance.load(path)
    del tensors["record"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DamagedFileError, match="the record of its documents"):
        KeyCovariance.load(path)


def test_merging_joins_records_where_all_have_one() -> None:
    both = merge([covariance(), covariance()])
    assert both.record == SampleRecord(RECORD.documents * 2, RECORD.openings * 2)
    assert merge([covariance(), covariance(None)]).record is None


def test_maps_of_different_widths_are_not_merged() -> None:
    with pytest.raises(UserError, match="different widths at layer 2: 3 and 4"):
        merge([covariance(), covariance(size=4)])
