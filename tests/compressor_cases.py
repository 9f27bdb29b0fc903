"""Compressors, and tensors of spikes in every layout, for the tests of both."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from snnfx.compressors import (
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)

BINARY = [
    BooleanSpikeCompressor(),
    BooleanSpikeCompressor(check=True),
    Uint8SpikeCompressor(),
    Uint8SpikeCompressor(check=True),
    BitSpikeCompressor(),
    BitSpikeCompressor(check=True),
    SparseSpikeCompressor(),
    SparseSpikeCompressor(torch.int16, check=True),
    GridSpikeCompressor(2),
    GridSpikeCompressor(4, check=True),
]
"""Everything that holds zeros and ones and stores them in another form."""

EVERY = [NullSpikeCompressor(), *BINARY]
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64)


@st.composite
def spikes(draw: st.DrawFn) -> Tensor:
    """Zeros and ones: any shape, dtype and rate; contiguous, permuted, with gaps, or expanded."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    layout = draw(st.sampled_from(["contiguous", "permuted", "sliced", "offset", "expanded"]))
    rate = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    if layout == "sliced" and shape:
        shape[-1] = 2 * shape[-1] + 1
    x = torch.from_numpy(np.asarray(generator.random(shape) < rate)).to(
        draw(st.sampled_from(DTYPES))
    )
    if layout == "permuted":
        return x.permute(draw(st.permutations(range(x.dim()))))
    if layout == "sliced" and shape:
        return x[..., 1::2]
    if layout == "offset" and shape:
        return x[1:]
    if layout == "expanded":
        return x.unsqueeze(0).expand(3, *shape)
    return x


def expected_stride(x: Tensor) -> tuple[int, ...]:
    """Its own where torch itself would keep them, that is where `x` is dense."""
    kept = torch.empty_like(x).stride() == x.stride()
    return x.stride() if kept else torch.empty(x.shape).stride()


def channels_last() -> Tensor:
    """Spikes ``[2, 3, 4, 5]``, dense but not contiguous."""
    return (torch.rand(2, 3, 4, 5) < 0.3).float().to(memory_format=torch.channels_last)


def layouts() -> list[Tensor]:
    """One tensor of each kind: contiguous, dense, with gaps, expanded, empty, scalar."""
    x = channels_last()
    return [
        x.contiguous(),
        x,
        x.permute(3, 0, 2, 1),
        x[:, :2],
        x[:1].expand(3, -1, -1, -1),
        x[:0],
        x[0, 0, 0, 0],
    ]
