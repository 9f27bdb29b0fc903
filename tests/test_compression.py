"""Compressors of one's own need two hooks; payloads and instances hold nothing of a call."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    CompressedSpikes,
    NullSpikeCompressor,
)
from snnfx.errors import CompressionError

from tests.compressor_cases import (
    BINARY,
    EVERY,
    channels_last,
    expected_stride,
)


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
