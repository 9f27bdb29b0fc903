"""Compressors give back what they held bit for bit, and say so where they cannot hold a tensor."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

from measure import allocation_events, peak_bytes
from snnfx import compressors
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.errors import CompressionError, OptionError, PackError

from tests.compressor_cases import (
    BINARY,
    EVERY,
    FLOATS,
    channels_last,
    expected_stride,
    layouts,
    spikes,
)


def as_it_lies(x: Tensor) -> np.ndarray[Any, Any]:
    """The elements of a dense tensor in the order of memory."""
    return torch.as_strided(x, (x.numel(),), (1,)).numpy()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The packing kernels' chunks grow with the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("compressor", BINARY, ids=repr)
@given(x=spikes())
@settings(max_examples=60)
def test_spikes_come_back_with_shape_dtype_and_dense_strides(
    compressor: BaseSpikeCompressor, x: Tensor
) -> None:
    payload = compressor.compress(x)
    back = compressor.decompress(payload, x.shape)
    assert back.dtype == x.dtype
    assert back.stride() == expected_stride(x)
    assert torch.equal(back, x)
    assert payload.nbytes == payload.data.numel() * payload.data.element_size()


@given(x=spikes())
def test_the_null_compressor_gives_the_tensor_itself(x: Tensor) -> None:
    payload = NullSpikeCompressor().compress(x)
    assert payload.data is x
    assert NullSpikeCompressor().decompress(payload) is x


@pytest.mark.parametrize(
    "x", [torch.ones(2, dtype=torch.complex64), torch.eye(3).to_sparse()], ids=["complex", "sparse"]
)
def test_the_null_compressor_holds_what_has_no_strides_or_no_order(x: Tensor) -> None:
    compressor = NullSpikeCompressor()
    assert compressor.decompress(compressor.compress(x), x.shape) is x


@given(x=spikes().filter(lambda x: x.is_contiguous()))
def test_bits_are_those_of_numpy(x: Tensor) -> None:
    packed = np.packbits(as_it_lies(x.float()) != 0, bitorder="little")
    assert np.array_equal(BitSpikeCompressor().compress(x).data.numpy(), packed)


@given(x=spikes().filter(lambda x: x.is_contiguous()))
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64], ids=str)
def test_indices_are_those_of_numpy(dtype: torch.dtype, x: Tensor) -> None:
    found = SparseSpikeCompressor(dtype).compress(x).data
    assert found.dtype == dtype
    assert np.array_equal(found.numpy(), np.flatnonzero(as_it_lies(x.float())))


def test_permuted_tensors_are_read_as_they_lie_without_a_copy(one_thread: None) -> None:
    x = (torch.rand(8, 16, 32, 32) < 0.1).float().to(memory_format=torch.channels_last)
    compressor = BitSpikeCompressor()
    packed = np.packbits(as_it_lies(x) != 0, bitorder="little")
    assert np.array_equal(compressor.compress(x).data.numpy(), packed)
    assert peak_bytes(allocation_events(lambda: compressor.compress(x))) < x.nbytes / 8


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    exponent=st.integers(-3, 3),
    lo=st.integers(-20, 20),
    dtype=st.sampled_from(FLOATS),
    size=st.integers(0, 600),
    seed=st.integers(0, 99),
)
def test_grids_hold_their_values_and_codes(
    bits: int, exponent: int, lo: int, dtype: torch.dtype, size: int, seed: int
) -> None:
    scale = 2.0**exponent
    codes = np.random.default_rng(seed).integers(0, min(2**bits, 200), size)
    x = torch.from_numpy((codes + lo) * scale).to(dtype)
    payload = GridSpikeCompressor(bits, scale, lo, check=True).compress(x)
    every_bit = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1, bitorder="little")
    packed = np.packbits(every_bit[:, :bits].reshape(-1), bitorder="little")
    assert np.array_equal(payload.data.numpy(), packed)
    assert torch.equal(GridSpikeCompressor(bits, scale, lo).decompress(payload), x)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int16, torch.int64])
def test_every_byte_is_held_as_uint8(dtype: torch.dtype) -> None:
    x = torch.arange(256, dtype=torch.float64).to(dtype)
    compressor = Uint8SpikeCompressor(check=True)
    assert torch.equal(compressor.decompress(compressor.compress(x)), x)


def test_large_tensors_are_read_and_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressors, "INDEX_ELEMENTS", 7)
    monkeypatch.setattr(compressors, "CHECKED_ELEMENTS", 11)
    x = channels_last()
    for compressor in BINARY:
        assert torch.equal(compressor.decompress(compressor.compress(x)), x)
    narrow, wide = (SparseSpikeCompressor(d).compress(x).data for d in (torch.uint8, torch.int64))
    assert torch.equal(narrow.long(), wide)


NAN = float("nan")


@pytest.mark.parametrize(
    ("compressor", "value", "text"),
    [
        (BooleanSpikeCompressor(check=True), 2.0, "only 0 and 1, but element .* is 2.0"),
        (BitSpikeCompressor(check=True), 0.5, r"only 0 and 1.* is 0.5 \(torch.float32\); use a"),
        (BitSpikeCompressor(check=True), -0.0, "is -0.0"),
        (BitSpikeCompressor(check=True), NAN, "is nan"),
        (SparseSpikeCompressor(check=True), -1.0, "only 0 and 1.* is -1.0"),
        (SparseSpikeCompressor(check=True), -0.0, "is -0.0"),
        (Uint8SpikeCompressor(check=True), 256.0, "integers from 0 to 255, .* is 256.0"),
        (Uint8SpikeCompressor(check=True), -1.0, "is -1.0"),
        (Uint8SpikeCompressor(check=True), 0.5, "is 0.5"),
        (Uint8SpikeCompressor(check=True), NAN, "is nan"),
        (GridSpikeCompressor(2, 0.5, -1, check=True), 1.5, "only 0.5 .* k from -1 to 2.* is 1.5"),
        (GridSpikeCompressor(2, 0.5, -1, check=True), -0.0, "is -0.0"),
        (GridSpikeCompressor(8, check=True), NAN, "is nan"),
        (GridSpikeCompressor(8, check=True), float("inf"), "is inf"),
    ],
)
def test_a_value_that_would_not_come_back_is_named(
    compressor: BaseSpikeCompressor, value: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressors, "CHECKED_ELEMENTS", 16)
    for x in (torch.zeros(2, 3, 4, 5), channels_last() * 0, torch.zeros(2, 3, 4, 10)[..., ::2]):
        compressor.compress(x)
        x[1, 2, 3, 4] = value
        x[1, 1, 3, 4] = value
        with pytest.raises(CompressionError, match=text) as error:
            compressor.compress(x)
        # The one that comes first in memory.
        assert "element [1, 1, 3, 4]" in str(error.value)


def test_integers_are_checked_as_well() -> None:
    with pytest.raises(CompressionError, match=r"element \[1\] is 2 \(torch.int64\)"):
        BitSpikeCompressor(check=True).compress(torch.tensor([1, 2]))
    with pytest.raises(CompressionError, match=r"element \[\] is 300 \(torch.int32\)"):
        Uint8SpikeCompressor(check=True).compress(torch.tensor(300, dtype=torch.int32))


def test_without_a_check_other_values_become_what_the_class_says() -> None:
    x = torch.tensor([0.5, -3.0, NAN, -0.0])
    for compressor in (BooleanSpikeCompressor(), SparseSpikeCompressor()):
        assert compressor.decompress(compressor.compress(x)).tolist() == [1, 1, 1, 0]
    uint8, bit = Uint8SpikeCompressor(), BitSpikeCompressor()
    assert uint8.decompress(uint8.compress(torch.tensor([1.75, 3.0]))).tolist() == [1, 3]
    off = torch.zeros(64)
    off[40] = 0.7
    back = bit.decompress(bit.compress(off))
    assert torch.equal(back[:25], off[:25])
    assert torch.equal(back[56:], off[56:])
    assert set(back.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("compressor", BINARY, ids=repr)
def test_complex_tensors_are_refused(compressor: BaseSpikeCompressor) -> None:
    with pytest.raises(CompressionError, match=r"got a tensor of torch.complex64; compress its"):
        compressor.compress(torch.ones(2, dtype=torch.complex64))


def test_dtypes_and_grids_that_the_kernels_lack_are_refused() -> None:
    with pytest.raises(PackError, match=r"cannot pack torch.uint16"):
        BitSpikeCompressor().compress(torch.ones(2).to(torch.uint16))
    with pytest.raises(PackError, match="bits=3 is not a packed width"):
        GridSpikeCompressor(3)
    with pytest.raises(PackError, match=r"scale=0.5 gives no torch.int32 values"):
        GridSpikeCompressor(2, 0.5).compress(torch.ones(2, dtype=torch.int32))


def test_indices_must_be_able_to_count_the_elements() -> None:
    compressor = SparseSpikeCompressor(torch.int8)
    x = torch.ones(128)
    assert torch.equal(compressor.decompress(compressor.compress(x)), x)
    with pytest.raises(CompressionError, match=r"cannot count the 129 .*use dtype=torch.uint8 or"):
        compressor.compress(torch.ones(129))
    with pytest.raises(CompressionError, match=r"2147483649 .*use dtype=torch.int64"):
        SparseSpikeCompressor(torch.int32).compress(torch.empty(2**31 + 1, device="meta"))
    with pytest.raises(OptionError, match=r"dtype=torch.float32 holds no indices; use one of"):
        SparseSpikeCompressor(torch.float32)


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_compressors_are_values(compressor: BaseSpikeCompressor) -> None:
    twins = [pickle.loads(pickle.dumps(compressor)), copy.deepcopy(compressor)]
    for twin in (*twins, eval(repr(compressor))):
        assert twin == compressor
        assert hash(twin) == hash(compressor)
    assert [other for other in EVERY if other == compressor] == [compressor]
    with pytest.raises(dataclasses.FrozenInstanceError, match="check"):
        compressor.check = True  # type: ignore[attr-defined]


def test_who_needs_strictly_binary_tensors_says_so() -> None:
    strict = {type(c).__name__[:-15] for c in EVERY if c.requires_strictly_binary}
    assert strict == {"Boolean", "Bit", "Sparse"}


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_fake_and_meta_tensors_get_the_strides_of_real_ones(
    compressor: BaseSpikeCompressor,
) -> None:
    for x in layouts():
        real = compressor.decompress(compressor.compress(x))
        meta = torch.empty_strided(x.shape, x.stride(), device="meta")
        found = [compressor.decompress(compressor.compress(meta))]
        with FakeTensorMode() as mode:
            found.append(compressor.decompress(compressor.compress(mode.from_tensor(x))))
        for back in found:
            assert (back.shape, back.stride(), back.dtype) == (x.shape, real.stride(), x.dtype)
        if not isinstance(compressor, SparseSpikeCompressor):
            assert compressor.compress(meta).nbytes == compressor.compress(x).nbytes


@pytest.mark.parametrize(
    "compressor",
    [c for c in BINARY if not isinstance(c, SparseSpikeCompressor) and "True" not in repr(c)],
    ids=repr,
)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_compressors_are_traced_into_one_graph(
    compressor: BaseSpikeCompressor, number: int
) -> None:
    x = layouts()[number]

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        payload = compressor.compress(x)
        return payload.data, compressor.decompress(payload, x.shape)

    data, back = torch.compile(both, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(data, compressor.compress(x).data)
    assert torch.equal(back, x)
    assert back.stride() == expected_stride(x)


@pytest.mark.parametrize("number", [0, 1])
def test_one_graph_serves_every_batch_size(number: int) -> None:
    compressor, graphs = BitSpikeCompressor(), CompileCounter()
    compiled = torch.compile(
        lambda x: compressor.decompress(compressor.compress(x)),
        backend=graphs, fullgraph=True, dynamic=True,
    )  # fmt: skip
    for batch in (3, 4, 7):  # no size of the others, which would be taken for the same
        x = layouts()[number].repeat(batch, 1, 1, 1)
        x = x.contiguous(memory_format=torch.channels_last) if number else x
        assert torch.equal(compiled(x), x)
        assert compiled(x).stride() == x.stride()
    assert graphs.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("compressor", "extra"),
    [
        (BooleanSpikeCompressor(), 0),
        (Uint8SpikeCompressor(), 0),
        (BitSpikeCompressor(), 1),
        (SparseSpikeCompressor(), 0),
        (SparseSpikeCompressor(torch.int32), 1),
    ],
    ids=repr,
)
def test_compressing_holds_no_more_than_its_result_besides_it(
    compressor: BaseSpikeCompressor, extra: int, dtype: torch.dtype, one_thread: None
) -> None:
    x = (torch.rand(1 << 22) < 0.1).to(dtype)
    payload = compressor.compress(x)
    compress = peak_bytes(allocation_events(lambda: compressor.compress(x)))
    decompress = peak_bytes(allocation_events(lambda: compressor.decompress(payload)))
    assert payload.nbytes <= compress <= (1 + extra) * payload.nbytes
    assert x.nbytes <= decompress <= x.nbytes + 2 * extra * payload.nbytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_compressed_spikes_stay_on_their_gpu(compressor: BaseSpikeCompressor) -> None:
    for x in layouts():
        payload = compressor.compress(x.cuda())
        back = compressor.decompress(payload)
        assert payload.data.is_cuda
        assert back.is_cuda
        assert torch.equal(back.cpu(), x)
