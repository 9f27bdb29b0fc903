"""Operators of other devices and of compiled graphs count as those that run here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.op_counter import DispatchCounterMode, FlopCounter, MemoryAccessCounter
from snnfx.op_counter.flop_rules import FLOPS
from snnfx.op_counter.op_names import packets

aten = torch.ops.aten
LAYERS = {"LSTM": (nn.LSTM, 2), "GRU": (nn.GRU, 3), "RNN": (nn.RNN, 1)}


def counts_of(func: Any, *args: Any) -> list[int]:
    """FLOPs and bytes of what runs."""
    counters = [FlopCounter(), MemoryAccessCounter()]
    with DispatchCounterMode(counters, strict=True):
        func(*args)
    return [counter.get_total() for counter in counters]


def counts_by_rule(func: Any, args: tuple[Any, ...], out: Any) -> list[int]:
    """FLOPs and bytes of what cannot run here, by its shapes."""
    return [
        counter.rules[func](args, {}, out) for counter in (FlopCounter(), MemoryAccessCounter())
    ]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_count_alike(training: bool) -> None:
    x, weight, bias, mean, var = torch.rand(2, 3, 4, 4), *torch.ones(4, 3)
    args = (x, weight, bias, mean, var, training, 0.1, 1e-5)
    counted = counts_of(aten.native_batch_norm, *args)
    assert counts_of(aten._native_batch_norm_legit, *args) == counted
    assert counts_of(aten._native_batch_norm_legit_functional, *args)[0] == counted[0]
    saved = (mean, var) if training else (torch.empty(0), torch.empty(0))
    reserve = torch.empty(0)
    cudnn = aten.cudnn_batch_norm.default
    assert counts_by_rule(cudnn, args, (x, *saved, reserve)) == counted
    if training:
        functional = counts_of(aten._native_batch_norm_legit_functional, *args)
        assert functional == counted
        assert counts_of(aten._batch_norm_with_update, *args[:5], 0.1, 1e-5) == counted
    else:
        no_training = aten._native_batch_norm_legit_no_training
        assert counts_of(no_training, *args[:5], 0.1, 1e-5) == counted


def test_backwards_of_batch_norms_count_alike() -> None:
    x, weight, mean, var = torch.rand(2, 3, 4, 4), *torch.ones(3, 3)
    mask = [True, True, True]
    native = (x, x, weight, mean, var, mean, var, True, 1e-5, mask)
    counted = counts_of(aten.native_batch_norm_backward, *native)
    cudnn = (x, x, weight, mean, var, mean, var, 1e-5, torch.empty(0))
    out = (x, weight, weight)
    assert counts_by_rule(aten.cudnn_batch_norm_backward.default, cudnn, out) == counted
    assert counts_by_rule(aten.batch_norm_backward.default, native, out) == counted


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_cell_counts_as_one_of_single_operators(cell: Any, bias: bool) -> None:
    batch, inputs, hidden = 2, 4, 5
    module = cell(inputs, hidden, bias=bias)
    x, state = torch.rand(batch, inputs), torch.rand(batch, hidden)
    states = (state, state) if cell is nn.LSTMCell else state
    eager = counts_of(module, x, states)[0]
    products = 2 * batch * (module.weight_ih.numel() + module.weight_hh.numel())
    gates = torch.rand(batch, module.weight_ih.shape[0])
    packet = aten._thnn_fused_lstm_cell if cell is nn.LSTMCell else aten._thnn_fused_gru_cell
    args = (gates, gates, state, *((module.bias_ih, module.bias_hh) if bias else ()))
    fused = FlopCounter().rules[packet.default](args, {}, (state, state))
    assert fused + products == eager


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_cudnn_counts_as_one_of_the_cpu(
    name: str, bidirectional: bool, layers: int
) -> None:
    kind, mode = LAYERS[name]
    module = kind(4, 5, layers, bidirectional=bidirectional)
    x = torch.rand(3, 2, 4)
    weights: list[Tensor] = [w.detach() for w in module.parameters()]
    buffer = torch.cat([w.flatten() for w in weights])
    directions = layers * (1 + bidirectional)
    state = torch.rand(directions, 2, 5)
    args = (
        x, weights, 4, buffer, state, state, mode, 5, 0, layers, False, 0.0, True, bidirectional,
        [], None,
    )  # fmt: skip
    out = torch.rand(3, 2, 5 * (1 + bidirectional))
    results = (out, state, state, torch.empty(0), buffer)
    flops, moved = counts_by_rule(aten._cudnn_rnn.default, args, results)
    assert flops == counts_of(module, x)[0]
    kept = [x, *weights, state, state, out, state, state, buffer]
    assert moved == 4 * sum(value.numel() for value in kept)


def test_the_backward_of_a_layer_has_twice_its_products() -> None:
    steps, batch, inputs, hidden = 3, 2, 4, 5
    module = nn.LSTM(inputs, hidden)
    x = torch.rand(steps, batch, inputs, requires_grad=True)
    out = module(x)[0]
    counter = FlopCounter()
    with DispatchCounterMode([counter], strict=True):
        out.backward(torch.ones_like(out))
    products = 2 * steps * batch * 4 * hidden * (inputs + hidden)
    biases = 4 * hidden * (steps * batch - 1)
    fused = counter.records["Global"][aten.mkldnn_rnn_layer_backward.default]
    assert fused == 2 * products + 23 * steps * batch * hidden + biases


NAMES = """
    _unsafe_view _to_copy select_scatter slice_scatter index_put _native_batch_norm_legit_functional
    cudnn_batch_norm cudnn_batch_norm_backward cudnn_convolution _thnn_fused_lstm_cell_backward_impl
    _thnn_fused_gru_cell_backward _cudnn_rnn_backward _fused_dropout native_dropout
    native_dropout_backward _scaled_dot_product_cudnn_attention
    _scaled_dot_product_efficient_attention_backward _scaled_dot_product_flash_attention
    _foreach_lerp_ _foreach_addcdiv_ _foreach_norm _foreach_copy_ _fused_adamw_ _fused_sgd_
    _amp_foreach_non_finite_check_and_unscale_ _amp_update_scale_ nll_loss2d_forward
    embedding_dense_backward _embedding_bag_dense_backward _prelu_kernel_backward lerp_ addcmul_
"""


def test_names_of_cuda_compiled_graphs_and_optimizers_are_known() -> None:
    found = packets(NAMES.split())
    assert len(found) == len(NAMES.split())
    assert [packet for packet in found if packet not in FLOPS] == []
