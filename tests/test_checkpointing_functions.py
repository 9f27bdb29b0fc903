"""Functions that are checkpointed: which modules they reach, and what they keep of themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snnfx.checkpointing import input_compressed_gc, to_gc_function
from snnfx.compressors import NullSpikeCompressor

NULL = NullSpikeCompressor()


NORM = nn.BatchNorm1d(4)


def names_a_global(x: Tensor) -> Tensor:
    return NORM(x)


def calls_another(x: Tensor) -> Tensor:
    return names_a_global(x)


def in_a_comprehension(x: Tensor) -> Tensor:
    return torch.stack([NORM(part) for part in x.unsqueeze(0)])


def with_more(x: Tensor, norm: nn.Module, scale: float = 1.0) -> Tensor:
    return norm(x) * scale


class Holder:
    def __init__(self, norm: nn.Module) -> None:
        self.parts = {"norm": [norm]}

    def method(self, x: Tensor) -> Tensor:
        return self.parts["norm"][0](x)

    __call__ = method


def reaching() -> dict[str, Callable[..., Tensor]]:
    """Functions that reach `NORM`, each by another way."""

    def closure(x: Tensor, norm: nn.Module = NORM) -> Tensor:
        return norm(x)

    def keyword(x: Tensor, *, norm: nn.Module = NORM) -> Tensor:
        return norm(x)

    holder, local = Holder(NORM), NORM
    return {
        "module": NORM,
        "method": NORM.forward,
        "global": names_a_global,
        "another function": calls_another,
        "comprehension": in_a_comprehension,
        "closure": lambda x: local(x),
        "default": closure,
        "keyword default": keyword,
        "partial": functools.partial(with_more, norm=NORM),
        "partial of a closure": functools.partial(lambda x, scale: local(x) * scale, scale=2.0),
        "method of an object": holder.method,
        "callable object": holder,
        "object in a closure": lambda x: holder.method(x),
    }


@pytest.mark.parametrize("way", reaching())
def test_batch_norm_moves_on_once_however_a_function_reaches_it(way: str) -> None:
    NORM.reset_running_stats()
    expected = copy.deepcopy(NORM)
    x = torch.randn(6, 4, requires_grad=True)
    expected(x)
    input_compressed_gc(reaching()[way], NULL, x).square().sum().backward()
    assert NORM.num_batches_tracked == 1
    assert torch.equal(NORM.running_var, expected.running_var)


def test_batch_norm_among_the_arguments_moves_on_once() -> None:
    NORM.reset_running_stats()
    x = torch.randn(6, 4, requires_grad=True)
    input_compressed_gc(with_more, NULL, x, NORM, 2.0).square().sum().backward()
    assert NORM.num_batches_tracked == 1


def test_a_converted_function_keeps_name_and_text() -> None:
    for converted in (
        to_gc_function(NULL, names_a_global),
        to_gc_function(NULL)(names_a_global),
        to_gc_function(x_compressor=NULL, f_forward=names_a_global),
    ):
        assert converted.__name__ == "names_a_global"
        assert converted.__wrapped__ is names_a_global
