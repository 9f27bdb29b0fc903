"""Repeated calls on fake tensors give what the first call gave, in memory of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnfx._torch_compat import FakeTensorMode, TorchDispatchMode
from snnfx.op_counter.quick_fakes import QuickFakes

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x + 1,
    "mixed dtypes": lambda x: x * torch.ones(x.shape, dtype=torch.float64, device=x.device),
    "comparison": lambda x: x > 0,
    "view": lambda x: x.transpose(0, 1),
    "in place": lambda x: x.mul_(2),
    "convolution": lambda x: F.conv1d(x, x[:, :, :1]),
    "several results": lambda x: torch.max(x, 0),
    "split": lambda x: x.split(1),
    "zeros of both signs": lambda x: (x.clamp(min=-0.0), x.clamp(min=0.0)),
    "new": lambda x: x.new_zeros(3),
    "expanded": lambda x: x[:1].expand(4, -1, -1).exp(),
}


class Quick(TorchDispatchMode):
    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.quick = QuickFakes(mode)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.quick.call(func, args, kwargs or {})


def described(value: Any) -> Any:
    if isinstance(value, Tensor):
        shape, device = tuple(value.shape), value.device
        return shape, value.stride(), value.storage_offset(), value.dtype, device
    return tuple(map(described, value))


@pytest.mark.parametrize("name", CALLS)
@given(channels_last=st.booleans(), half=st.booleans(), size=st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_calls_describe_what_a_fake_mode_does(
    name: str, channels_last: bool, half: bool, size: int
) -> None:
    call = CALLS[name]
    mode = FakeTensorMode()
    dtype = torch.float16 if half else torch.float32
    with mode:
        x = torch.rand(size, 3, 3, dtype=torch.float32).to(dtype)
        x = x.transpose(1, 2) if channels_last else x
        expected = described(call(x.clone()))
        with Quick(mode):
            found = [described(call(x.clone())) for _ in range(3)]
    assert found == [expected] * 3


def test_repeated_results_lie_in_memory_of_their_own_and_views_do_not() -> None:
    mode = FakeTensorMode()
    with mode, Quick(mode):
        x = torch.rand(3)
        results = [x + 1 for _ in range(3)]
        views = [x.view(3, 1) for _ in range(2)]
    memories = {t.untyped_storage()._cdata for t in (x, *results)}
    assert len(memories) == 4
    assert {v.untyped_storage()._cdata for v in views} == {x.untyped_storage()._cdata}
