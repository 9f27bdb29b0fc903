"""FLOPs: what is covered, what rules count, and where they correct SpikingJelly's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx._torch_compat import FakeTensorMode
from snnfx.op_counter import DispatchCounterMode, FlopCounter, MemoryAccessCounter

from tests.op_counter.nets import BUILDERS, build

aten = torch.ops.aten


def flops_of(run: Callable[..., Any], *args: Any) -> int:
    """What counts, with no operator left out."""
    counter = FlopCounter()
    with DispatchCounterMode([counter], strict=True):
        run(*args)
    return counter.get_total()


def backward_flops_of(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """What the backward counts, besides giving the output its gradient."""
    out = run(x.requires_grad_())
    return flops_of(out.backward, torch.ones_like(out))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd, foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1, amsgrad=True),
    "adam, foreach": lambda p: torch.optim.Adam(p, amsgrad=True, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_no_operator_of_a_training_step_is_unknown(name: str) -> None:
    net = build(name)
    net.step()
    optimizers = [OPTIMIZERS["sgd"], OPTIMIZERS["adam"]]
    counters = [FlopCounter(), MemoryAccessCounter()]
    steps = [make(list(net.model.parameters())) for make in optimizers]
    with DispatchCounterMode(counters, strict=True):
        for optimizer in steps:
            optimizer.zero_grad()
            net.step()
            nn.utils.clip_grad_norm_(net.model.parameters(), 1.0)
            optimizer.step()
    assert all(counter.get_total() > 0 for counter in counters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_operator_of_an_optimizer_is_unknown(name: str) -> None:
    model = nn.Linear(4, 3)
    model(torch.rand(2, 4)).sum().backward()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    optimizer.step()
    counters = [FlopCounter(), MemoryAccessCounter()]
    with DispatchCounterMode(counters, strict=True):
        optimizer.step()
    # at least the parameters change by a product and a difference, and gradients are read
    assert counters[0].get_total() >= 2 * 15
    assert counters[1].get_total() >= 3 * 15 * 4


def test_a_fused_adam_step_counts_what_its_formula_does() -> None:
    p, g, m, v = ([torch.rand(5)] for _ in range(4))
    counter = FlopCounter()
    rule = counter.rules[aten._fused_adam_.default]
    options = {"lr": 0.1, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    assert rule((p, g, m, v, [], []), options, None) == 13 * 5
    options.update(weight_decay=0.1, amsgrad=True)
    assert rule((p, g, m, v, [], []), options, None) == 16 * 5


LAYERS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "padding of all kinds": (
        lambda x: [F.pad(x, (1, 1, 1, 1), mode=m) for m in ("reflect", "replicate", "circular")][2],
        (torch.rand(2, 2, 4, 4),),
    ),
    "norms": (
        nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(6), nn.InstanceNorm1d(4), nn.RMSNorm(6)),
        (torch.rand(2, 4, 6),),
    ),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (torch.rand(2, 4),)),
    "embedding": (lambda w: F.embedding(torch.tensor([[1, 2]]), w), (torch.rand(5, 3),)),
    "bags": (lambda w: F.embedding_bag(torch.tensor([[1, 2]]), w), (torch.rand(5, 3),)),
    "lstm": (lambda x: nn.LSTM(4, 5, 2, bidirectional=True)(x)[0], (torch.rand(3, 2, 4),)),
    "gru": (lambda x: nn.GRU(4, 5)(x)[0], (torch.rand(3, 2, 4),)),
    "rnn cell": (nn.RNNCell(4, 5), (torch.rand(2, 4),)),
    "lstm cell": (lambda x: nn.LSTMCell(4, 5)(x)[0], (torch.rand(2, 4),)),
    "gru cell": (nn.GRUCell(4, 5), (torch.rand(2, 4),)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16), (torch.rand(5, 2, 8),)),
    "pooling of 3D": (
        nn.Sequential(nn.MaxPool3d(2, 1), nn.AvgPool3d(2, 1), nn.AdaptiveAvgPool3d(2)),
        (torch.rand(2, 2, 5, 5, 5),),
    ),
    "pooling of 1D": (
        nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(2)),
        (torch.rand(2, 2, 12),),
    ),
    "activations": (
        nn.Sequential(
            nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.PReLU(), nn.LogSigmoid(), nn.Mish(),
            nn.Hardswish(), nn.LeakyReLU(), nn.Hardtanh(), nn.Tanhshrink(), nn.GLU(), nn.Softmax(1),
        ),
        (torch.randn(2, 6),),
    ),
    "resizing": (
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")),
        (torch.rand(1, 2, 3, 3),),
    ),
    "losses": (
        lambda x, y: F.mse_loss(x, y) + F.smooth_l1_loss(x, y) + F.huber_loss(x, y)
        + F.l1_loss(x, y) + F.binary_cross_entropy(x, y) + F.kl_div(x, y, reduction="sum")
        + F.binary_cross_entropy_with_logits(x, y) + F.cross_entropy(x, y),
        (torch.rand(3, 4), torch.rand(3, 4)),
    ),
    "indexing": (
        lambda x: x[[0, 2]].gather(0, torch.zeros(1, 3, dtype=torch.long)) + x[x > 0.5].sum(),
        (torch.rand(4, 3),),
    ),
    "dropout": (nn.Sequential(nn.Dropout(), nn.AlphaDropout()), (torch.rand(4, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_no_operator_of_a_layer_is_unknown(name: str) -> None:
    layer, inputs = LAYERS[name]
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    counters = [FlopCounter(), MemoryAccessCounter()]
    with DispatchCounterMode(counters, strict=True):
        layer(*inputs).sum().backward()
    assert all(counter.get_total() > 0 for counter in counters)
    with DispatchCounterMode(counters, strict=True), torch.inference_mode():
        layer(*(x.detach() for x in inputs))


@pytest.mark.parametrize("name", ["ours_vgg", "ours_spikformer", "snntorch"])
def test_inference_mode_counts_as_much_as_no_grad(name: str) -> None:
    net = build(name)
    totals: list[int] = []
    for mode in (torch.no_grad, torch.inference_mode):
        net.reset()
        counter = FlopCounter()
        with DispatchCounterMode([counter], strict=True), mode():
            net.model(*net.inputs)
        totals.append(counter.get_total())
    assert totals[0] == totals[1] > 0


def test_shapes_alone_are_counted() -> None:
    def step(x: Tensor, model: nn.Module) -> None:
        model(x).sum().backward()

    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))

    def counted() -> list[int]:
        counters = [FlopCounter(), MemoryAccessCounter()]
        with DispatchCounterMode(counters, strict=True):
            step(torch.empty(2, 2, 8, 8), model())
        return [counter.get_total() for counter in counters]

    real = counted()
    with FakeTensorMode():
        assert counted() == real


def test_extra_rules_win_and_ignored_modules_count_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.rand(2, 4)
    counter = FlopCounter({aten.relu.default: lambda args, kwargs, out: 1000}, [nn.Linear])
    with DispatchCounterMode([counter], strict=True):
        model(x)
    assert counter.get_total() == 1000
    assert {func for func, count in counter.records["Global"].items() if count} == {
        aten.relu.default
    }


def test_counters_do_not_share_their_rules() -> None:
    first = FlopCounter({aten.relu.default: lambda args, kwargs, out: 7})
    assert first.rules[aten.relu.default] is not FlopCounter().rules[aten.relu.default]


# ---- corrections -------------------------------------------------------------------------------


def peers(func: Any, *args: Any, **kwargs: Any) -> int:
    """What SpikingJelly counts."""
    return peer.FlopCounter().count(func, args, kwargs, func(*args, **kwargs))


def test_weight_gradients_of_groups_are_not_counted_for_every_pair_of_channels() -> None:
    gradient, x, weight = torch.rand(2, 6, 3, 3), torch.rand(2, 4, 5, 5), torch.rand(6, 2, 3, 3)
    args = (
        gradient,
        x,
        weight,
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        2,
        [False, True, False],
    )
    counted = flops_of(aten.convolution_backward.default, *args)
    # each of the 6 * 2 * 9 weights: a product and an addition at 2 * 9 positions
    assert counted == 2 * (6 * 2 * 9) * (2 * 9)
    assert peers(aten.convolution_backward.default, *args) == 2 * counted


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_without_weights_has_a_backward(training: bool) -> None:
    x, n, c = torch.rand(2, 3, 4, 4), 96, 3
    mean, var, none = torch.zeros(3), torch.ones(3), torch.empty(0)
    saved = (mean, var) if training else (none, none)
    mask = [True, False, False]
    args = (x, x, None, mean, var, *saved, training, 1e-5, mask)
    with pytest.raises(AttributeError):
        peers(aten.native_batch_norm_backward.default, *args)
    expected = 10 * n - c if training else n
    assert flops_of(aten.native_batch_norm_backward.default, *args) == expected
    weighted = (x, x, torch.ones(3), mean, var, *saved, training, 1e-5, mask)
    counted = flops_of(aten.native_batch_norm_backward.default, *weighted)
    assert counted == expected + (c if training else n)
    assert counted == peers(aten.native_batch_norm_backward.default, *weighted)


@pytest.mark.parametrize("kernel", [3, [3], [3, 3]])
def test_a_kernel_of_one_number_is_a_square(kernel: Any) -> None:
    rules = FlopCounter().rules
    x, out = torch.rand(1, 1, 9, 9), torch.rand(1, 1, 3, 3)
    assert rules[aten.avg_pool2d.default]((x, kernel), {}, out) == 9 * 9
    assert rules[aten.max_pool2d_with_indices.default]((x, kernel), {}, (out, out)) == 9 * 8


def test_factors_that_are_given_by_position_count() -> None:
    x, y = torch.rand(2, 3), torch.rand(3)
    assert flops_of(aten.add.Scalar, x, 2.0, 3) == 6 + 1
    assert flops_of(aten.sub.Scalar, x, 2.0, 3) == 6 + 1
    assert flops_of(aten.rsub.Scalar, x, 2.0, 3) == 6 + 6
    assert flops_of(lambda: aten.rsub.Tensor(y, x, alpha=2)) == 6 + 3
    assert flops_of(aten.rsub.Scalar, x, 2.0) == 6


def test_nothing_takes_no_additions() -> None:
    x = torch.rand(0, 3)
    assert peers(aten.sum.dim_IntList, x, [0]) == -3
    assert flops_of(aten.sum.dim_IntList, x, [0]) == 0
    gradient, weight = torch.rand(0, 2, 3, 3), torch.rand(2, 1, 1, 1)
    mask = [False, False, True]
    args = (
        gradient,
        torch.rand(0, 1, 3, 3),
        weight,
        [2],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        mask,
    )
    assert flops_of(aten.convolution_backward.default, *args) == 0


# ---- other rules, by hand ----------------------------------------------------------------------


def test_windows_of_adaptive_pooling_are_as_large_as_they_are() -> None:
    x, size = torch.rand(2, 3, 7, 5), (3, 4)
    elements = outputs = 0
    for i in range(size[0]):
        for j in range(size[1]):
            rows = math.ceil((i + 1) * 7 / size[0]) - i * 7 // size[0]
            columns = math.ceil((j + 1) * 5 / size[1]) - j * 5 // size[1]
            elements += 6 * rows * columns
            outputs += 6
    assert flops_of(F.adaptive_avg_pool2d, x, size) == elements
    assert flops_of(F.adaptive_max_pool2d, x, size) == elements - outputs
    backward = backward_flops_of(lambda x: F.adaptive_avg_pool2d(x, size), x)
    assert backward == outputs + elements - x.numel()


def test_a_softmax_counts_its_steps() -> None:
    x = torch.rand(4, 5)
    maximum = total = 4 * 4
    assert flops_of(lambda: x.softmax(1)) == maximum + 20 + 20 + total + 20
    assert flops_of(lambda: x.log_softmax(1)) == maximum + 20 + 20 + total + 4 + 20
    assert backward_flops_of(lambda x: x.softmax(1), x.clone()) == 20 + total + 20 + 20
    assert flops_of(lambda: x.logsumexp(1)) == maximum + 20 + 20 + total + 4 + 4


def test_a_layer_norm_counts_as_a_batch_norm_of_its_rows() -> None:
    x, weight, bias = torch.rand(6, 5), torch.ones(5), torch.zeros(5)
    by_row = flops_of(lambda: F.layer_norm(x, (5,), weight, bias))
    by_channel = flops_of(
        lambda: F.batch_norm(x.t(), None, None, torch.ones(6), weight.new_zeros(6), True)
    )
    assert by_row == by_channel


def test_gradients_that_overlap_are_added() -> None:
    x = torch.rand(1, 1, 4, 4)
    # 9 windows of 4: 9 divisions, 36 terms of 16 sums
    assert backward_flops_of(lambda x: F.avg_pool2d(x, 2, 1), x.clone()) == 9 + 36 - 16
    assert backward_flops_of(lambda x: F.avg_pool2d(x, 2), x.clone()) == 4
    assert backward_flops_of(lambda x: F.max_pool2d(x, 2, 1), x.clone()) == 0


def test_an_lstm_layer_counts_what_its_cells_do() -> None:
    steps, batch, inputs, hidden = 3, 2, 4, 5
    layer, x = nn.LSTM(inputs, hidden), torch.rand(3, 2, 4)
    fused = flops_of(layer, x)
    each = 22 + 8  # sums, activations, states; two biases
    products = 2 * 4 * hidden * (inputs + hidden)
    assert fused == steps * batch * (products + each * hidden)
    cell = nn.LSTMCell(inputs, hidden)
    state = torch.rand(batch, hidden)
    # a cell of single operators: the same, step by step
    assert steps * flops_of(cell, x[0], (state, state)) == fused


def test_a_reduction_counts_its_additions_and_its_division() -> None:
    x = torch.rand(3, 4)
    assert flops_of(lambda: x.sum(0)) == 8
    assert flops_of(lambda: x.mean()) == 12
    assert flops_of(lambda: x.amax(1)) == 9
    assert flops_of(lambda: x.var(0)) == 3 * 12 + 2 * 4
    assert flops_of(lambda: x.std(0)) == 3 * 12 + 3 * 4
    assert flops_of(lambda: x.norm()) == 12 + 11 + 1
    assert flops_of(lambda: x.norm(p=1)) == 12 + 11
    assert flops_of(lambda: x.cumsum(1)) == 9
    assert flops_of(lambda: x.sort(1)) == 12 * 2


def test_lists_of_tensors_count_as_their_tensors_do() -> None:
    xs, ys = [torch.rand(3), torch.rand(4)], [torch.rand(3), torch.rand(4)]
    assert flops_of(lambda: torch._foreach_add(xs, ys)) == 7
    assert flops_of(lambda: torch._foreach_add_(xs, ys, alpha=2)) == 14
    assert flops_of(lambda: torch._foreach_mul_(xs, 2.0)) == 7
    assert flops_of(lambda: torch._foreach_addcmul_(xs, ys, ys, 0.5)) == 21
    assert flops_of(lambda: torch._foreach_norm(xs)) == 2 * 3 + 2 * 4
    assert flops_of(lambda: torch._foreach_zero_(xs)) == 0


def test_a_cross_entropy_counts_its_softmax_and_one_number_a_row() -> None:
    x, target = torch.rand(4, 5), torch.tensor([0, 1, 2, 3])
    softmax = flops_of(lambda: x.log_softmax(1))
    # 3 additions, a sign and a division
    assert flops_of(F.cross_entropy, x, target) == softmax + 5
    weight = torch.ones(5)
    assert flops_of(F.cross_entropy, x, target, weight) == softmax + 5 + 4 + 3
