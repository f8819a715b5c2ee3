"""One rank's place in its group: joining, exchanging tensors, and telling a lost peer from an error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from errata.actors.settings import ParallelConfig

_LOST_SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset", "TCPStore", "Timed out waiting")


_PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other before they have begun: reading weights takes what the storage needs. A rank that
dies meanwhile is noticed by the driver."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its number, how many there are, and where rank 0 keeps the group's address book."""

    rank: int
    host: str
    port: int
    parallel: ParallelConfig


@dataclass(frozen=True)
class Group:
    """A joined group."""

    rank: int
    size: int
    device: torch.device
    store: dist.TCPStore | None = None

    def meet(self, what: str) -> None:
        """Wait for every rank to get here, with more patience than a collective has."""
        if self.store is not None:
            _meet(self.store, self.rank, self.size, what)

    def gather(self, part: Tensor, sizes: Sequence[int], axis: int) -> Tensor:
        """The whole of a tensor of which every rank holds ``sizes[rank]`` along ``axis``; the same on every rank."""
        if self.size == 1:
            return part
        widest = max(sizes)
        axis = axis % part.ndim
        shape = list(part.shape)
        shape[axis] = widest
        mine = part.new_zeros(shape)
        mine.narrow(axis, 0, part.shape[axis]).copy_(part)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat([p.narrow(axis, 0, n) for p, n in zip(parts, sizes, strict=True)], dim=axis)

    def send(self, tensor: Tensor, source: int) -> Tensor:
        """Make every rank's ``tensor`` that of rank ``source``, in place; contiguous and of one shape everywhere."""
        if self.size == 1 or not tensor.numel():
            return tensor
        if tensor.device.type == self.device.type:
            dist.broadcast(tensor, source)
        else:
            # collectives between accelerators know nothing of the host's memory
            moved = tensor.to(self.device)
            dist.broadcast(moved, source)
            tensor.copy_(moved)
        return tensor

    def send_object(self, value: Any, source: int) -> Any:
        """The object that rank ``source`` gives, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, source, device=self.device)
        return box[0]

    def same(self, tensor: Tensor) -> bool:
        """Whether every rank holds the same bytes; a sum over them is compared, which costs one number each."""
        if self.size == 1:
            return True
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(torch.int64)
        # the place counts as well, so that parts that have changed places are noticed
        weights = torch.arange(raw.numel(), device=raw.device) % 8191 + 1
        mine = (raw * weights).sum()[None].to(self.device)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine)
        return all(bool(torch.equal(one, mine)) for one in theirs)

    def leave(self) -> None:
        """End the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def address_book(host: str) -> tuple[dist.TCPStore, int]:
    """The store that the ranks of a group find each other by, kept by rank 0; and its port."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, int(store.port)


def join(place: Place, device: torch.device, store: dist.TCPStore | None = None) -> Group:
    """Become a rank of a group and set DeepSpeed up; returns when every rank is there.

    Args:
        store: rank 0's own; the others connect to it.
    """
    size, timeout = place.parallel.size, timedelta(seconds=place.parallel.timeout_seconds)
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # one device is shown to each rank, whatever its number
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(size), LOCAL_RANK="0")
    _prepare_deepspeed()
    if store is None:
        store = dist.TCPStore(place.host, place.port, is_master=False, timeout=_PATIENCE)
    # on a busy machine one rank may have imported everything long before another
    _meet(store, place.rank, size, "joining")
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl", store=store, rank=place.rank, world_size=size, timeout=timeout
    )
    _begin_deepspeed(timeout)
    return Group(place.rank, size, device, store)


def _meet(store: dist.TCPStore, rank: int, size: int, what: str) -> None:
    turn = store.add(f"met/{what}/{rank}", 1)
    store.set(f"here/{what}/{turn}/{rank}", "")
    store.wait([f"here/{what}/{turn}/{other}" for other in range(size)], _PATIENCE)


def _prepare_deepspeed() -> None:
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    # else the first start compiles C++ for collectives through shared memory
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _begin_deepspeed(timeout: timedelta) -> None:
    import deepspeed
    from deepspeed.module_inject.layers import set_autotp_mode

    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)
    # the other mode is that of `init_inference`, whose output head passes no right gradient on
    set_autotp_mode(training=True)


def peer_lost(error: BaseException) -> bool:
    """Whether an error means that another rank is gone or does not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_SIGNS)
