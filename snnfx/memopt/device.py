"""The device that this process trains on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
"""What torchrun, Slurm and Open MPI call the rank of a process on its node, in this order."""


def resolve_device() -> str:
    """The device of the current process, such as ``"cpu"`` or ``"cuda:0"``.

    The first rule that gives an answer counts:

    1. ``"cpu"`` where CUDA is not available;
    2. the local rank in the environment (`LOCAL_RANK_VARIABLES`): a rank that is no number, or
       that has no visible device, gives no answer;
    3. the rank in `torch.distributed`, if that is initialised, modulo the number of devices;
    4. the current device of `torch.cuda`;
    5. ``"cuda"``.
    """
    if not torch.cuda.is_available():
        return "cpu"
    index = next(_device_indices(torch.cuda.device_count()), None)
    return "cuda" if index is None else f"cuda:{index}"


def _device_indices(devices: int) -> Iterator[int]:
    """The answers of rules 2 to 4, in order."""
    ranks = (os.environ.get(name, "").strip() for name in LOCAL_RANK_VARIABLES)
    yield from (int(rank) for rank in ranks if rank.isdecimal() and int(rank) < devices)
    if devices and dist.is_available() and dist.is_initialized():
        yield dist.get_rank() % devices
    # Where CUDA is available but cannot be initialised, there is no current device to name; that
    # is raised as one or the other, by the build of torch.
    try:
        yield torch.cuda.current_device()
    except (RuntimeError, AssertionError):
        return
