"""Runs the Triton kernels in Triton's interpreter; started by test_bitpack_triton.py.

A process of its own, since ``TRITON_INTERPRET=1`` must be set before a kernel is defined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from bitpack_cases import DTYPES, FLOATS, SIZES, grid_tensor, same_bits

from snnfx.kernels.bitpack_reference import pack_bits_reference
from snnfx.kernels.bitpack_triton import pack_bits_triton, unpack_bits_triton

Case = tuple[torch.Tensor, int, str, float, int]


def all_cases() -> Iterator[Case]:
    for dtype, bits, layout in itertools.product(DTYPES, [1, 2, 4, 8], ["flat", "time"]):
        for shape in [(1000,), (10, 3, 5)]:
            yield grid_tensor(shape, dtype, bits)[0], bits, layout, 1.0, 0
    for bits, layout, size in itertools.product([1, 2, 8], ["flat", "time"], SIZES):
        yield grid_tensor([size], torch.float32, bits)[0], bits, layout, 1.0, 0
    for dtype, layout in itertools.product(FLOATS, ["flat", "time"]):
        # bfloat16 only where no value is rounded: the interpreter truncates instead.
        scales = [0.25] if dtype == torch.bfloat16 else [0.25, 1 / 0.9]
        for scale, lo in itertools.product(scales, [0, -2]):
            yield grid_tensor([9, 7], dtype, 4, scale, lo)[0], 4, layout, scale, lo
    for layout in ["flat", "time"]:
        yield grid_tensor([9, 7], torch.int16, 4, 3.0, -2)[0], 4, layout, 3.0, -2
        for shape in [(0, 3), (3, 0)]:
            yield torch.zeros(shape), 2, layout, 1.0, 0
        strided = grid_tensor([5, 4, 11], torch.float32, 1)[0].transpose(0, 2)
        yield strided, 1, layout, 1.0, 0
    yield torch.tensor(1.0), 1, "flat", 1.0, 0


def main() -> None:
    count = 0
    for x, bits, layout, scale, lo in all_cases():
        name = f"{x.dtype} {list(x.shape)} bits={bits} {layout} scale={scale} lo={lo}"
        packed = pack_bits_triton(x, bits, layout, scale, lo)
        assert same_bits(packed, pack_bits_reference(x, bits, layout, scale, lo)), f"pack {name}"
        values = unpack_bits_triton(packed, x.shape, x.dtype, bits, layout, scale, lo)
        assert same_bits(values, x), f"unpack {name}"
        count += 1
    print(count)


if __name__ == "__main__":
    main()
