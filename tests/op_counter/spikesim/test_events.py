"""Events equal those that loops over sites, tiles and rows count."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snnfx.op_counter.spikesim.events import (
    Convolution,
    Events,
    Tiling,
    dense_events,
    spike_events,
)

Draw = st.DrawFn
sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: Draw) -> Convolution:
    """A convolution with an output of at least one site."""
    kernel, stride, dilation = draw(sizes), draw(sizes), draw(sizes)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (
        draw(st.integers(max(1, r - 2 * p), max(1, r - 2 * p) + 4))
        for r, p in zip(reach, padding, strict=True)
    )
    batch, in_channels, out_channels = (draw(st.integers(1, n)) for n in (2, 5, 5))
    x = torch.empty(batch, in_channels, height, width, device="meta")
    weight = torch.empty(out_channels, in_channels, *kernel, device="meta")
    out = F.conv2d(x, weight, None, stride, padding, dilation)
    tiling = Tiling(in_channels, out_channels, kernel, draw(st.integers(1, 6)))
    return Convolution(tiling, tuple(x.shape), tuple(out.shape), stride, padding, dilation)


def brute_force(x: Tensor, conv: Convolution, xbar_size: int) -> Events:
    """Visit each row of each patch of each site."""
    batch, channels, height, width = x.shape
    tiles = -(-channels // xbar_size)
    patches, rows, sites = 0, [0] * tiles, 0
    for n, i, j in itertools.product(range(batch), *map(range, conv.output_shape[2:])):
        spikes = [0] * tiles
        for c, k, m in itertools.product(range(channels), *map(range, conv.tiling.kernel_size)):
            h = i * conv.stride[0] - conv.padding[0] + k * conv.dilation[0]
            w = j * conv.stride[1] - conv.padding[1] + m * conv.dilation[1]
            if 0 <= h < height and 0 <= w < width:
                spikes[c // xbar_size] += int(x[n, c, h, w])
        patches += sum(map(bool, spikes))
        sites += any(spikes)
        rows = [a + b for a, b in zip(rows, spikes, strict=True)]
    return Events(patches, tuple(rows), sites * -(-conv.tiling.out_channels // xbar_size))


@given(convolutions(), st.sampled_from((0.0, 0.05, 0.3, 1.0)), st.integers(0, 99))
def test_spikes_set_off_what_loops_count(conv: Convolution, rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(conv.input_shape, generator=generator) < rate).float()
    assert spike_events(x, conv) == brute_force(x, conv, conv.tiling.xbar_size)


@given(convolutions())
def test_dense_events_are_those_of_an_input_that_fires_everywhere(conv: Convolution) -> None:
    unpadded = Convolution(
        conv.tiling,
        (*conv.input_shape[:2], *(conv.input_shape[2 + d] + 2 * conv.padding[d] for d in (0, 1))),
        conv.output_shape,
        conv.stride,
        (0, 0),
        conv.dilation,
    )
    everywhere = torch.ones(unpadded.input_shape)
    assert dense_events(conv) == spike_events(everywhere, unpadded)
    assert conv.pe_cycles == dense_events(conv).patch_tiles * conv.tiling.out_channel_tiles


def test_counts_are_the_same_for_every_dtype_and_layout() -> None:
    conv = Convolution(Tiling(6, 4, (3, 3), 4), (2, 6, 5, 5), (2, 4, 5, 5), (1, 1), (1, 1), (1, 1))
    x = torch.rand(conv.input_shape) < 0.3
    expected = spike_events(x, conv)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8):
        assert spike_events(x.to(dtype), conv) == expected
    assert spike_events(x.to(memory_format=torch.channels_last), conv) == expected


def test_counts_are_exact_where_float32_has_no_odd_numbers() -> None:
    """4097 ** 2 places, each read once, is odd and above 2 ** 24."""
    side = 4097
    conv = Convolution(
        Tiling(1, 1, (1, 1), 1), (1, 1, side, side), (1, 1, side, side), (1, 1), (0, 0), (1, 1)
    )
    x = torch.ones(1, dtype=torch.uint8).expand(conv.input_shape)
    assert spike_events(x, conv) == Events(side**2, (side**2,), side**2)


def test_low_precision_inputs_with_many_spikes_a_place_are_counted_exactly() -> None:
    """The peer adds the channels of a tile in the dtype of the input: bfloat16 stops at 256."""
    conv = Convolution(
        Tiling(301, 1, (1, 1), 512), (1, 301, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1)
    )
    x = torch.ones(conv.input_shape, dtype=torch.bfloat16)
    assert spike_events(x, conv).rows == 301
