"""What is a tensor of spikes, and how many there are: exactly, of every dtype and layout."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor

from snnfx.op_counter import is_binary_tensor
from snnfx.op_counter.spikes import (
    PART,
    MeasuredFacts,
    MeasuredValues,
    exact_sum,
    number_of_spikes,
)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
AWKWARD = [2.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 256.0, 1e-30, -1e-30, 1e30]


def spikes(*shape: int, seed: int = 0, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def in_one_go(x: Tensor) -> int | None:
    """By definition: element by element."""
    values = x.reshape(-1).tolist()
    return sum(v == 1 for v in values) if all(v in (0, 1) for v in values) else None


@pytest.mark.parametrize("dtype", DTYPES)
def test_ones_are_counted_in_each_dtype(dtype: torch.dtype) -> None:
    x = spikes(5, 70).to(dtype)
    assert number_of_spikes(x) == in_one_go(x)
    assert x.any()
    assert is_binary_tensor(x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", AWKWARD)
def test_one_other_element_is_found_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    for place in (0, 63, 64, 299):
        x = spikes(300).to(dtype)
        x[place] = value
        assert number_of_spikes(x) == in_one_go(x), (place, value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_neighbours_of_zero_and_one_are_no_spikes(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    one = torch.tensor(1.0, dtype=dtype)
    near = [one + info.eps, torch.nextafter(one, torch.zeros((), dtype=dtype))]
    near += [torch.tensor(info.smallest_normal, dtype=dtype)]
    near += [torch.tensor(info.smallest_normal * info.eps, dtype=dtype)]  # subnormal
    for value in near:
        for x in (value.repeat(3), torch.cat([torch.zeros(100, dtype=dtype), value.view(1)])):
            assert number_of_spikes(x) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_whose_square_overflows_are_no_spikes(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    for value in (2, -1, 16, info.min, info.max):
        x = torch.zeros(200, dtype=dtype)
        x[150] = value
        assert number_of_spikes(x) is None


def test_negative_zero_is_zero() -> None:
    assert number_of_spikes(torch.tensor([-0.0, 1.0, 0.0])) == 1


def test_empty_and_single_elements() -> None:
    assert number_of_spikes(torch.empty(0)) == number_of_spikes(torch.empty(3, 0, 2)) == 0
    assert number_of_spikes(torch.tensor(1.0)) == 1
    assert number_of_spikes(torch.tensor(True)) == 1
    assert number_of_spikes(torch.tensor(3)) is None


def test_complex_numbers_are_spikes_if_they_are_real_ones() -> None:
    assert number_of_spikes(torch.tensor([1 + 0j, 0j])) == 1
    assert number_of_spikes(torch.tensor([1 + 1j, 0j])) is None
    assert number_of_spikes(torch.tensor([1 + 0j, 0j]).conj()) == 1


def test_elements_of_a_sparse_tensor_are_those_it_stands_for() -> None:
    assert number_of_spikes(spikes(6, 5).to_sparse()) == in_one_go(spikes(6, 5))


def layouts(x: Tensor) -> list[Tensor]:
    """Views of `[N, C, H, W]` that are not contiguous."""
    return [
        x.transpose(0, 1),
        x.contiguous(memory_format=torch.channels_last),
        x[:, ::2],
        x[..., 1:],
        x[:1].expand(4, -1, -1, -1),
        x[:1, :, :1].expand(3, -1, 5, -1),
        x.unfold(3, 2, 1),
        x[:, :, 0, 0],
    ]


def test_layouts_do_not_matter() -> None:
    x = spikes(3, 4, 5, 6)
    for view in layouts(x):
        assert number_of_spikes(view) == in_one_go(view)
        assert view.any()
    x.view(-1)[-1] = 0.25
    assert number_of_spikes(x.transpose(0, 1)) is None


def test_more_than_one_part_is_added_up_and_looked_at() -> None:
    x = torch.zeros(2 * PART + 10)
    x[:: PART // 2] = 1
    assert number_of_spikes(x) == 5
    x[-1] = 0.5
    assert number_of_spikes(x) is None


def test_counts_beyond_what_a_float_counts_to_are_exact() -> None:
    ones = torch.ones(1, dtype=torch.float32).expand(2**25 + 3)
    assert number_of_spikes(ones) == 2**25 + 3
    dense = torch.ones(2**24 + 3, dtype=torch.uint8)
    assert number_of_spikes(dense) == 2**24 + 3
    assert exact_sum(dense.view(1, -1), [1]).item() == 2**24 + 3
    assert exact_sum(torch.ones(5000, dtype=torch.float16), [0]).item() == 5000


def test_inference_tensors_and_tensors_with_gradients_are_looked_at() -> None:
    with torch.inference_mode():
        x = spikes(4, 4)
        assert number_of_spikes(x) == in_one_go(x)
    assert number_of_spikes(x) == in_one_go(x)
    assert number_of_spikes(spikes(4, 4).requires_grad_()) == in_one_go(spikes(4, 4))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 0.0, 1.0, -0.0, *AWKWARD]), max_size=80),
    dtype=st.sampled_from(FLOATS),
)
def test_the_peer_calls_the_same_tensors_binary(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert is_binary_tensor(x) == peer.is_binary_tensor(x)


def facts(*args: Any) -> MeasuredFacts:
    return MeasuredFacts(args, MeasuredValues())


@settings(max_examples=30, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_weighted_spikes_are_weighted_at_their_place(data: Any, dtype: torch.dtype) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=5))
    x = spikes(*sizes, seed=data.draw(st.integers(0, 99)), rate=0.5).to(dtype)
    weights = [data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)) for n in sizes[2:]]
    expected = sum(
        math.prod(w[i] for w, i in zip(weights, place[2:], strict=True))
        for place in x.nonzero().tolist()
    )
    assert facts(x).weighted_spikes(0, weights) == expected


def test_a_tensor_is_looked_at_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Tensor] = []

    def look(x: Tensor) -> int:
        looks.append(x)
        return 1

    monkeypatch.setattr("snnfx.op_counter.spikes.number_of_spikes", look)
    x, values = spikes(3), MeasuredValues()
    assert [values.number(x), values.number(x)] == [1, 1]
    assert len(looks) == 1
    values.forget()
    values.number(x)
    assert len(looks) == 2


def test_what_is_no_tensor_is_not_binary() -> None:
    assert not facts(1.0, None).is_binary(0)
    assert not facts(1.0, None).is_binary(1)
    assert not facts().is_binary(0)
