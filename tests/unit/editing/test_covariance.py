"""Second moments: sums against float64, merging in any way, files that notice damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from errata.editing.covariance import KeyCovariance, MomentAccumulator, merge
from errata.editing.errors import DamagedFileError, UserError


def keys_of(seed: int, count: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def accumulated(keys: np.ndarray, cuts: list[int], block: int = 16) -> MomentAccumulator:
    moments = MomentAccumulator(keys.shape[1], block=block)
    for part in np.split(keys, cuts):
        moments.add(torch.tensor(part))
    return moments


def test_accumulator_equals_the_float64_sum() -> None:
    keys = keys_of(0, 1000)
    moments = accumulated(keys, [1, 2, 300, 301, 640])
    want = keys.astype(np.float64).T @ keys.astype(np.float64)
    total = moments.total()
    assert moments.count == 1000 and total.dtype == torch.float64
    assert np.linalg.norm(total.numpy() - want) <= 1e-6 * np.linalg.norm(want)
    assert torch.equal(total, total.T)


def test_wide_products_are_taken_by_halves() -> None:
    keys = keys_of(2, 40, size=700)
    moments = accumulated(keys, [7])
    want = keys.astype(np.float64).T @ keys.astype(np.float64)
    total = moments.total()
    assert len(moments._panels) > 1
    assert np.linalg.norm(total.numpy() - want) <= 1e-6 * np.linalg.norm(want)
    assert torch.equal(total, total.T)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), max_size=8).map(sorted))
def test_accumulator_does_not_depend_on_how_keys_arrive(cuts: list[int]) -> None:
    keys = keys_of(1, 90)
    assert torch.equal(accumulated(keys, cuts).total(), accumulated(keys, []).total())


def test_accumulator_takes_half_precision_keys_without_summing_in_it() -> None:
    keys = torch.full((4096, 3), 0.1, dtype=torch.bfloat16)
    moments = MomentAccumulator(3)
    moments.add(keys)
    # a bfloat16 sum would stop growing at a few hundred terms
    want = 4096 * float(keys[0, 0]) ** 2
    np.testing.assert_allclose(moments.total().numpy(), np.full((3, 3), want), rtol=1e-6)


def test_no_keys_give_a_zero_sum() -> None:
    moments = MomentAccumulator(5)
    moments.add(torch.zeros(0, 5))
    assert moments.count == 0 and not bool(moments.total().any())


def shard(seed: int, count: int = 30) -> KeyCovariance:
    sums = {}
    for layer in (2, 5):
        keys = keys_of(10 * seed + layer, count).astype(np.float64)
        sums[layer] = torch.tensor(keys.T @ keys)
    return KeyCovariance(sums, count, {"kind": "test", "seed": seed})


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(7)), cuts=st.lists(st.integers(0, 7), max_size=3).map(sorted))
def test_merging_any_partition_in_any_order_gives_the_same(order: list[int], cuts: list[int]) -> None:
    parts = [shard(i, count=10 + i) for i in range(7)]
    groups = [[parts[i] for i in group] for group in np.split(np.array(order), cuts) if len(group)]
    got, want = merge([merge(group) for group in groups]), merge(parts)
    assert got.tokens == want.tokens == sum(10 + i for i in range(7))
    for layer in (2, 5):
        torch.testing.assert_close(got.sums[layer], want.sums[layer], rtol=1e-13, atol=1e-12)


def test_merging_is_repeatable_to_the_bit_and_leaves_its_parts_alone() -> None:
    parts = [shard(i) for i in range(4)]
    before = [part.sums[2].clone() for part in parts]
    assert merge(parts).digest == merge(parts).digest
    assert all(torch.equal(part.sums[2], sums) for part, sums in zip(parts, before, strict=True))


def test_mean_is_the_moment_per_token() -> None:
    first, second = shard(0, 30), shard(1, 90)
    both = merge([first, second])
    want = (30 * first.mean(5) + 90 * second.mean(5)) / 120
    torch.testing.assert_close(both.mean(5), want, rtol=1e-12, atol=1e-14)


def test_what_cannot_be_answered_is_named() -> None:
    with pytest.raises(UserError, match=r"covers layers \[2, 5\], not layer 3"):
        shard(0).mean(3)
    with pytest.raises(UserError, match="counts no tokens"):
        KeyCovariance({2: torch.zeros(3, 3, dtype=torch.float64)}, 0, {}).mean(2)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([])
    other = KeyCovariance({2: torch.eye(12, dtype=torch.float64)}, 1, {})
    with pytest.raises(UserError, match=r"different layers: \[2, 5\] and \[2\]"):
        merge([shard(0), other])


def test_identity() -> None:
    held = KeyCovariance.identity({1: 4, 3: 6})
    assert held.layers == (1, 3)
    assert torch.equal(held.mean(3), torch.eye(6, dtype=torch.float64))


def test_digest_names_content_and_origin() -> None:
    held = shard(0)
    assert held.digest == shard(0).digest
    nudged = {**held.sums, 2: held.sums[2] + 1e-12 * torch.eye(12, dtype=torch.float64)}
    others = [
        KeyCovariance(nudged, held.tokens, held.source),
        KeyCovariance(held.sums, held.tokens + 1, held.source),
        KeyCovariance(held.sums, held.tokens, {"kind": "test", "seed": 1}),
    ]
    assert len({held.digest, *(o.digest for o in others)}) == 4


def test_save_and_load(tmp_path: Path) -> None:
    held = KeyCovariance(shard(0).sums, 30, {"kind": "self_generated", "seed_mode": "rand", "layers": (2, 5)})
    held.save(tmp_path / "c.safetensors")
    back = KeyCovariance.load(tmp_path / "c.safetensors")
    assert back.digest == held.digest and back.tokens == 30 and back.layers == (2, 5)
    assert all(torch.equal(back.sums[layer], held.sums[layer]) for layer in (2, 5))
    assert back.source == {"kind": "self_generated", "seed_mode": "rand", "layers": [2, 5]}


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    shard(0).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), whole[:-40], whole[:20], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"covariance file 'c\.safetensors'"):
            KeyCovariance.load(path)
    with pytest.raises(DamagedFileError, match=r"'absent\.safetensors' cannot be read"):
        KeyCovariance.load(tmp_path / "absent.safetensors")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"0": torch.eye(3)}, path)
    with pytest.raises(DamagedFileError, match="format None"):
        KeyCovariance.load(path)
