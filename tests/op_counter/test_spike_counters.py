"""MACs, ACs and SynOps of runs: the peer's, but where its rules are corrected or extended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx._torch_compat import TorchDispatchMode
from snnfx.op_counter import ACCounter, DispatchCounterMode, MACCounter, SynOpCounter
from snnfx.op_counter.flop_rules import FLOPS
from snnfx.op_counter.spike_table import ACS, MACS, SYNOPS
from snnfx.op_counter.spikes import ShapeRule

from tests.op_counter.nets import BUILDERS, build

aten = torch.ops.aten
KINDS = [MACCounter, ACCounter, SynOpCounter]


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.4).float()


def reals(*shape: int) -> Tensor:
    return torch.rand(shape) + 1.5


def counts(run: Any, counters: Any = None, mode: Any = DispatchCounterMode) -> list[Any]:
    """``records["Global"]`` of each counter."""
    counters = counters or [kind() for kind in KINDS]
    torch.manual_seed(1)
    with mode(counters):
        run()
    return [dict(counter.records["Global"]) for counter in counters]


def theirs(run: Any) -> list[Any]:
    counters = [peer.MACCounter(), peer.ACCounter(), peer.SynOpCounter()]
    return counts(run, counters, peer.DispatchCounterMode)


def total(kind: Any, run: Any) -> int:
    counter = kind()
    with DispatchCounterMode([counter], strict=True):
        run()
    return counter.get_total()


BROADCAST = {("snntorch", aten.sub.Tensor)}
"""Where a threshold of one element is subtracted from many: see `spike_rules_pointwise`."""


@pytest.mark.parametrize("name", BUILDERS)
def test_each_operator_of_a_step_counts_as_it_does_for_the_peer(name: str) -> None:
    ours, others = counts(build(name).step), theirs(build(name).step)
    compared = 0
    for mine, other in zip(ours, others, strict=True):
        for operator, value in other.items():
            if (name, operator) not in BROADCAST:
                assert mine[operator] == value, operator
                compared += value > 0
    assert compared > 2


@pytest.mark.parametrize("name", BUILDERS)
def test_each_operator_of_a_step_has_a_rule(name: str) -> None:
    net = build(name)
    with DispatchCounterMode([kind() for kind in KINDS], strict=True):
        net.step()


@pytest.mark.parametrize("name", ["spikingjelly_sew_resnet", "norse", "ours_vgg"])
def test_no_operator_counts_more_than_its_flops(name: str) -> None:
    """A MAC is two FLOPs, an AC one; what spikes cause is not less than the products' half."""
    found: list[tuple[Any, int, int]] = []

    class Comparing(MACCounter):
        def count(
            self,
            func: Any,
            args: Any,
            kwargs: Any,
            out: Any,
            active_modules: Any = None,
            parent_names: Any = None,
        ) -> int:
            rules = MACS.find(func), ACS.find(func)
            if all(isinstance(rule, ShapeRule) for rule in rules):
                mac, ac = (rule.rule(args, kwargs, out) for rule in rules)  # type: ignore[union-attr]
                found.append((func, 2 * mac + ac, FLOPS.find(func)(args, kwargs, out)))  # type: ignore[misc]
            return 0

    net = build(name)
    with DispatchCounterMode([Comparing()]):
        net.step()
    assert any(work for _, work, _ in found)
    assert [entry for entry in found if entry[1] > entry[2]] == []


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_one_quantity_know_the_same_operators_as_the_others(kind: Any) -> None:
    assert set(kind().rules) == set(MACCounter().rules)


def composite(operator: Any) -> bool:
    """Whether PyTorch takes the operator apart before counters see it, but in inference mode."""
    name, key = operator.name(), "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel(name) and torch._C._dispatch_has_kernel_for_dispatch_key(
        name, key
    )


def test_what_inference_mode_leaves_whole_is_known_to_all_counters_or_none() -> None:
    flops = {op for op in all_overloads(FLOPS) if composite(op)}
    macs = {op for op in all_overloads(MACS) if composite(op)}
    assert macs
    assert macs <= flops


def all_overloads(table: Any) -> set[Any]:
    packets = [t for t in table if isinstance(t, torch._ops.OpOverloadPacket)]
    single = {t for t in table if isinstance(t, torch._ops.OpOverload)}
    return single | {getattr(p, name) for p in packets for name in p.overloads()}


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, stride=2), (2, 2, 4, 4, 4)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (1, 2, 5, 5)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, groups=2), (2, 4, 5)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5, 5),
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), (1, 2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(6, 5), (3, 2, 6)),
    "unbatched": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "batch_norm_eval": (lambda: nn.BatchNorm2d(3).eval(), (2, 3, 4, 4)),
    "batch_norm_plain": (
        lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False),
        (2, 3, 4, 4),
    ),
    "avg_pool": (lambda: nn.AvgPool2d(3, 2, padding=1), (2, 3, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("values", [spikes, reals])
@pytest.mark.parametrize("binary_weight", [False, True])
def test_layers_count_as_they_do_for_the_peer(name: str, values: Any, binary_weight: bool) -> None:
    torch.manual_seed(0)
    build_layer, shape = LAYERS[name]
    layer, x = build_layer(), values(*shape)
    if binary_weight and getattr(layer, "weight", None) is not None:
        layer.weight.data = spikes(*layer.weight.shape)
    ours, others = counts(lambda: layer(x)), theirs(lambda: layer(x))
    for mine, other in zip(ours, others, strict=True):
        assert {op: n for op, n in mine.items() if n} == {op: n for op, n in other.items() if n}
    assert sum(sum(mine.values()) for mine in ours) > 0


FUNCTIONS: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "add_scalar": lambda x, y: x + 1.5,
    "rsub": lambda x, y: 1.5 - x,
    "rsub_tensor": lambda x, y: torch.rsub(x, y),
    "sum": lambda x, y: x.sum(),
    "sum_dim": lambda x, y: x.sum(1),
    "mean": lambda x, y: x.mean((0, 1)),
    "sigmoid_": lambda x, y: x.clone().sigmoid_(),
    "matmul": lambda x, y: x @ y.mT,
    "einsum": lambda x, y: torch.einsum("nab,nac->nbc", x, y),
    "baddbmm": lambda x, y: torch.baddbmm(x, x, y.mT[:, :, :4]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("left", [spikes, reals])
@pytest.mark.parametrize("right", [spikes, reals])
def test_functions_count_as_they_do_for_the_peer(name: str, left: Any, right: Any) -> None:
    torch.manual_seed(0)
    x, y = left(3, 4, 4), right(3, 4, 4)
    ours, others = (of(lambda: FUNCTIONS[name](x, y)) for of in (counts, theirs))
    for mine, other in zip(ours, others, strict=True):
        assert {op: n for op, n in mine.items() if n} == {op: n for op, n in other.items() if n}
    assert sum(sum(mine.values()) for mine in ours) > 0


def test_an_operand_is_looked_at_before_it_is_overwritten() -> None:
    x, y = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert total(ACCounter, lambda: x.add_(y)) == 3  # spikes of both
    assert x.tolist() == [2, 1, 0]
    assert total(ACCounter, lambda: x.add_(y)) == 3  # elements: it is no longer binary
    z = torch.tensor([1.0, 0.0])
    assert total(ACCounter, lambda: z.sub_(1)) == 2


def test_what_was_seen_before_an_error_is_forgotten() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.ones(3)
    counter = ACCounter()
    with DispatchCounterMode([counter]):
        with pytest.raises(RuntimeError, match="size of tensor"):
            x.add_(y)
        x.mul_(0)
        x.add_(torch.ones(2))
    assert counter.records["Global"][aten.add_.Tensor] == 0 + 2
    assert counter.values is None


def test_sigmoid_counts_one_addition_wherever_it_is_written() -> None:
    x = reals(5)
    assert total(ACCounter, lambda: x.sigmoid()) == total(ACCounter, lambda: x.sigmoid_()) == 5


def test_a_spike_that_is_broadcast_is_added_for_each_result() -> None:
    x, row = torch.zeros(4, 3), torch.tensor([1.0, 0.0, 1.0])
    assert total(ACCounter, lambda: x + row) == 4 * 2
    x[0] = 1
    assert total(ACCounter, lambda: x + row) == 3 + 4 * 2
    assert total(ACCounter, lambda: x - torch.tensor(1.0)) == 3 + 12
    assert total(ACCounter, lambda: torch.zeros(0, 3) + row) == 0


def test_a_factor_makes_the_sum_of_reals_one_of_products() -> None:
    x, y = reals(6), reals(6)
    for run in (lambda: torch.add(x, y, alpha=2), lambda: x.clone().add_(y, alpha=0.5)):
        assert (total(MACCounter, run), total(ACCounter, run)) == (6, 0)
    for alpha in (1, -1):
        assert total(ACCounter, lambda a=alpha: torch.add(x, y, alpha=a)) == 6
    assert total(ACCounter, lambda: torch.add(x, torch.ones(6), alpha=2)) == 6
    assert total(MACCounter, lambda: torch.add(x, 3.0, alpha=2)) == 0


def test_a_factor_of_a_matrix_product_leaves_its_accumulations() -> None:
    x, w, c = spikes(4, 5), reals(5, 3), reals(4, 3)
    for scale in (1, 2):
        run = lambda a=scale: torch.addmm(c, x, w, alpha=a)  # noqa: E731
        assert total(ACCounter, run) == total(SynOpCounter, run) == 3 * x.sum()
        assert total(MACCounter, run) == 0


def test_coincidences_are_exact_where_half_precision_rounds() -> None:
    x = torch.ones(1, 5001, dtype=torch.float16)
    assert total(ACCounter, lambda: x @ x.T) == 5001
    peers = peer.ACCounter()
    with peer.DispatchCounterMode([peers]):
        torch.mm(x, x.T)
    assert peers.get_total() != 5001


def test_accumulations_of_a_transposed_convolution_are_exact_where_float32_rounds() -> None:
    """By one output: 2 ** 24 spikes of weights that sum up in float32, and one spike more."""
    x, w = torch.ones(1, 2**24 + 1, 1).half(), torch.full((2**24 + 1, 1, 1), 0.5).half()
    out = x.new_zeros(1, 1, 1)
    args = (x, w, None, [1], [0], [1], True, [0], 1)
    assert ACCounter().count(aten.convolution.default, args, {}, out) == 2**24 + 1


def test_sums_of_nothing_and_of_all_and_square_windows() -> None:
    x, image = reals(3, 4), reals(1, 1, 4, 4)
    assert total(ACCounter, lambda: torch.empty(0).sum()) == 0
    assert total(ACCounter, lambda: x.mean()) == 11
    assert total(ACCounter, lambda: aten.avg_pool2d(image, [2])) == 4 * 3
    assert total(ACCounter, lambda: F.adaptive_avg_pool2d(image, 2)) == 4 * 3
    assert total(ACCounter, lambda: F.adaptive_avg_pool2d(image[..., :3, :3], 2)) == 16 - 4


def test_a_product_that_is_added_is_a_mac_unless_spikes_gate_it() -> None:
    x, a, s = reals(4, 3), reals(4, 3), torch.tensor([1.0, 0.0, 1.0])
    assert total(MACCounter, lambda: torch.addcmul(x, a, a)) == 12
    assert total(MACCounter, lambda: torch.addcmul(x, a, s)) == 0
    assert total(ACCounter, lambda: torch.addcmul(x, a, s)) == 4 * 2
    assert total(ACCounter, lambda: torch.addcmul(x, spikes(4, 3).fill_(1), s)) == 4 * 2
    assert total(MACCounter, lambda: torch.addcmul(x, a, s, value=2)) == 12
    assert total(SynOpCounter, lambda: torch.addcmul(x, a, s)) == 0


def steps_of_lstm(x: Tensor) -> None:
    with torch.no_grad():
        nn.LSTM(4, 3)(x)


def test_a_recurrent_layer_multiplies_states_and_accumulates_spikes() -> None:
    x = spikes(5, 2, 4)
    gates = 4 * 3
    assert total(MACCounter, lambda: steps_of_lstm(x)) == 10 * (gates * 3 + 3)
    assert total(SynOpCounter, lambda: steps_of_lstm(x)) == gates * x.sum()
    dense = total(MACCounter, lambda: steps_of_lstm(reals(5, 2, 4)))
    assert dense == 10 * (gates * 3 + 3 + gates * 4)


def test_layers_of_cudnn_multiply_states_and_accumulate_spikes() -> None:
    """By its operator's arguments, without a GPU: two layers, both directions, `[T, N, 4]`."""
    x, hidden = spikes(5, 2, 4), 3
    rows = 4 * hidden
    shapes = [(rows, 4), (rows, hidden)] * 2 + [(rows, 2 * hidden), (rows, hidden)] * 2
    weights = [reals(*shape) for shape in shapes] + [reals(rows)] * 8
    args = (x, weights, 4, None, reals(1), None, 2, hidden, 0, 2, False, 0.0, False, True, [], None)
    call = aten._cudnn_rnn.default
    mac, ac, synops = (kind().count(call, args, {}, None) for kind in KINDS)
    units = 10 * hidden * 2 * 2
    assert synops == 2 * rows * x.sum()
    assert ac == synops + 7 * units
    assert mac == 10 * sum(w.numel() for w in weights[:8] if w.shape[1] != 4) + units


def test_backward_of_a_spiking_convolution_accumulates_for_weights_and_multiplies_for_inputs(
) -> None:  # fmt: skip
    x, layer = spikes(2, 3, 4, 4), nn.Conv2d(3, 5, 3, bias=False)
    out = layer(x.requires_grad_())
    mac, ac = MACCounter(), ACCounter()
    with DispatchCounterMode([mac, ac]):
        out.backward(reals(*out.shape))
    with DispatchCounterMode([forward := ACCounter()]):
        layer(x)
    assert mac.records["Global"][aten.convolution_backward.default] == 2 * 4 * 5 * 3 * 9
    uses = forward.records["Global"][aten.convolution.default]
    assert ac.records["Global"][aten.convolution_backward.default] == uses > 0


@pytest.mark.parametrize("kind", KINDS)
def test_extra_rules_win_and_are_called_as_given(kind: Any) -> None:
    counter = kind(extra_rules={aten.mm.default: lambda args, kwargs, out: 7 * out.numel()})
    with DispatchCounterMode([counter], strict=True):
        torch.mm(spikes(2, 3), reals(3, 2))
        torch.add(reals(2), spikes(2))
    assert counter.records["Global"][aten.mm.default] == 28


def test_ignored_modules_count_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    whole, without = MACCounter(), MACCounter(extra_ignore_modules=[nn.BatchNorm2d])
    with DispatchCounterMode([whole, without]):
        net(reals(1, 1, 5, 5))
    assert without.get_total() == 9 * 9 * 2
    assert whole.get_total() > without.get_total()


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_around_do_not_see_how_it_is_counted() -> None:
    net, x = nn.Conv2d(2, 3, 3, padding=1), spikes(2, 2, 5, 5)
    with Names() as plain:
        net(x)
    with Names() as around, DispatchCounterMode([kind() for kind in KINDS]):
        net(x)
    assert around.seen == plain.seen
    outer, inner = ACCounter(), ACCounter()
    with DispatchCounterMode([outer]), DispatchCounterMode([inner]):
        net(x)
    assert outer.records == inner.records


def test_inference_mode_counts_the_same() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(3, 4))
    x = spikes(2, 2, 5, 5)
    before = [total(kind, lambda: net(x)) for kind in KINDS]
    with torch.inference_mode():
        assert [total(kind, lambda: net(x)) for kind in KINDS] == before
        inside = spikes(2, 2, 5, 5)
        assert total(MACCounter, lambda: net(inside)) == before[0]


def test_a_counter_by_itself_looks_at_what_it_is_given_each_time() -> None:
    x, w = spikes(2, 3), reals(3, 2)
    counter = ACCounter()
    before = counter.count(aten.mm.default, (x, w), {}, x @ w)
    x.fill_(1)
    assert counter.count(aten.mm.default, (x, w), {}, x @ w) == 12 > before


def test_rules_of_the_three_quantities_exclude_each_other() -> None:
    for x, w in ((spikes(3, 4), reals(4, 2)), (reals(3, 4), reals(4, 2))):
        mac, ac, synops = (total(kind, lambda x=x, w=w: x @ w) for kind in KINDS)
        assert mac * ac == 0 < mac + ac
        assert synops == ac
    assert SYNOPS.find(aten.add.Tensor) is not None
