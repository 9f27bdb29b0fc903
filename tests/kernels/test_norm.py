"""The statistics of a batch norm, against torch's own batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snnfx.kernels.norm import batch_norm_statistics

SHAPES = [(40, 6), (5, 6, 9), (4, 6, 5, 7), (3, 6, 2, 4, 5), (2, 1, 3, 3), (64, 6, 1, 1)]
aten = torch.ops.aten


def expected(x: Tensor, running: list[Tensor], momentum: float, eps: float) -> list[Tensor]:
    _, mean, invstd, new_mean, new_var = aten._native_batch_norm_legit_functional(
        x, None, None, *running, True, momentum, eps
    )
    return [mean, invstd, new_mean, new_var]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("momentum", "eps"), [(0.1, 1e-5), (0.0, 1e-3), (1.0, 1e-5)])
def test_statistics_equal_those_of_the_batch_norm(
    shape: tuple[int, ...], momentum: float, eps: float
) -> None:
    x = torch.randn(shape, dtype=torch.float64) * 3 + 5
    running = [torch.randn(shape[1]).double(), torch.rand(shape[1]).double()]
    kept = [t.clone() for t in running]
    found = batch_norm_statistics(x, *running, momentum, eps)
    for one, other in zip(found, expected(x, kept, momentum, eps), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(running, kept, strict=True))


def test_images_in_channels_last_have_the_same_statistics() -> None:
    x = torch.randn(4, 6, 5, 7, dtype=torch.float64)
    other = x.to(memory_format=torch.channels_last)
    for one, two in zip(
        batch_norm_statistics(x, None, None, 0.1, 1e-5),
        batch_norm_statistics(other, None, None, 0.1, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_without_running_statistics_the_new_ones_are_empty() -> None:
    x = torch.randn(4, 6, 5, 7)
    mean, invstd, new_mean, new_var = batch_norm_statistics(x, None, None, 0.1, 1e-5)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(invstd, (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt())
    assert new_mean.shape == new_var.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_tracked", [True, False])
def test_the_operator_keeps_the_rules_of_operators(dtype: torch.dtype, is_tracked: bool) -> None:
    x = torch.randn(4, 6, 5, 7, dtype=dtype)
    running = (
        (torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)) if is_tracked else (None,) * 2
    )
    torch.library.opcheck(
        torch.ops.snnfx.batch_norm_statistics.default,
        (x, *running, 0.1, 1e-5),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static",
                    "test_aot_dispatch_dynamic"),
    )  # fmt: skip
