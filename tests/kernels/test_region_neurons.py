"""Regions of a spiking layer, against their programs run one tensor operation at a time."""

from __future__ import annotations

import pytest
import torch

from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_ir import Program
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import layout_of, lif_backward, lif_forward, lif_tensors

SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (4, 8, 20, 20), (3, 1, 1, 40), (0, 3, 4, 4)]


def run_both(
    program: Program,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    shape: tuple[int, ...],
) -> list[torch.Tensor]:
    """Run the kernel into `outputs`, and return what the reference makes, as views like them."""
    expected = [
        torch.zeros_like(o[:, :1, :, :1, :1]).expand_as(o) if o.stride(1) == 0 else o.clone()
        for o in outputs
    ]
    run_reference(program, inputs, expected, shape)
    compile_program(program)(
        inputs, outputs, shape, tuple(map(layout_of, inputs)), tuple(map(layout_of, outputs))
    )
    return expected


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_equals_the_reference_bit_for_bit(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    inputs, outputs, _ = lif_tensors(10, shape, dtype, channels_last)
    expected = run_both(lif_forward(10, dtype), inputs[:5], outputs, shape)
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))
    if outputs[0].numel() > 1000:
        assert 0.05 < outputs[0].mean().item() < 0.95
