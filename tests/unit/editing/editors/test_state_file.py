"""The lifelong state as a file: what it holds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.editing.errors import DamagedFileError, ErrataError
from errata.editing.request import EditRequest
from errata.editing.state import LifelongState
from tests.unit.editing.editors.common import batch, covariance_of, session_of


@pytest.fixture
def grown(requests: list[EditRequest]) -> tuple[LifelongState, LifelongState]:
    """A state after two batches, and the one it began as."""
    session = session_of("memit")
    start = session.state
    session.apply(batch(1, *requests[:3]))
    session.apply(batch(2, requests[3]))
    return session.state, start


@pytest.mark.parametrize("past", [0, 6, 70])  # none, with a capacitance, with a Gram matrix
def test_a_state_comes_back_to_the_bit(past: int, tmp_path: Path) -> None:
    session = session_of("memit")
    start = state = session.state
    generator = torch.Generator().manual_seed(1)
    known: dict[str, dict[int, torch.Tensor]] = {}
    for at in range(0, past, 2):
        keys = {layer: torch.randn(48, 2, generator=generator) for layer in (0, 1)}
        state = state.appended(keys, [f"r{at}", f"r{at + 1}"], [f"f{at}", f"f{at + 1}"])
        known |= {f"r{at + i}": {layer: keys[layer][:, i] for layer in keys} for i in (0, 1)}
    state = state.without(["r2"], known).remembering({"note": torch.arange(3.0)})
    state.save(tmp_path / "state")
    loaded = start.load(tmp_path / "state")
    assert loaded.request_ids == state.request_ids and loaded.fact_keys == state.fact_keys
    assert loaded.systems[0].dense == (past >= 48)
    more = {layer: torch.randn(48, 3, generator=generator) for layer in (0, 1)}
    for a, b in ((loaded, state), (loaded.appended(more, "xyz", "xyz"), state.appended(more, "xyz", "xyz"))):
        for layer in (0, 1):
            assert torch.equal(a.keys[layer], b.keys[layer])
            right = torch.randn(48, 2, generator=generator, dtype=torch.float64)
            assert torch.equal(a.systems[layer].solve(right), b.systems[layer].solve(right))
    assert torch.equal(loaded.memory["note"], torch.arange(3.0))


def test_another_covariance_or_other_layers_are_refused(
    grown: tuple[LifelongState, LifelongState], tmp_path: Path
) -> None:
    state, start = grown
    state.save(tmp_path / "state")
    other = start.with_covariance(covariance_of(session_of("memit").model, seed=5))
    with pytest.raises(ErrataError, match="was made on covariance"):
        other.load(tmp_path / "state")
    with pytest.raises(ErrataError, match=r"holds layers \[0, 1\], want \[1\]"):
        session_of("memit", layers=(1,)).state.load(tmp_path / "state")


def test_damage_is_noticed(grown: tuple[LifelongState, LifelongState], tmp_path: Path) -> None:
    state, start = grown
    path = tmp_path / "state"
    state.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DamagedFileError, match="does not carry its digest"):
        start.load(path)
    for content in (whole[: len(whole) // 2], b"", b"something else altogether"):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="cannot be read"):
            start.load(path)
