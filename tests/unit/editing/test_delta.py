"""Weight changes as data: application, norms, digests, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from errata.editing.delta import LayerDelta, WeightDelta, apply_delta, one_thread
from errata.editing.digest import digest_tensors
from errata.editing.errors import DamagedFileError
from errata.editing.model.adapter import EditableModel


def low_rank(seed: int = 0, rank: int = 3, O: int = 10, I: int = 14) -> LayerDelta:
    generator = torch.Generator().manual_seed(seed)
    return LayerDelta("low_rank", torch.randn(O, rank, generator=generator), torch.randn(rank, I, generator=generator))


def dense(seed: int = 1, O: int = 10, I: int = 14) -> LayerDelta:
    return LayerDelta("dense", torch.randn(O, I, generator=torch.Generator().manual_seed(seed)))


def orthogonal(seed: int = 2, O: int = 10) -> LayerDelta:
    matrix = torch.randn(O, O, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LayerDelta("orthogonal", torch.linalg.qr(matrix)[0].float())


def change_of(weight: np.ndarray, change: LayerDelta) -> np.ndarray:
    """What is added to the weight, by definition, in float64."""
    left = change.left.numpy().astype(np.float64)
    if change.kind == "orthogonal":
        return left @ weight - weight
    return left if change.right is None else left @ change.right.numpy().astype(np.float64)


CHANGES = [low_rank(), low_rank(rank=1), low_rank(rank=0), dense(), orthogonal()]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: f"{c.kind}-{c.left.shape[1]}")
def test_application_is_the_definition_rounded_once(change: LayerDelta) -> None:
    weight = torch.randn(10, 14, generator=torch.Generator().manual_seed(9))
    before = weight.clone()
    exact = weight.numpy().astype(np.float64)
    want = (exact + change_of(exact, change)).astype(np.float32)
    got = apply_delta(weight, change)
    assert got.dtype == torch.float32
    # a float64 sum in another order may fall on the other side of a float32 boundary, no further
    np.testing.assert_array_max_ulp(got.numpy(), want, maxulp=1)
    assert torch.equal(weight, before)


def test_small_changes_of_large_weights_are_not_lost() -> None:
    weight = torch.full((4, 4), 1.0)
    change = LayerDelta("low_rank", torch.full((4, 1), 1e-4), torch.full((1, 4), 1e-4))
    for _ in range(100):
        weight = apply_delta(weight, change)
    assert float(weight[0, 0]) == pytest.approx(1 + 1e-6, abs=2e-7 * 100)
    assert float(weight[0, 0]) > 1.0 or float(weight[0, 0]) == 1.0


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: f"{c.kind}-{c.left.shape[1]}")
def test_norm_is_that_of_the_full_matrix(change: LayerDelta) -> None:
    eye = np.eye(change.left.shape[0])
    want = np.linalg.norm(change_of(eye, change))
    assert change.norm == pytest.approx(want, rel=1e-6, abs=1e-12)
    assert WeightDelta({7: change}, "memit").norms() == {7: change.norm}


def test_a_change_must_have_the_parts_of_its_kind() -> None:
    left, right = torch.zeros(4, 2), torch.zeros(2, 6)
    with pytest.raises(ValueError, match="a low_rank change needs right factor"):
        LayerDelta("low_rank", left)
    with pytest.raises(ValueError, match="a dense change has no right factor"):
        LayerDelta("dense", left, right)
    with pytest.raises(ValueError, match=r"factors are torch\.float32 on the CPU, got torch\.float64"):
        LayerDelta("low_rank", left.double(), right)


def test_digest_depends_on_every_byte_kind_and_layer() -> None:
    base = low_rank()
    nudged = LayerDelta("low_rank", base.left, base.right.clone())  # type: ignore[union-attr]
    nudged.right[0, 0] = torch.nextafter(nudged.right[0, 0], torch.tensor(9.0))  # type: ignore[index]
    digests = {
        WeightDelta({3: base}, "memit").digest,
        WeightDelta({4: base}, "memit").digest,
        WeightDelta({3: nudged}, "memit").digest,
        WeightDelta({3: dense(O=6, I=6)}, "memit").digest,
        WeightDelta({3: LayerDelta("orthogonal", dense(O=6, I=6).left)}, "memit").digest,
        WeightDelta({3: base, 4: base}, "memit").digest,
    }
    assert len(digests) == 6
    assert WeightDelta({3: low_rank(), 4: base}, "x").digest == WeightDelta({4: base, 3: base}, "x").digest


@pytest.fixture
def saved(tmp_path: Path) -> tuple[WeightDelta, Path]:
    delta = WeightDelta(
        {11: low_rank(), 2: dense(), 5: orthogonal(), 6: low_rank(rank=0)}, "prune", {"damped": 3.0, "share": 0.4}
    )
    delta.save(tmp_path / "d.safetensors")
    return delta, tmp_path / "d.safetensors"


def test_save_and_load(saved: tuple[WeightDelta, Path]) -> None:
    delta, path = saved
    back = WeightDelta.load(path)
    assert back.digest == delta.digest and back.editor == "prune" and back.notes == delta.notes
    assert list(back.layers) == [2, 5, 6, 11]
    for layer, change in delta.layers.items():
        assert back.layers[layer].kind == change.kind
        assert torch.equal(back.layers[layer].left, change.left)
        assert (back.layers[layer].right is None) == (change.right is None)


def test_damage_is_noticed(saved: tuple[WeightDelta, Path]) -> None:
    _, path = saved
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 4
    for damaged in (bytes(flipped), whole[:-100], whole[:9], b"", b"{}" * 40):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"delta file 'd\.safetensors'"):
            WeightDelta.load(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"weight": torch.eye(3)}, path)
    with pytest.raises(DamagedFileError, match="has format None, want 'errata-delta-1'"):
        WeightDelta.load(path)


@pytest.mark.parametrize("names", [["5.low_rank.left"], ["5.sparse.left"], ["weight"], ["a.dense.left"]])
def test_a_file_with_other_parts_is_damaged(saved: tuple[WeightDelta, Path], names: list[str]) -> None:
    _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: torch.eye(3) for name in names}, path, metadata=metadata)
    with pytest.raises(DamagedFileError, match=r"delta file 'd\.safetensors'"):
        WeightDelta.load(path)


def test_undo_restores_the_bytes(llama: EditableModel) -> None:
    before = digest_tensors(dict(llama.hf.state_dict()))
    change = low_rank(O=32, I=48)
    with llama.patched([0, 2]):
        for layer in (0, 2):
            llama.set_weight(layer, apply_delta(llama.weight(layer), change))
        assert digest_tensors(dict(llama.hf.state_dict())) != before
    assert digest_tensors(dict(llama.hf.state_dict())) == before


def test_one_thread_is_given_back() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="inside"), one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
