"""The definition of packing, against numpy's packbits and plain integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import PackError
from snnfx.kernels.bitpack_reference import (
    fits_grid,
    is_float32,
    pack_bits_reference,
    packed_shape,
    unpack_bits_reference,
)

from tests.kernels.bitpack_cases import DTYPES, SIZES, grid_tensor, same_bits


@pytest.mark.parametrize("size", SIZES)
def test_one_bit_flat_is_little_endian_packbits(size: int) -> None:
    x, codes = grid_tensor([size], torch.float32, 1)
    expected = np.packbits(codes.numpy().astype(np.uint8), bitorder="little")
    assert np.array_equal(pack_bits_reference(x, 1).numpy(), expected)


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 17])
def test_one_bit_time_is_little_endian_packbits_along_the_first_axis(steps: int) -> None:
    x, codes = grid_tensor([steps, 3, 5], torch.float32, 1)
    expected = np.packbits(codes.numpy().astype(np.uint8), axis=0, bitorder="little")
    assert np.array_equal(pack_bits_reference(x, 1, "time").numpy(), expected)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 70), st.integers(0, 99))
def test_flat_bytes_read_as_one_number_hold_the_codes_in_order(
    bits: int, size: int, seed: int
) -> None:
    x, codes = grid_tensor([size], torch.int32, bits, seed=seed)
    number = sum(code << (i * bits) for i, code in enumerate(codes.tolist()))
    packed = pack_bits_reference(x, bits)
    assert int.from_bytes(bytes(packed.tolist()), "little") == number
    assert packed.shape[0] == (size * bits + 7) // 8


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 20), st.integers(0, 99))
def test_time_layout_packs_every_column_as_flat(bits: int, steps: int, seed: int) -> None:
    x, _ = grid_tensor([steps, 3], torch.float32, bits, seed=seed)
    packed = pack_bits_reference(x, bits, "time")
    for column in range(3):
        assert torch.equal(packed[:, column], pack_bits_reference(x[:, column], bits))


@given(
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["flat", "time"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_round_trip_gives_back_every_bit(
    dtype: torch.dtype, bits: int, layout: str, shape: list[int]
) -> None:
    x, _ = grid_tensor(shape, dtype, bits)
    packed = pack_bits_reference(x, bits, layout)
    assert same_bits(unpack_bits_reference(packed, shape, dtype, bits, layout), x)


def test_scalar_tensor_packs_flat_into_one_byte() -> None:
    packed = pack_bits_reference(torch.tensor(1.0), 1)
    assert packed.tolist() == [1]
    assert unpack_bits_reference(packed, [], torch.float32, 1).shape == ()


def test_fits_grid_tells_lossless_tensors_from_others() -> None:
    assert fits_grid(torch.tensor([0.0, -0.0, 1.0]), 1)
    assert not fits_grid(torch.tensor([0.0, 0.5]), 1)
    assert not fits_grid(torch.tensor([0, 2]), 1)
    assert not fits_grid(torch.tensor([0.0, float("nan")]), 1)
    assert fits_grid(torch.tensor([-1.0, 0.0, 1.0]), 2, lo=-1)
    assert not fits_grid(torch.tensor([-1.0, 0.0, 1.0]), 2)
    assert fits_grid(torch.tensor([0, 0.25, 1.0], dtype=torch.bfloat16), 4, scale=0.25)


def test_is_float32_knows_which_scales_round() -> None:
    assert is_float32(0.25)
    assert is_float32(torch.tensor(1.0 / 0.9).item())
    assert not is_float32(1.0 / 0.9)


BAD_PACK = [
    ((torch.zeros(3, dtype=torch.complex64), 1), r"cannot pack torch.complex64.*convert"),
    ((torch.zeros(3), 3), r"bits=3 .*\(1, 2, 4, 8\)"),
    ((torch.zeros(3), 1, "tme"), r"layout='tme' is unknown.*flat"),
    ((torch.zeros(()), 1, "time"), r"0-dim tensor .*layout='flat'"),
    ((torch.zeros(3), 1, "flat", 0.0), r"scale=0.0 must be"),
    ((torch.zeros(3), 1, "flat", float("nan")), r"scale=nan must be"),
    ((torch.zeros(3), 1, "flat", 1.0, 1 << 20), r"lo=1048576 must be from"),
    ((torch.zeros(3, dtype=torch.bool), 1, "flat", 2.0), r"bool holds only 0 and 1"),
    ((torch.zeros(3, dtype=torch.int32), 1, "flat", 0.5), r"scale=0.5 gives no torch.int32"),
    ((torch.zeros(3, dtype=torch.uint8), 1, "flat", 1.0, -1), r"-1\*1 does not fit torch.uint8"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_PACK)
def test_bad_pack_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(PackError, match=message):
        pack_bits_reference(*arguments)


BYTES = torch.zeros(2, dtype=torch.uint8)
BAD_UNPACK = [
    ((BYTES, [17], torch.float32, 1), r"shape \[2\], but \[17\] at 1 bits .* packs to \[3\]"),
    ((BYTES, [2, 4], torch.float32, 1, "time"), r"packs to \[1, 4\]"),
    ((BYTES, [-1], torch.float32, 1), r"negative size"),
    ((BYTES.float(), [16], torch.float32, 1), r"packed must be uint8, got torch.float32"),
    ((BYTES, [16], torch.uint16, 1), r"cannot pack torch.uint16"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_UNPACK)
def test_bad_unpack_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(PackError, match=message):
        unpack_bits_reference(*arguments)


def test_packed_shape_rejects_an_unknown_width() -> None:
    with pytest.raises(PackError, match="bits=5"):
        packed_shape([8], 5, "flat")
