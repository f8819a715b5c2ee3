"""Packed covariances: near the whole one, positive definite, the same bytes everywhere, never taken for the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.packed_covariance import (
    is_packed,
    load_covariance,
    load_packed,
    relative_error,
    save_packed,
    whole_source,
)


def sampled(
    size: int, count: int, seed: int, *, outlier: float = 1.0, layers: tuple[int, ...] = (3, 5)
) -> KeyCovariance:
    """Of keys with three directions in common; one coordinate ``outlier`` times as large as the others."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(3, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    sums = {}
    for layer in layers:
        keys = torch.randn(count, size, generator=generator, dtype=torch.float64)
        keys += 0.3 * torch.randn(count, 3, generator=generator, dtype=torch.float64) @ common
        keys[:, 0] *= outlier
        sums[layer] = keys.T @ keys
    source = {"kind": "self_generated", "version": "v0", "dtype": "float32", "seed": seed}
    record = SampleRecord(((3.5, 4), (1.25, 2)), (("The",), ("A", "b")))
    return KeyCovariance(sums, count, source, record)


@pytest.mark.parametrize("outlier", [1.0, 60.0])
def test_what_packing_changes_is_a_fraction_of_what_another_sample_does(tmp_path: Path, outlier: float) -> None:
    whole, other = (sampled(96, 400, seed, outlier=outlier) for seed in (0, 1))
    packed = save_packed(whole, tmp_path / "p.safetensors")
    for layer in whole.layers:
        was = whole.mean(layer).numpy()
        near = np.linalg.norm(packed.mean(layer).numpy() - was) / np.linalg.norm(was)
        assert relative_error(packed, whole, layer) == pytest.approx(near)
        far = np.linalg.norm(other.mean(layer).numpy() - was) / np.linalg.norm(was)
        assert near < 0.35 * far and near < 0.1
        assert np.allclose(packed.mean(layer).diagonal(), was.diagonal(), rtol=1e-6)
        assert np.array_equal(packed.sums[layer], packed.sums[layer].T)
        assert np.linalg.eigvalsh(packed.mean(layer).numpy())[0] > 0


def test_fewer_keys_than_directions_still_give_a_positive_definite_matrix(tmp_path: Path) -> None:
    packed = save_packed(sampled(64, 20, 0), tmp_path / "p.safetensors")
    assert all(np.linalg.eigvalsh(packed.mean(layer).numpy())[0] > 0 for layer in packed.layers)


def test_a_file_is_a_small_part_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = sampled(256, 300, 0)
    packed = save_packed(whole, tmp_path / "p.safetensors")
    whole.save(tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_size > 20 * (tmp_path / "p.safetensors").stat().st_size
    read = load_packed(tmp_path / "p.safetensors")
    assert read.digest == packed.digest != whole.digest and read.record == whole.record
    assert all(torch.equal(read.sums[layer], packed.sums[layer]) for layer in whole.layers)
    assert read.tokens == whole.tokens


def test_unpacking_adds_nothing_up_so_that_every_machine_finds_the_same(tmp_path: Path) -> None:
    """An oracle in NumPy, entry by entry from the file's fields."""
    from safetensors.numpy import load_file

    packed = save_packed(sampled(9, 40, 0, layers=(3,)), tmp_path / "p.safetensors")
    held = load_file(tmp_path / "p.safetensors")
    codes = [int(c) for byte in held["3.codes"] for c in (byte & 15, byte >> 4)]
    exact = dict(zip(held["3.at"].tolist(), held["3.exact"].astype(np.float64).tolist(), strict=True))
    scale, levels = held["3.scale"].astype(np.float64), held["3.levels"].astype(np.float64)
    n = 0
    for i in range(9):
        assert packed.sums[3][i, i].item() == scale[i] * scale[i] * 40.0
        for j in range(i):
            entry = exact.get(n, levels[codes[n]]) * float(held["3.shrink"])
            assert packed.sums[3][i, j].item() == entry * (scale[i] * scale[j]) * 40.0
            n += 1


def test_the_source_says_that_it_is_packed_and_of_what(tmp_path: Path) -> None:
    whole = sampled(16, 40, 0)
    packed = save_packed(whole, tmp_path / "p.safetensors")
    assert is_packed(packed.source) and not is_packed(whole.source)
    assert packed.source["packed"] == {"levels": 16, "of": whole.digest}
    assert whole_source(packed.source) == whole.source
    with pytest.raises(UserError, match="packed already"):
        save_packed(packed, tmp_path / "q.safetensors")


def test_either_kind_is_opened_and_damage_is_found(tmp_path: Path) -> None:
    whole = sampled(16, 40, 0)
    packed = save_packed(whole, tmp_path / "p.safetensors")
    whole.save(tmp_path / "w.safetensors")
    assert load_covariance(tmp_path / "p.safetensors").digest == packed.digest
    assert load_covariance(tmp_path / "w.safetensors").digest == whole.digest
    data = (tmp_path / "p.safetensors").read_bytes()
    for damaged in (data[:-3], data[:-1] + bytes([data[-1] ^ 1]), b"", b"{}"):
        (tmp_path / "d.safetensors").write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            load_covariance(tmp_path / "d.safetensors")


def test_a_direction_without_energy_and_a_single_direction(tmp_path: Path) -> None:
    dead = KeyCovariance({1: torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))}, 2, {})
    with pytest.raises(UserError, match="layer 1: a covariance without energy in some direction"):
        save_packed(dead, tmp_path / "p.safetensors")
    one = KeyCovariance({1: torch.tensor([[4.0]], dtype=torch.float64)}, 2, {})
    assert save_packed(one, tmp_path / "p.safetensors").mean(1).item() == pytest.approx(2.0)
