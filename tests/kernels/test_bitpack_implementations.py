"""The CPU kernels and the decompositions equal the definition, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import PackError
from snnfx.kernels import bitpack_cpu
from snnfx.kernels.bitpack_cpu import pack_bits_cpu, unpack_bits_cpu
from snnfx.kernels.bitpack_reference import (
    check_grid,
    pack_bits_reference,
    unpack_bits_reference,
)
from snnfx.kernels.decompositions import (
    pack_bits_decomposed,
    pack_steps,
    unpack_bits_decomposed,
    unpack_step,
)

from tests.kernels.bitpack_cases import DTYPES, SIZES, grid_tensor, same_bits

IMPLEMENTATIONS = {
    "cpu": (pack_bits_cpu, unpack_bits_cpu),
    "decomposed": (pack_bits_decomposed, unpack_bits_decomposed),
}
GRIDS = [(1.0, 0), (0.25, 0), (3.0, 0), (1.0, -2), (1 / 0.9, 0), (1 / 0.9, -1), (1.1, 5)]
BITS = [1, 2, 4, 8]
LAYOUTS = ["flat", "time"]

both = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def is_legal(dtype: torch.dtype, bits: int, scale: float, lo: int) -> bool:
    try:
        check_grid(dtype, bits, scale, lo)
    except PackError:
        return False
    return True


def assert_equals_reference(
    implementation: tuple[Callable, Callable],
    x: torch.Tensor,
    bits: int,
    layout: str,
    scale: float = 1.0,
    lo: int = 0,
) -> None:
    pack, unpack = implementation
    packed = pack(x, bits, layout, scale, lo)
    assert packed.is_contiguous()
    assert same_bits(packed, pack_bits_reference(x, bits, layout, scale, lo))
    values = unpack(packed, x.shape, x.dtype, bits, layout, scale, lo)
    assert values.is_contiguous()
    assert same_bits(
        values, unpack_bits_reference(packed, x.shape, x.dtype, bits, layout, scale, lo)
    )
    assert same_bits(values, x)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_layout_grid_and_size(name: str, dtype: torch.dtype) -> None:
    for bits, layout, (scale, lo), size in itertools.product(BITS, LAYOUTS, GRIDS, SIZES):
        if is_legal(dtype, bits, scale, lo):
            x, _ = grid_tensor([size], dtype, bits, scale, lo)
            assert_equals_reference(IMPLEMENTATIONS[name], x, bits, layout, scale, lo)


@both
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.sampled_from(BITS),
    st.sampled_from(LAYOUTS),
    st.lists(st.integers(0, 11), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_any_shape_and_strides(name, dtype, bits, layout, shape, random) -> None:
    x, _ = grid_tensor(shape, dtype, bits)
    order = random.sample(range(len(shape)), len(shape))
    strided = x.permute(order)[:: random.choice([1, 2])]
    assert_equals_reference(IMPLEMENTATIONS[name], strided, bits, layout)


@pytest.mark.parametrize("chunk", [16, 64, 1024])
def test_cpu_chunks_do_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitpack_cpu, "CHUNK_ELEMENTS", chunk)
    for bits, layout, shape in itertools.product(BITS, LAYOUTS, [(999,), (10, 21), (9, 5, 7, 3)]):
        for dtype, scale, lo in [(torch.float32, 0.5, 0), (torch.float16, 1.0, -1)]:
            x, _ = grid_tensor(shape, dtype, bits, scale, lo)
            assert_equals_reference(IMPLEMENTATIONS["cpu"], x, bits, layout, scale, lo)
            strided = x.transpose(0, -1)
            assert_equals_reference(IMPLEMENTATIONS["cpu"], strided, bits, layout, scale, lo)


@both
def test_scalar_tensor(name: str) -> None:
    assert_equals_reference(IMPLEMENTATIONS[name], torch.tensor(1.0), 1, "flat")


@both
def test_minus_zero_comes_back_as_zero(name: str) -> None:
    pack, unpack = IMPLEMENTATIONS[name]
    x = torch.tensor([-0.0, 1.0, -0.0])
    for layout in LAYOUTS:
        values = unpack(pack(x, 1, layout), [3], torch.float32, 1, layout)
        assert same_bits(values, torch.tensor([0.0, 1.0, 0.0]))


@both
def test_bad_arguments_raise_as_in_the_reference(name: str) -> None:
    pack, unpack = IMPLEMENTATIONS[name]
    with pytest.raises(PackError, match="bits=3"):
        pack(torch.zeros(8), 3)
    with pytest.raises(PackError, match="layout='tme'"):
        unpack(torch.zeros(1, dtype=torch.uint8), [8], torch.float32, 1, "tme")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("steps", [1, 5, 8, 10])
def test_steps_pack_as_their_stack(bits: int, steps: int) -> None:
    x, _ = grid_tensor([steps, 2, 3, 4, 5], torch.float32, bits, 0.5, -1)
    packed = pack_steps(x.unbind(0), bits, 0.5, -1)
    assert same_bits(packed, pack_bits_reference(x, bits, "time", 0.5, -1))
    for step in range(steps):
        assert same_bits(unpack_step(packed, step, x.dtype, bits, 0.5, -1), x[step])
