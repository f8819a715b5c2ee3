"""Ranks of a group as forked processes: a group of three costs no imports and needs no Ray."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from errata.actors.settings import ParallelConfig
from errata.actors.sharded.rank import Group, Place, join

SECONDS = 60.0


def run_ranks(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``work(group, *args)`` returns on each rank; an error of any rank is raised with its traceback."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - once here, and not once in every rank

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        place = Place(rank, "127.0.0.1", int(store.port), ParallelConfig(size=size, timeout_seconds=SECONDS))
        process = context.Process(target=_rank, args=(theirs, place, work, args))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    answers = []
    for rank, end in enumerate(ends):
        if not end.poll(2 * SECONDS):
            answers.append(f"rank {rank} did not answer")
            continue
        try:
            answers.append(torch.load(io.BytesIO(end.recv_bytes()), weights_only=False))
        except EOFError:
            answers.append(f"rank {rank} died")
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
    problems = [a for a in answers if isinstance(a, str)]
    if problems:
        raise AssertionError("\n\n".join(problems))
    return [answer[0] for answer in answers]


def _rank(end: Connection, place: Place, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    gc.freeze()  # what the parent held stays as it is: its clients have no threads here, and must not be taken apart
    try:
        group: Group = join(place, torch.device("cpu"))
        answer: Any = (work(group, *args),)
    except BaseException:
        answer = f"rank {place.rank}:\n{traceback.format_exc()}"
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    end.send_bytes(buffer.getvalue())
    end.close()
    sys.stdout.flush()
    # no clean-up of what the parent has: a forked process must not run its exit handlers
    os._exit(0)
