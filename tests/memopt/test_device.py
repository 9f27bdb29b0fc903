"""`resolve_device`: the first rule that gives an answer counts."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from snnfx.memopt.device import LOCAL_RANK_VARIABLES, resolve_device


@pytest.fixture(autouse=True)
def four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CUDA devices of which number 3 is the current one, and no ranks anywhere."""
    for name in LOCAL_RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)


def set_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)


def test_without_cuda_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device() == "cpu"


def test_without_ranks_it_is_the_current_device() -> None:
    assert resolve_device() == "cuda:3"


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_a_local_rank_is_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    set_rank(monkeypatch, 2)
    assert resolve_device() == "cuda:1"


def test_the_variables_count_in_the_documented_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, name in enumerate(("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")):
        monkeypatch.setenv(name, str(rank))
    assert resolve_device() == "cuda:0"
    monkeypatch.delenv("LOCAL_RANK")
    assert resolve_device() == "cuda:1"


@pytest.mark.parametrize("rank", ["", "one", "-1", "1.0", "4", "²"])
def test_a_rank_without_a_visible_device_is_passed_over(
    rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device() == "cuda:3"
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert resolve_device() == "cuda:2"


def test_the_global_rank_wraps_around_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch, 6)
    assert resolve_device() == "cuda:2"


def test_no_visible_device_is_no_division_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    set_rank(monkeypatch, 6)
    assert resolve_device() == "cuda:3"


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_without_a_current_device_it_is_any(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> NoReturn:
        raise error("CUDA cannot be initialised")

    monkeypatch.setattr(torch.cuda, "current_device", broken)
    assert resolve_device() == "cuda"
