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
from torch._subclasses import FakeTensorMode

from measure import allocation_events, peak_bytes
from snnfx import compressors
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    CompressedSpikes,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.errors import CompressionError, OptionError, PackError

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


class CountFromOne(BaseSpikeCompressor):
    """Written for SpikingJelly: two hooks, a constructor that calls no other, an int16 result."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def _compress(self, s_seq: Tensor) -> Tensor:
        return (s_seq.reshape(-1) + self.offset).to(torch.int16)

    def _decompress(self, s_seq: Tensor, shape: Any) -> Tensor:
        return (s_seq - self.offset).view(shape)


class MeanOverTime(BaseSpikeCompressor):
    """Lossy, and not the same for another order of dimensions."""

    def _compress(self, s_seq: Tensor) -> Tensor:
        return s_seq.mean(0, keepdim=True)

    def _decompress(self, s_seq: Tensor, shape: Any) -> Tensor:
        return s_seq.expand(shape)


class Fired(BitSpikeCompressor):
    """Overrides the other hook, in a way that depends on the order of dimensions."""

    def _compress(self, s_seq: Tensor) -> Tensor:
        return super()._compress(s_seq > torch.arange(s_seq.shape[1]).view(1, -1, 1, 1))


class Doubled(BitSpikeCompressor):
    """Overrides one hook of a class that has a faster way than the hooks."""

    def _decompress(self, s_seq: Tensor, shape: torch.Size) -> Tensor:
        return 2 * super()._decompress(s_seq, shape)


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


def as_it_lies(x: Tensor) -> np.ndarray[Any, Any]:
    """The elements of a dense tensor in the order of memory."""
    return torch.as_strided(x, (x.numel(),), (1,)).numpy()


def channels_last() -> Tensor:
    """Spikes ``[2, 3, 4, 5]``, dense but not contiguous."""
    return (torch.rand(2, 3, 4, 5) < 0.3).float().to(memory_format=torch.channels_last)


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


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_one_instance_serves_many_tensors_at_once(compressor: BaseSpikeCompressor) -> None:
    tensors = [channels_last(), torch.ones(3), torch.zeros(2, 9).bfloat16(), torch.tensor(1)]
    held = [compressor.compress(x) for x in tensors]
    for x, payload in reversed([*zip(tensors, held, strict=True)]):
        for _ in range(2):
            back = compressor.decompress(payload)
            assert torch.equal(back, x)
            assert back.dtype == x.dtype


def test_hooks_written_for_spikingjelly_are_all_that_a_compressor_needs() -> None:
    compressor = CountFromOne(1)
    for x in (channels_last(), torch.ones(4).bfloat16(), torch.rand(6, 4)[::2] < 0.5):
        payload = compressor.compress(x)
        assert payload.data.dtype == torch.int16
        back = compressor.decompress(payload, x.shape)
        assert torch.equal(back, x)
        assert (back.dtype, back.stride()) == (x.dtype, expected_stride(x))
    assert not compressor.requires_strictly_binary


def test_hooks_of_a_users_compressor_see_dimensions_in_their_order() -> None:
    x = channels_last()
    back = MeanOverTime().decompress(MeanOverTime().compress(x))
    assert torch.equal(back, x.mean(0, keepdim=True).expand(x.shape))
    assert back.stride() == x.stride()


def test_an_overridden_hook_replaces_the_faster_way_of_its_parent() -> None:
    x = channels_last()
    back = Doubled().decompress(Doubled().compress(x))
    assert torch.equal(back, 2 * x)
    assert back.stride() == x.stride()
    back = Fired().decompress(Fired().compress(x))
    assert torch.equal(back[:, :1], x[:, :1])
    assert not back[:, 1:].any()
    assert back.stride() == x.stride()


def test_a_hook_that_gives_another_shape_is_an_error() -> None:
    class Flat(CountFromOne):
        def _decompress(self, s_seq: Tensor, shape: Any) -> Tensor:
            return s_seq

    with pytest.raises(CompressionError, match=r"Flat._decompress gave shape \(6,\), expected"):
        Flat(0).decompress(Flat(0).compress(torch.ones(2, 3)))


@pytest.mark.parametrize("compressor", [NullSpikeCompressor(), BitSpikeCompressor()], ids=repr)
def test_another_shape_than_was_compressed_is_an_error(compressor: BaseSpikeCompressor) -> None:
    payload = compressor.compress(torch.ones(2, 3))
    assert compressor.decompress(payload, [2, 3]).shape == (2, 3)
    with pytest.raises(CompressionError, match=r"asked for shape \(3, 2\).*had shape \(2, 3\)"):
        compressor.decompress(payload, (3, 2))


@pytest.mark.parametrize("compressor", [NullSpikeCompressor(), BitSpikeCompressor()], ids=repr)
def test_only_what_compress_returned_can_be_decompressed(compressor: BaseSpikeCompressor) -> None:
    with pytest.raises(CompressionError, match=r"takes the CompressedSpikes.*got Tensor"):
        compressor.decompress(torch.ones(3), (3,))  # type: ignore[arg-type]


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


def test_payloads_can_be_taken_apart_pickled_and_not_changed() -> None:
    x = channels_last()
    payload = BitSpikeCompressor().compress(x)
    (data,) = payload.tensors()
    assert data is payload.data
    assert payload.nbytes == 15
    twin = pickle.loads(pickle.dumps(payload))
    for other in (twin, payload.with_tensors([data.clone()])):
        assert torch.equal(BitSpikeCompressor().decompress(other), x)
    flipped = payload.with_tensors([~data])
    assert torch.equal(BitSpikeCompressor().decompress(flipped), 1 - x)
    assert isinstance(flipped, CompressedSpikes)
    with pytest.raises(dataclasses.FrozenInstanceError, match="data"):
        payload.data = x  # type: ignore[misc]


@pytest.mark.parametrize("compressor", BINARY, ids=repr)
def test_results_are_outside_of_autograd_and_may_be_written_into(
    compressor: BaseSpikeCompressor,
) -> None:
    for x in (channels_last(), torch.ones(5)):
        payload = compressor.compress(x.clone().requires_grad_() * 1)
        back = compressor.decompress(payload)
        assert not payload.data.requires_grad
        assert not back.requires_grad
        back.add_(x.requires_grad_())  # a view that was made without gradients would refuse
        assert back.requires_grad
        assert torch.equal(compressor.decompress(payload), x)


@pytest.mark.parametrize("compressor", BINARY, ids=repr)
def test_compressors_work_in_inference_mode(compressor: BaseSpikeCompressor) -> None:
    with torch.inference_mode():
        x = channels_last()
        assert torch.equal(compressor.decompress(compressor.compress(x)), x)


def test_hooks_on_saved_tensors_can_compress_what_autograd_keeps() -> None:
    x, compressor = channels_last().flatten(1), BitSpikeCompressor(check=True)
    weight = torch.randn(60, 7, requires_grad=True)
    held: list[CompressedSpikes] = []

    def pack(tensor: Tensor) -> CompressedSpikes:
        held.append(compressor.compress(tensor))
        return held[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, compressor.decompress):
        loss = (x @ weight).sum()
    loss.backward()
    assert [payload.shape for payload in held] == [x.shape]
    assert weight.grad is not None
    assert torch.equal(weight.grad, x.t() @ torch.ones(2, 7))


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
