"""The compressor of a container's input: the user's, a proven one, or none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.errors import OptionError
from snnfx.memopt.selection import build_compressor
from snnfx.passes.analysis.value_range import Encoding

BINARY = Encoding(1, 1.0, 0)
NAMES = "'BitSpikeCompressor', 'BooleanSpikeCompressor', 'NullSpikeCompressor'"


class Halves(BaseSpikeCompressor):
    """A user's own compressor, with something inside that instances could share."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def _compress(self, s_seq: Tensor) -> Tensor:
        self.sizes.append(s_seq.numel())
        return s_seq.half()

    def _decompress(self, s_seq: Tensor, shape: Sequence[int]) -> Tensor:
        return s_seq.float().reshape(shape)


class NeedsArguments(Halves):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.sizes.append(size)


def test_spikes_become_bits() -> None:
    assert build_compressor(None, BINARY, True) == (BitSpikeCompressor(), "bit")


@pytest.mark.parametrize(
    "proven", [Encoding(2, 1.0, 0), Encoding(1, 0.5, 0), Encoding(1, 1.0, -1), Encoding(8, 0.25, 3)]
)
def test_other_grids_keep_their_bits_scale_and_offset(proven: Encoding) -> None:
    expected = GridSpikeCompressor(proven.bits, proven.scale, proven.lo)
    assert build_compressor(None, proven, True) == (expected, "grid")


@pytest.mark.parametrize("encoding", [BINARY, Encoding(2, 0.5, -1), Encoding(4, 0.25, 0)])
def test_a_proven_input_comes_back_as_it_was(encoding: Encoding) -> None:
    codes = torch.arange(1 << encoding.bits).repeat(5)
    x = (codes + encoding.lo) * encoding.scale
    compressor, _ = build_compressor(None, encoding, True)
    payload = compressor.compress(x)
    assert torch.equal(compressor.decompress(payload), x)
    assert payload.nbytes == -(-x.numel() * encoding.bits // 8)


def test_what_is_not_proven_is_kept_as_it_is() -> None:
    assert build_compressor(None, None, True) == (NullSpikeCompressor(), "null")


@pytest.mark.parametrize("spec", [None, "BitSpikeCompressor", "no such name"])
def test_without_compression_nothing_else_counts(spec: object) -> None:
    assert build_compressor(spec, BINARY, False) == (NullSpikeCompressor(), "null")


@pytest.mark.parametrize(
    "spec", ["Uint8SpikeCompressor", Uint8SpikeCompressor, Uint8SpikeCompressor()]
)
def test_what_the_user_set_wins_over_a_proof(spec: object) -> None:
    assert build_compressor(spec, BINARY, True) == (Uint8SpikeCompressor(), "manual")


def test_an_instance_keeps_its_arguments() -> None:
    given = SparseSpikeCompressor(torch.int32, check=True)
    assert build_compressor(given, None, True) == (given, "manual")


@pytest.mark.parametrize("spec", [Halves, Halves()])
def test_two_containers_share_nothing_of_a_compressor(spec: object) -> None:
    first, second = (build_compressor(spec, None, True)[0] for _ in range(2))
    assert isinstance(first, Halves)
    assert isinstance(second, Halves)
    assert first is not second
    first.compress(torch.ones(3))
    assert (first.sizes, second.sizes) == ([3], [])


@pytest.mark.parametrize(
    "spec", ["Bit", "", "CompressedSpikes", "Encoding", int, 3, torch.nn.ReLU(), ["BitSpike"]]
)
def test_a_wrong_specification_is_an_error_that_lists_the_names(spec: object) -> None:
    with pytest.raises(OptionError, match=rf"is no compressor; give one of the names {NAMES}"):
        build_compressor(spec, None, True)


@pytest.mark.parametrize(
    "spec", [NeedsArguments, GridSpikeCompressor, "GridSpikeCompressor", "BaseSpikeCompressor"]
)
def test_a_class_that_needs_arguments_has_to_be_given_as_an_instance(spec: object) -> None:
    with pytest.raises(OptionError, match=rf"cannot be made without arguments; .* names {NAMES}"):
        build_compressor(spec, None, True)


def test_an_instance_of_such_a_class_is_taken() -> None:
    compressor, kind = build_compressor(NeedsArguments(7), BINARY, True)
    assert isinstance(compressor, NeedsArguments)
    assert (compressor.sizes, kind) == ([7], "manual")
