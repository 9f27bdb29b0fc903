"""The operators on a GPU; collected only where there is one."""

from __future__ import annotations

import pytest
import torch

from snnfx.kernels.bitpack_reference import pack_bits_reference
from snnfx.kernels.ops import pack_bits, unpack_bits

from tests.kernels.bitpack_cases import DTYPES, SIZES, grid_tensor, same_bits


@pytest.mark.parametrize("layout", ["flat", "time"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_kernels_equal_the_reference(dtype: torch.dtype, bits: int, layout: str) -> None:
    for shape in [*((size,) for size in SIZES), (10, 3, 5), (4, 0)]:
        x, _ = grid_tensor(shape, dtype, bits)
        packed = pack_bits(x.cuda(), bits, layout)
        assert same_bits(packed.cpu(), pack_bits_reference(x, bits, layout))
        assert same_bits(unpack_bits(packed, x.shape, dtype, bits, layout).cpu(), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.25, 1 / 0.9])
def test_gpu_rounds_scaled_values_as_the_reference(dtype: torch.dtype, scale: float) -> None:
    x, _ = grid_tensor([9, 33], dtype, 4, scale, -3)
    packed = pack_bits(x.cuda(), 4, "time", scale, -3)
    assert same_bits(packed.cpu(), pack_bits_reference(x, 4, "time", scale, -3))
    assert same_bits(unpack_bits(packed, x.shape, dtype, 4, "time", scale, -3).cpu(), x)


def test_more_than_2_to_the_31_elements() -> None:
    size = (1 << 31) + 9
    x = torch.zeros(size, dtype=torch.bool, device="cuda")
    x[-1] = x[1 << 31] = True
    packed = pack_bits(x, 1)
    assert torch.nonzero(packed).flatten().tolist() == [1 << 28, (1 << 28) + 1]
    assert torch.equal(unpack_bits(packed, x.shape, torch.bool, 1), x)
