"""A checkpoint once per node: copies, casts, one stager at a time, and weights that processes share."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from errata.editing.checkpoint import stage
from errata.editing.checkpoint.load import DTYPES, load_model
from errata.editing.checkpoint.stage import RECORD, cast_file, checkpoint_digest, fetched, recorded_digest, staged
from errata.editing.errors import UserError
from tests.helpers.tiny import save_tiny

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's directory."""
    monkeypatch.setenv("ERRATA_STAGE", str(tmp_path / "stage"))
    return tmp_path / "stage"


def copies(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_nothing_is_staged_unless_a_directory_is_named(checkpoint, monkeypatch):
    monkeypatch.delenv("ERRATA_STAGE", raising=False)
    assert staged(checkpoint, digest="any", dtype=torch.bfloat16) == checkpoint


def test_a_cast_file_holds_what_casting_each_tensor_would_give_and_its_tensors_are_aligned(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.odd": torch.randn(3, generator=generator),
        "b.large": torch.randn(16, 32, generator=generator),
        "c.half": torch.randn(4, 8, generator=generator).half(),
        "d.count": torch.arange(5),
        "e.scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "in.safetensors", {"format": "pt"})
    for dtype in (torch.bfloat16, torch.float64):
        cast_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype)
        found = load_file(tmp_path / "out.safetensors")
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            want = tensor.to(dtype) if tensor.is_floating_point() else tensor
            assert found[name].dtype == want.dtype and torch.equal(found[name], want), name
        with safe_open(tmp_path / "out.safetensors", framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        raw = (tmp_path / "out.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        begins = json.loads(raw[8 : 8 + length])["b.large"]["data_offsets"][0]
        assert (8 + length + begins) % 64 == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_staged_model_is_the_model_bit_for_bit_in_every_dtype(tmp_path, monkeypatch, family):
    checkpoint = save_tiny(tmp_path / "model", family, layers=2)
    for dtype in ("float32", "bfloat16", "float16"):
        monkeypatch.delenv("ERRATA_STAGE", raising=False)
        plain = load_model(str(checkpoint), dtype=dtype)
        monkeypatch.setenv("ERRATA_STAGE", str(tmp_path / "stage"))
        shared = load_model(str(checkpoint), dtype=dtype)
        assert shared.digest == plain.digest and shared.dtype == DTYPES[dtype]
        theirs = dict(plain.hf.state_dict())
        ours = dict(shared.hf.state_dict())
        assert set(ours) == set(theirs)
        assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    assert copies(tmp_path / "stage") == sorted(f"{plain.digest[:16]}-{kind}" for kind in ("as-is", "bf16", "f16"))


def test_a_copy_is_made_once_and_used_from_then_on(checkpoint, root, monkeypatch):
    digest = checkpoint_digest(checkpoint)
    made = staged(checkpoint, digest=digest, dtype=torch.bfloat16)
    assert made == root / f"{digest[:16]}-bf16" and recorded_digest(made) == digest
    assert {path.name for path in made.iterdir()} == {path.name for path in checkpoint.iterdir()} | {RECORD}
    monkeypatch.setattr(stage, "cast_file", None)  # would fail
    assert staged(checkpoint, digest=digest, dtype=torch.bfloat16) == made


def test_two_that_ask_at_once_stage_once(checkpoint, root, monkeypatch):
    digest = checkpoint_digest(checkpoint)
    casts, both = [], threading.Barrier(2)
    plain = stage.cast_file

    def slowly(*arguments):
        casts.append(arguments)
        plain(*arguments)

    monkeypatch.setattr(stage, "cast_file", slowly)
    found: list[Path] = []

    def ask() -> None:
        both.wait()
        found.append(staged(checkpoint, digest=digest, dtype=torch.float16))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(casts) == 1 and found == [root / f"{digest[:16]}-f16"] * 2


def test_another_process_that_stages_is_waited_for(checkpoint, root):
    digest = checkpoint_digest(checkpoint)
    target = root / f"{digest[:16]}-bf16"
    root.mkdir()
    # holds the lock, says so, and puts the copy in place before it lets go
    holder = (
        "import fcntl, sys, time, pathlib\n"
        f"root, target = pathlib.Path({str(root)!r}), pathlib.Path({str(target)!r})\n"
        "lock = (root / ('.' + target.name + '.lock')).open('a'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.readline(); target.mkdir()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    found: list[Path] = []
    asking = threading.Thread(
        target=lambda: found.append(staged(checkpoint, digest=digest, dtype=torch.bfloat16)), daemon=True
    )
    asking.start()
    asking.join(timeout=0.3)
    assert found == []  # it waits
    process.communicate("\n", timeout=30)
    asking.join(timeout=30)
    assert found == [target] and list(target.iterdir()) == []  # the other's copy, and none of its own


def test_what_a_killed_stager_left_is_removed(checkpoint, root):
    digest = checkpoint_digest(checkpoint)
    left = root / f".{digest[:16]}-bf16-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    staged(checkpoint, digest=digest, dtype=torch.bfloat16)
    assert copies(root) == [f"{digest[:16]}-bf16"]


def test_files_of_another_digest_are_refused_and_leave_nothing(checkpoint, root):
    with pytest.raises(UserError, match=r"has digest [0-9a-f]{12}, wanted 000000000000: its files were changed"):
        staged(checkpoint, digest="0" * 64, dtype=None)
    assert copies(root) == []


def test_on_a_full_disk_the_model_is_loaded_from_where_it_is(checkpoint, root, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "cast_file", full)
    assert staged(checkpoint, digest=checkpoint_digest(checkpoint), dtype=torch.float16) == checkpoint
    assert "is full" in caplog.text and copies(root) == []


def test_a_model_behind_a_url_is_fetched_once_and_again_when_it_changes(checkpoint, root):
    import fsspec

    system = fsspec.filesystem("memory")
    for path in checkpoint.iterdir():
        system.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    url = "memory://bucket/tiny"
    loaded = load_model(url)
    assert loaded.digest == checkpoint_digest(checkpoint) and loaded.name == url
    first = fetched(url)
    assert first.parent == root and fetched(url) == first and copies(root) == [first.name]
    system.pipe_file("/bucket/tiny/generation_config.json", b'{"do_sample": false, "changed": true}')
    assert fetched(url) != first
    with pytest.raises(UserError, match="is another now: digest"):
        load_model(url, digest="1" * 64)


@pytest.mark.parametrize(("url", "says"), [("nowhere://x/y", "nowhere"), ("memory://bucket/empty", "")])
def test_a_url_that_leads_to_no_model_is_one_line(root, url, says):
    with pytest.raises(UserError) as caught:
        load_model(url)
    assert repr(url) in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_written_to_mapped_weights_reaches_neither_the_file_nor_another_model(checkpoint, root):
    first, second = load_model(str(checkpoint)), load_model(str(checkpoint))
    before = second.parameter(1).detach().clone()
    first.set_weight(1, first.weight(1) + 1)
    with torch.no_grad():
        first.parameter(0).mul_(3)
    assert torch.equal(second.parameter(1), before)
    (copy,) = (root / name for name in copies(root))
    assert checkpoint_digest(copy) == checkpoint_digest(checkpoint) == first.digest


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the kernel's list of mappings is Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_lie_in_the_nodes_copy_and_not_in_the_process(checkpoint, root, dtype):
    model = load_model(str(checkpoint), dtype=dtype)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("model.safetensors") and str(root) in line:
            begin, _, end = line.split()[0].partition("-")
            mapped.append(range(int(begin, 16), int(end, 16)))
    inside = [any(p.data_ptr() in part for part in mapped) for p in model.hf.parameters()]
    assert inside and all(inside)
