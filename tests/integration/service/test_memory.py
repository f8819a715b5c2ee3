"""A full object store, and a worker that the system ends for its memory: questions are answered all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCENARIO = """
import json, os, signal, sys, threading
import numpy as np
import psutil
import ray

ray.init(address="local", num_cpus=4, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False,
         logging_level="ERROR")
from errata.actors.evaluation import EvaluationPool
from errata.actors.settings import ModelSpec, RayConfig
from errata.actors.workers.evaluation import EvaluationSettings
from errata.editing.checkpoint.load import load_model
from errata.evaluation.answering import Question
from errata.retrieval.router import Findings
from errata.retrieval.scr import ScrConfig

path = sys.argv[1]
weights = {1: load_model(path).weight(1) * 1.5}
pool = EvaluationPool(
    RayConfig(evaluation_workers=1, max_revivals=0),
    ModelSpec(name=path),
    EvaluationSettings(ScrConfig(), ("base", "edited")),
)
questions = [Question("The capital of France is"), Question("Alice Munro works in")]


def asked(reference):
    answers = pool.answer(questions, reference, Findings({}, None), ("base", "edited"), 6)
    return [[answer.text for answer in row.values()] for row in answers]


calm = asked(ray.put(weights))
held = [ray.put(np.full(8 << 20, number, dtype=np.float64)) for number in range(6)]  # 384 MiB into 100
full = asked(ray.put(weights))
back = [float(ray.get(one)[0]) for one in held]


def worker():
    for child in psutil.Process().children(recursive=True):
        if child.cmdline() and child.cmdline()[0].startswith("ray::EvaluationActor"):
            return child


# what the kernel does, and Ray's own watch over memory: SIGKILL, with a question in hand
killed = worker()
killed.suspend()
threading.Timer(1.0, killed.kill).start()
after = asked(ray.put(weights))
print(json.dumps({"same": calm == full == after, "back": back, "another": worker().pid != killed.pid}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_questions_are_answered_beside_a_full_store_and_after_a_death_for_memory(tiny_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, str(tiny_checkpoint)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {"same": True, "back": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "another": True}
