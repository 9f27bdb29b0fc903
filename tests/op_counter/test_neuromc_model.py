"""NeuroMC's model of costs: one layer by hand, products by counting, functional as in layers."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.errors import OptionError
from snnfx.neurons import LIFNode, reset_net
from snnfx.op_counter.neuromc import (
    MemoryHierarchyConfig,
    MemoryInstanceSpec,
    estimate_neuromc_runtime_energy,
)
from snnfx.op_counter.neuromc.modules import Stage
from snnfx.op_counter.neuromc.operators import BACKWARD, FORWARD, OperatorCall, Products

SIZES = st.integers(1, 4)


def spikes(*shape: int) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    return (values > 0.5).float()


def macs(model: nn.Module, x: Tensor, **options: Any) -> int:
    report = estimate_neuromc_runtime_energy(model, x, strict=True, **options)
    return report.primitive_counts["totals"]["mac"]


def test_the_forward_of_a_convolution_of_spikes_by_hand() -> None:
    """One layer, N=2, 20 channels to 3, 3x3 on 5x5: every number from the paper's formulas."""
    batch, c, k, out, kernel = 2, 20, 3, 3, 9
    model = nn.Sequential(nn.Conv2d(c, k, 3, bias=False))
    report = estimate_neuromc_runtime_energy(model, spikes(batch, c, 5, 5))

    outputs = batch * k * out * out
    products = outputs * c * kernel
    rounds = ceil(c / 16) * kernel
    weights = k * c * kernel
    register = {  # bits
        "rh2l": products * 1 + weights * 16 + (products - outputs) * 16,
        "wh2l": products * 1 + weights * 16 + products * 16,
        "rl2h": products * 16,
        "wl2h": outputs * (rounds - 1) * 16,
    }
    sram_read = outputs * rounds * 1, weights * 16, outputs * (rounds - 1) * 16
    sram_written = outputs * rounds * 16
    register_pj = sum(register.values()) * 0.00901 * 2 / 7.1
    sram_pj = (
        sram_read[0] * 0.44854798
        + sram_read[1] / 16 * 5.302477904
        + (sram_read[2] + sram_written) / 16 * 5.792676768
    )
    mac_pj = products * (0.548 + 0.548 / 16)

    assert report.primitive_counts["totals"]["mac"] == products
    assert report.memory_bits_by_level["by_level_dir"] == {
        "reg": register,
        "sram": {"rh2l": sum(sram_read), "wl2h": sram_written},
    }
    assert report.energy_mac_pj == pytest.approx(mac_pj)
    assert report.energy_base_memory_pj == pytest.approx(register_pj + sram_pj)
    assert report.energy_total_pj == pytest.approx(mac_pj + register_pj + sram_pj)
    assert report.energy_by_core_type == {"fp_soma": pytest.approx(report.energy_total_pj)}


def test_a_population_by_hand() -> None:
    model = nn.Sequential(LIFNode(v_threshold=0.1))
    report = estimate_neuromc_runtime_energy(model, torch.rand(2, 3, 4))
    places = 2 * 3 * 4
    compute_pj = places * (0.548 / 16 + 0.548 + 0.812 + 3 * 0.056)
    register_pj = places * (16 + 16 + 1 + 16 + 16 + 1 + 1) * 0.00901 * 2 / 7.1
    sram_pj = places * (
        2 * 16 / 16 * 5.792676768 + 2 * 16 / 256 * 92.68282828 + (2 + 1) / 16 * 7.176767677
    )
    assert report.energy_extra_compute_pj == pytest.approx(compute_pj)
    assert report.energy_extra_memory_pj == pytest.approx(register_pj + sram_pj)
    assert report.energy_mac_pj == report.energy_base_memory_pj == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dims=st.integers(1, 2), transposed=st.booleans())
def test_products_of_convolutions_are_those_that_a_count_finds(
    data: st.DataObject, dims: int, transposed: bool
) -> None:
    """A convolution of ones with ones, without padding, sums up to its number of products."""
    groups, batch = data.draw(st.integers(1, 3)), data.draw(SIZES)
    c, k = groups * data.draw(SIZES), groups * data.draw(SIZES)
    kernel, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    x = torch.ones(batch, c, *(dilation * (kernel - 1) + data.draw(SIZES) for _ in range(dims)))
    if transposed:
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
        convolve = (F.conv_transpose1d, F.conv_transpose2d)[dims - 1]
    else:
        kind, convolve = (nn.Conv1d, nn.Conv2d)[dims - 1], (F.conv1d, F.conv2d)[dims - 1]
    layer = kind(c, k, kernel, **options)
    counted = convolve(x, torch.ones_like(layer.weight), **options).sum().item()
    model = nn.Sequential(layer)
    assert macs(model, x) == counted
    target = torch.zeros_like(model(x))
    assert macs(model, x, loss_fn=F.mse_loss, target=target) == 2 * counted
    leaf = x.clone().requires_grad_()
    assert macs(model, leaf, loss_fn=F.mse_loss, target=target) == 3 * counted


@settings(max_examples=20, deadline=None)
@given(leading=st.lists(SIZES, max_size=3), c=SIZES, k=SIZES, bias=st.booleans())
def test_products_of_linear_layers_are_those_that_a_count_finds(
    leading: list[int], c: int, k: int, bias: bool
) -> None:
    model, x = nn.Sequential(nn.Linear(c, k, bias=bias)), torch.ones(*leading, c)
    counted = (x @ torch.ones(c, k)).sum().item()
    assert macs(model, x) == counted
    target = torch.zeros(*leading, k)
    assert macs(model, x, loss_fn=F.mse_loss, target=target) == 2 * counted


class AsFunctions(nn.Module):
    """Calls its layers' functions with their parameters, so that no layer runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for step in self.model.children():
            if isinstance(step, nn.Linear):
                x = F.linear(x, step.weight, step.bias)
            elif isinstance(step, nn.Conv2d):
                x = F.conv2d(x, step.weight, step.bias, step.stride, groups=step.groups)
            elif isinstance(step, nn.BatchNorm2d):
                x = F.batch_norm(x, None, None, step.weight, step.bias, training=True)
            else:
                x = step(x)
        return x


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(6, 20), LIFNode(), nn.Linear(20, 3, bias=False)), spikes(4, 6)),
        (nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 3)), torch.rand(4, 6)),
        (
            nn.Sequential(
                nn.Conv2d(2, 20, 3, stride=2), nn.BatchNorm2d(20), nn.Conv2d(20, 4, 1, groups=2)
            ),
            spikes(2, 2, 5, 5),
        ),
    ],
    ids=["spikes", "values", "convolutions"],
)
def test_functions_cost_what_their_layers_cost(model: nn.Module, x: Tensor) -> None:
    target = torch.zeros_like(model(x))
    reset_net(model)
    layers, functions = (
        estimate_neuromc_runtime_energy(net, x, loss_fn=F.mse_loss, target=target, strict=True)
        for net in (model, AsFunctions(model))
        if reset_net(net) is None
    )
    assert functions.energy_total_pj == pytest.approx(layers.energy_total_pj)
    assert functions.energy_by_core_type == pytest.approx(layers.energy_by_core_type)
    assert functions.energy_by_stage == pytest.approx(layers.energy_by_stage)
    assert functions.memory_bits_by_level == layers.memory_bits_by_level


class Attention(nn.Module):
    """Products of activations with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)


def test_products_of_activations_have_two_gradients_of_inputs() -> None:
    x = torch.rand(2, 3, 5)
    report = estimate_neuromc_runtime_energy(Attention(), x, loss_fn=F.mse_loss, target=x)
    assert report.primitive_counts["totals"]["mac"] == 3 * 2 * (2 * 3 * 3 * 5)
    assert set(report.energy_by_core_type) == {"ann_fe", "ann_be"}


def test_normalisation_by_cudnn_is_normalisation() -> None:
    """No GPU is needed to ask the rules: they look at shapes, and at whether there are spikes."""
    x, gradient = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    aten, products = torch.ops.aten, Products(nn.Linear(1, 1))
    for table, kind, name, args in (
        (FORWARD, "batch_norm", "native", (x,)),
        (FORWARD, "batch_norm", "cudnn", (x,)),
        (BACKWARD, "batch_norm_backward", "native", (gradient, x)),
        (BACKWARD, "batch_norm_backward", "cudnn", (x, gradient)),
    ):
        rule = table.find(getattr(aten, f"{name}_{kind}").default)
        assert rule is not None
        (piece,) = rule(OperatorCall(name, args, None, Stage(), products)) or ()
        assert piece.loops.as_dict() == {
            "B": 2, "T": 1, "C": 3, "K": 3, "OY": 4, "OX": 1, "FY": 1, "FX": 1,
        }  # fmt: skip
        assert piece.core_type == ("ann_bn_bp" if table is BACKWARD else "ann_bn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_instances": {}}, "lacks"),
        ({"level_order": ("dram", "sram", "reg", "l2")}, "level_order"),
        ({"technology_nm": 0}, "technology_nm"),
    ],
)
def test_memories_that_the_model_cannot_use_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        MemoryHierarchyConfig(**change).validate()


@pytest.mark.parametrize(("place", "value"), [(1, 0), (3, 0), (5, -1.0)])
def test_a_memory_has_sizes_and_energies(place: int, value: float) -> None:
    numbers: list[Any] = ["m", 16, 16, 16, 16, 1.0, 1.0]
    MemoryInstanceSpec(*numbers)
    numbers[place] = value
    with pytest.raises(OptionError, match="memory 'm'"):
        MemoryInstanceSpec(*numbers)
