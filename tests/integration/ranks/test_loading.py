"""Reading a checkpoint in parts: which bytes, how much memory, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.actors.settings import ModelSpec, ParallelConfig
from errata.actors.sharded import layout
from errata.actors.sharded.layout import check_parallel, even, plan_for
from errata.actors.sharded.loading import load_spec
from errata.editing.checkpoint.slices import INDEX, CheckpointSlices, Cut
from errata.editing.errors import ErrataError, UserError
from tests.helpers.tiny import save_tiny

CPU = torch.device("cpu")
MEGABYTE = 2**20
ROOT = Path(__file__).parents[3]


def llama(**changes: object) -> SimpleNamespace:
    fields = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "intermediate_size": 50,
        "tie_word_embeddings": False,
    }
    return SimpleNamespace(**{**fields, **changes})


def test_parts_make_up_the_tensor_along_either_axis(tmp_path: Path) -> None:
    whole = torch.arange(70.0).reshape(7, 10)
    save_file({"w": whole}, tmp_path / "model.safetensors")
    checkpoint = CheckpointSlices(tmp_path)
    for axis, width in ((0, 7), (1, 10)):
        cuts = [Cut(axis, even(width, 3), rank) for rank in range(3)]
        parts = [checkpoint.read("w", cut, dtype=torch.float32, device=CPU) for cut in cuts]
        assert torch.equal(torch.cat(parts, dim=axis), whole)
        assert all(torch.equal(cut.of(whole), part) for cut, part in zip(cuts, parts, strict=True))
    half = checkpoint.read("w", dtype=torch.float16, device=CPU)
    assert half.dtype == torch.float16 and torch.equal(half.float(), whole)


def test_a_checkpoint_in_several_files_is_read_by_its_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "y.safetensors")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}')
    checkpoint = CheckpointSlices(tmp_path)
    assert "a" in checkpoint and "b" in checkpoint and "c" not in checkpoint
    assert checkpoint.read("b", dtype=torch.float32, device=CPU).shape == (3,)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no safetensors files"):
        CheckpointSlices(tmp_path)
    save_file({"w": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    checkpoint = CheckpointSlices(tmp_path)
    with pytest.raises(UserError, match=r"no tensor 'v'"):
        checkpoint.read("v", dtype=torch.float32, device=CPU)
    with pytest.raises(UserError, match=r"\[4, 4\], want 6 along axis 1"):
        checkpoint.read("w", Cut(1, (3, 3), 0), dtype=torch.float32, device=CPU)
    (tmp_path / "model.safetensors").write_bytes(b"no such format")
    with pytest.raises(UserError, match="cannot be read"):
        CheckpointSlices(tmp_path)


def test_heads_stay_whole_and_the_mlp_is_as_even_as_can_be() -> None:
    plan = plan_for(llama(), 2, "m")
    assert plan.sizes("model.layers.0.self_attn.q_proj", 48) == (32, 16)
    assert plan.sizes("model.layers.0.mlp.down_proj", 51) == (26, 25)
    assert plan.cut("model.layers.1.mlp.down_proj.weight", (48, 50), 1) == Cut(1, (25, 25), 1)
    assert plan.cut("model.layers.1.mlp.up_proj.bias", (50,), 0) == Cut(0, (25, 25), 0)
    assert plan.cut("model.layers.1.mlp.down_proj.bias", (48,), 0) is None
    assert plan.cut("model.norm.weight", (48,), 0) is None
    assert plan.cut("lm_head.weight", (400, 48), 0) == Cut(0, (200, 200), 0)
    assert plan_for(llama(tie_word_embeddings=True), 2, "m").cut("lm_head.weight", (400, 48), 0) is None


def test_a_model_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'gpt2' model \('m'\) cannot be divided; those that can: llama"):
        plan_for(llama(model_type="gpt2"), 2, "m")
    with pytest.raises(UserError, match="only 50 MLP columns"):
        plan_for(llama(), 51, "m")
    with pytest.raises(ErrataError, match="by the ranks of a group"):
        load_spec(ModelSpec(name="m", parallel=ParallelConfig(size=2)))
    monkeypatch.setattr(layout.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; `pip install 'errata-llm\[deepspeed\]'`"):
        check_parallel(llama(), ParallelConfig(size=2), "m")


def test_no_rank_ever_holds_the_checkpoint(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model", "llama", layers=6, hidden=512, heads=4, inner=2048)
    size = (directory / "model.safetensors").stat().st_size
    largest = max(t.numel() * 4 for t in load_file(directory / "model.safetensors").values())
    assert size > 90 * MEGABYTE
    small = save_tiny(tmp_path / "small", "llama")
    # ranks of a fresh process: what earlier tests have left in this one would be theirs too
    command = [sys.executable, "-m", "tests.integration.scenarios.rank_memory", str(small), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert len(peaks) == 2
    for peak in peaks:
        # its half, one tensor on the way, and room for the allocator
        assert size / 2 * 0.9 < peak < size / 2 + largest + 12 * MEGABYTE
