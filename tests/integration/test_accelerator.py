"""Accelerators without one: everything that computes gives the CPU's results on a pretended device, and mixes none.

Each group of families is a process of its own, as the device replaces parts of torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from errata.editing.model.decoder import FAMILIES
from tests.unit.editing.editors.common import NAMES

ROOT = Path(__file__).parents[2]
GROUPS = (
    ("llama", "gpt2", "gemma3_text"),
    ("mistral", "qwen2", "qwen3", "gemma2"),
    ("olmo2", "phi3", "gptj", "gpt_neox"),
)
EVERY_DAY_AND_SLOW = (GROUPS[0], *(pytest.param(group, marks=pytest.mark.slow) for group in GROUPS[1:]))
"""One group in the everyday tier; they share the code that devices are minded in."""
CLOSE = 1e-5
WIDER = {"gpt_neox ft_l": 1e-4, "gpt_neox evaluation": 2e-5}
"""Measured 4.6e-5 and 1.1e-5: this family's tiny model magnifies rounding, steps of gradient descent most."""
WIDER |= {f"{family} lora": 1e-4 for family in FAMILIES}
"""Measured 4.0e-5 on one family: a step of Adam divides by the gradient's size, so rounding of a small one shows."""


def differences(kind: str, *families: str) -> dict[str, float | str]:
    """Largest relative difference from the CPU by what was run, or the error it ended with."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.accelerator_run", kind, *families],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def failed(found: dict[str, float | str]) -> dict[str, float | str]:
    return {
        name: value
        for name, value in found.items()
        if not (isinstance(value, float) and value <= WIDER.get(name, CLOSE))
    }


def test_every_family_is_run() -> None:
    assert sorted(family for group in GROUPS for family in group) == sorted(FAMILIES)


@pytest.mark.timeout(1800)  # half a minute of an idle core
@pytest.mark.parametrize("families", EVERY_DAY_AND_SLOW, ids="+".join)
def test_every_editor_gives_the_cpus_weights(families: tuple[str, ...]) -> None:
    found = differences("edit", *families)
    assert set(found) == {f"{family} {editor}" for family in families for editor in NAMES}
    assert not failed(found)


@pytest.mark.timeout(1800)  # half a minute of an idle core
@pytest.mark.parametrize("families", EVERY_DAY_AND_SLOW, ids="+".join)
def test_estimation_evaluation_and_a_rank_give_the_cpus_numbers(families: tuple[str, ...]) -> None:
    found = differences("rest", *families)
    assert len(found) >= 2 * len(families)
    assert not failed(found)


def test_what_mixes_devices_is_noticed() -> None:
    """The device itself: an operator over both raises, an array is refused, moving there and back is the identity."""
    program = """
import torch
from tests.helpers.pretended_device import DEVICE
host, there = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3).to(DEVICE)
for mixed in (lambda: host + there, lambda: there @ host.T, lambda: torch.cat([host, there]), lambda: there.add_(host)):
    try:
        mixed()
    except RuntimeError as error:
        assert "on the CPU" in str(error), error
    else:
        raise SystemExit("devices were mixed and nothing said so")
for taken in (lambda: there.numpy(), lambda: __import__("numpy").asarray(there)):
    try:
        taken()
    except TypeError:
        continue
    raise SystemExit("an array was given")
assert there.device.type == "pretend" and torch.equal((there * 2 + 1).cpu(), host * 2 + 1)
assert there[torch.tensor([1])].device.type == "pretend" and float(there.sum()) == 15.0
leaf = there.clone().requires_grad_()
(leaf**2).sum().backward()
assert leaf.grad.device.type == "pretend" and torch.equal(leaf.grad.cpu(), 2 * host)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
