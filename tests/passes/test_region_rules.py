"""Every rule of regions against the operator itself, in each form that a tensor can have."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx.kernels.region_ops import operation
from snnfx.passes.optable import OpTable
from snnfx.passes.rewrite.region_program import REGION_RULES, is_bfloat16
from snnfx.passes.rewrite.region_rules import UNARY

from tests.passes.region_graphs import (
    FORMS,
    SHAPE,
    HandMade,
    T,
    Wrapper,
    evaluated_by_torch,
    regions_of,
    run_both,
    targets_inside,
)

aten = torch.ops.aten
snn = torch.ops.snnfx
X, Y, COND = "x", "y", "condition"
FLOATS = (torch.float32, torch.float64, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
BITS = (torch.bool, *INTEGERS)
NUMBERS = (*FLOATS, *INTEGERS)
TESTED: OpTable[Callable[..., Any]] = OpTable("tested operators")


@dataclass(frozen=True)
class Case:
    """One operator on operands of one shape; the names among `args` stand for tensors."""

    target: Any
    args: tuple[Any, ...]
    dtypes: Sequence[torch.dtype] = FLOATS
    kwargs: tuple[tuple[str, Any], ...] = ()
    ulps: int = 0
    positive: bool = False

    def __str__(self) -> str:
        return f"{self.target}{self.args}"


def _unary(target: Any, name: str) -> Case:
    ulps = 0 if operation(name).is_exact else 4
    return Case(target, (X,), ulps=ulps, positive=name in ("log", "log1p", "sqrt", "rsqrt"))


def _overload(target: Any) -> Any:
    return target if isinstance(target, torch._ops.OpOverload) else target.default


CASES = [
    *(_unary(_overload(target), name) for target, name in UNARY.items()),
    *(Case(op, (X, Y)) for op in (aten.mul.Tensor, aten.div.Tensor)),
    *(Case(op.default, (X, Y)) for op in (aten.maximum, aten.minimum)),
    *(Case(op.Tensor, (X, 0.3)) for op in (aten.mul, aten.div, aten.add, aten.sub)),
    *(Case(op.Scalar, (X, 0.3)) for op in (aten.mul, aten.div, aten.add, aten.sub, aten.rsub)),
    *(Case(op.Tensor, (X, Y)) for op in (aten.add, aten.sub, aten.rsub)),
    Case(aten.add.Tensor, (X, Y), kwargs=(("alpha", 2),)),
    Case(aten.sub.Tensor, (X, Y), kwargs=(("alpha", -0.5),)),
    Case(aten.rsub.Scalar, (X, 3, 0.25)),
    Case(aten.add.Tensor, (X, Y), (torch.float32,), kwargs=(("alpha", 0.3),), ulps=16),
    *(
        Case(getattr(aten, name).Tensor, (X, Y), (*NUMBERS, torch.bool))
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *(
        Case(getattr(aten, name).Scalar, (X, number), NUMBERS)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for number in (0.3, 1, -1)
    ),
    *(
        Case(op.default, (X, Y), (torch.bool, torch.float32, torch.int64))
        for op in (aten.logical_and, aten.logical_or, aten.logical_xor)
    ),
    Case(aten.logical_not.default, (X,), (torch.bool, torch.float32, torch.uint8)),
    *(
        Case(op.Tensor, (X, Y), BITS)
        for op in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor)
    ),
    Case(aten.bitwise_and.Scalar, (X, 5), INTEGERS),
    Case(aten.bitwise_not.default, (X,), BITS),
    *(Case(aten.pow.Tensor_Scalar, (X, e), FLOATS[:2], ulps=4) for e in (1, 2, 3, -1)),
    Case(aten.pow.Tensor_Scalar, (X, 2)),
    Case(aten.pow.Tensor_Scalar, (X, 1.7), FLOATS[:2], ulps=4, positive=True),
    Case(aten.square.default, (X,)),
    Case(aten.clamp.default, (X, -0.5, 0.3)),
    Case(aten.clamp.default, (X, -2, 3), INTEGERS[:2]),
    Case(aten.clamp.default, (X,), kwargs=(("min", 0),)),
    Case(aten.clamp.default, (X,), kwargs=(("max", 1),)),
    Case(aten.clamp.default, (X, None, 0.3)),
    Case(aten.clamp_min.default, (X, -0.3)),
    Case(aten.clamp_max.default, (X, 0.3)),
    Case(aten.where.self, (COND, X, Y), (*NUMBERS, torch.bool)),
    Case(aten.where.ScalarOther, (COND, X, 0.5)),
    Case(aten.where.ScalarSelf, (COND, 0.3, X)),
    Case(aten.where.Scalar, (COND, 1, 0.5), (torch.float32,)),
    *(
        Case(op.default, (X, Y), ulps=ulps)
        for op, ulps in ((aten.sigmoid_backward, 0), (aten.tanh_backward, 1024))
    ),
    Case(aten.threshold_backward.default, (X, Y, 0.25)),
    Case(aten._to_copy.default, (X,), NUMBERS, kwargs=(("dtype", torch.float64),)),
    Case(aten._to_copy.default, (X,), NUMBERS, kwargs=(("dtype", torch.bfloat16),)),
    Case(aten._to_copy.default, (X,), (*NUMBERS, torch.bool), kwargs=(("dtype", torch.bool),)),
    Case(aten._to_copy.default, (X,), BITS, kwargs=(("dtype", torch.uint8),)),
    Case(torch.ops.prims.convert_element_type.default, (X, torch.float32), NUMBERS),
    *(Case(op.default, (X,), NUMBERS) for op in (aten.clone, aten.alias, aten.detach)),
    *(Case(op.default, (X,), (*NUMBERS, torch.bool)) for op in (aten.zeros_like, aten.ones_like)),
    Case(aten.full_like.default, (X, 0.3)),
    Case(aten.full_like.default, (X, 3), INTEGERS),
]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Any:
    with evaluated_by_torch() as asked:
        yield asked


def operand(dtype: torch.dtype, positive: bool) -> Tensor:
    """Numbers ``[T, *SHAPE]`` around zero, some of them special."""
    if dtype == torch.bool:
        return torch.rand(T, *SHAPE) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(0 if dtype == torch.uint8 else -4, 5, (T, *SHAPE)).to(dtype)
    values = torch.randn(T, *SHAPE, dtype=torch.float64)
    values.view(-1)[:8] = torch.tensor([0, 1, -1, 2.5, 0.5, -3.5, float("inf"), float("nan")])
    return (values.abs() + 0.01 if positive else values).to(dtype)


def run_case(case: Case, dtype: torch.dtype, wrap: Wrapper) -> tuple[list[Tensor], list[Tensor]]:
    """The operator in a region, between copies that are in it too; checks that it is in one."""
    net = HandMade()
    tensors = {X: operand(dtype, case.positive), Y: operand(dtype, case.positive)}
    tensors[COND] = operand(torch.bool, positive=False)
    copies = {k: net.call(aten.clone.default, net.input(v)) for k, v in tensors.items()}
    used = [arg for arg in case.args if isinstance(arg, str)]

    def apply(operands: Sequence[Node]) -> Node:
        left = iter(operands)
        args = [next(left) if isinstance(arg, str) else arg for arg in case.args]
        return net.call(case.target, *args, **dict(case.kwargs))

    result = wrap(net, [copies[name] for name in used], apply)
    first = net.call(aten.clone.default, net.call(aten.select.int, copies[used[0]], 0, 0))
    module = net.finish(result, first)
    assert case.target in targets_inside(module)
    return run_both(module, net.inputs)


def assert_same(found: Tensor, expected: Tensor, ulps: int) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    eps = torch.finfo(found.dtype).eps if found.dtype.is_floating_point else 0
    torch.testing.assert_close(found, expected, rtol=ulps * eps, atol=ulps * eps, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_region_computes_what_the_operator_does(case: Case, form: str) -> None:
    for dtype in case.dtypes:
        expected, found = run_case(case, dtype, FORMS[form])
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, case.ulps)


def check(net: HandMade, target: object, *results: Node) -> None:
    """The operator is taken into a region, and all results are equal bit for bit."""
    module = net.finish(*results)
    assert target in targets_inside(module)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert_same(found, expected, 0)


def layer(net: HandMade, dtype: torch.dtype = torch.float32) -> tuple[Node, list[Node]]:
    """A sequence computed in a region, and its time slices."""
    whole = net.call(aten.clone.default, net.input(operand(dtype, positive=False)))
    return whole, [net.call(aten.select.int, whole, 0, t) for t in range(T)]


@TESTED.rule(aten.select.int, aten.stack)
def test_slices_are_taken_in_any_order_and_put_together() -> None:
    net = HandMade()
    whole, _ = layer(net)
    steps = [net.call(aten.select.int, whole, 0, t) for t in (-1, 0, 1)]
    check(net, aten.select.int, net.call(aten.stack.default, steps), steps[0])


@TESTED.rule(aten.unbind, operator.getitem)
def test_a_sequence_is_taken_apart_at_once() -> None:
    net = HandMade()
    whole, _ = layer(net)
    steps = net.call(aten.unbind.int, whole)
    items = [net.call(operator.getitem, steps, t) for t in range(T)]
    total = net.call(aten.add.Tensor, items[2], items[0])
    check(net, aten.unbind.int, net.call(aten.stack.default, [items[1], total, items[0]]))


@TESTED.rule(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
@pytest.mark.parametrize("target", [aten.view, aten._unsafe_view, aten.reshape])
def test_time_and_batch_are_merged_and_split(target: Any) -> None:
    net = HandMade()
    whole, steps = layer(net)
    flat = net.call(target.default, whole, [T * SHAPE[0], *SHAPE[1:]])
    doubled = net.call(aten.mul.Tensor, flat, 2.0)
    again = net.call(target.default, doubled, [T, *SHAPE])
    single = net.call(aten.unsqueeze.default, net.call(aten.neg.default, steps[1]), 0)
    back = net.call(aten.squeeze.dim, net.call(aten.abs.default, single), 0)
    check(net, target.default, again, single, back)


@TESTED.rule(aten.expand, aten.repeat)
def test_one_slice_is_repeated_over_time() -> None:
    net = HandMade()
    whole, steps = layer(net)
    for target, sizes in ((aten.expand, [T, *SHAPE]), (aten.repeat, [T, 1, 1, 1, 1])):
        net.call(target.default, steps[1], sizes)
    expanded, repeated = list(net.graph.nodes)[-2:]
    sums = [net.call(aten.add.Tensor, whole, node) for node in (expanded, repeated)]
    module = net.finish(*sums, repeated)
    assert {aten.expand.default, aten.repeat.default} <= targets_inside(module)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert_same(found, expected, 0)


@TESTED.rule(aten.full, aten.zeros, aten.ones)
def test_constant_tensors_take_no_memory_of_their_own() -> None:
    net = HandMade()
    whole, steps = layer(net)
    zeros = net.call(aten.zeros.default, list(SHAPE))
    ones = net.call(aten.ones.default, [T, *SHAPE])
    full = net.call(aten.full.default, list(SHAPE), 0.3)
    state = net.call(aten.add.Tensor, net.call(aten.add.Tensor, zeros, steps[0]), full)
    module = net.finish(net.call(aten.mul.Tensor, whole, ones), state, full)
    inside = targets_inside(module)
    assert {aten.zeros.default, aten.ones.default, aten.full.default} <= inside
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert_same(found, expected, 0)


@TESTED.rule(aten.sum.dim_IntList)
@pytest.mark.parametrize("dims", [[0, 1, 3, 4], [0, 1, 2], [0], [0, -1], [0, 1, 3]])
def test_sums_over_time_are_results_of_a_region(dims: list[int]) -> None:
    net = HandMade()
    net.input(torch.randn(T, *SHAPE))
    whole = net.call(aten.mul.Tensor, next(iter(net.graph.nodes)), 0.5)
    step = net.call(aten.neg.default, net.call(aten.select.int, whole, 0, 0))
    module = net.finish(net.call(aten.sum.dim_IntList, whole, dims), step)
    assert aten.sum.dim_IntList in targets_inside(module)
    expected, found = run_both(module, net.inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


@TESTED.rule(snn.pack_bits, snn.unpack_bits)
@pytest.mark.parametrize(
    ("dtype", "bits", "scale", "lo"),
    [
        (torch.float32, 1, 1.0, 0),
        (torch.bool, 1, 1.0, 0),
        (torch.bfloat16, 1, 1.0, 0),
        (torch.float32, 2, 1.0, -1),
        (torch.float64, 4, 1 / 0.7, 0),
        (torch.float32, 4, 1 / 0.7, -3),
        (torch.float32, 4, 0.25, -3),
        (torch.float32, 8, 0.1, 0),
        (torch.int64, 2, 1.0, 1),
    ],
)
def test_grids_are_packed_and_unpacked_bit_for_bit(
    dtype: torch.dtype, bits: int, scale: float, lo: int
) -> None:
    net = HandMade()
    codes = torch.randint(0, 1 << bits, (T, *SHAPE)) + lo
    values = codes if dtype in BITS else codes.double() * scale
    whole = net.call(aten.clone.default, net.input(values.to(dtype)))
    packed = net.call(snn.pack_bits.default, whole, bits, "time", scale, lo)
    module = net.finish(packed)
    assert snn.pack_bits.default in targets_inside(module)
    expected, found = run_both(module, net.inputs)
    assert torch.equal(found[0], expected[0])

    back = HandMade()
    source = back.input(expected[0])
    sizes = [T, *SHAPE]
    restored = back.call(snn.unpack_bits.default, source, sizes, dtype, bits, "time", scale, lo)
    check(back, snn.unpack_bits.default, back.call(aten.clone.default, restored), restored)


def test_spikes_that_are_the_same_at_all_steps_are_packed() -> None:
    net = HandMade()
    spikes = net.call(aten.ge.Scalar, net.input(torch.randn(SHAPE)), 0.0)
    whole = net.call(aten.expand.default, spikes, [T, *SHAPE])
    check(net, snn.pack_bits.default, net.call(snn.pack_bits.default, whole, 1, "time"), whole)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.view.dtype, (torch.int32,)),
        (aten.view.default, ([T * SHAPE[0], -1],)),
        (aten.select.int, (1, 0)),
        (aten.unsqueeze.default, (3,)),
        (aten.sum.dim_IntList, ([],)),
        (aten.sum.dim_IntList, ([1, 2],)),
        (aten.sum.dim_IntList, ([0, 1, 2, 3, 4],)),
        (aten.sum.dim_IntList, ([0, 2], True)),
        (aten.repeat.default, ([1, 1, 2, 1, 1],)),
        (snn.pack_bits.default, (1, "flat")),
        (aten._to_copy.default, ()),
    ],
)
def test_what_moves_or_mixes_elements_stays_outside(target: Any, args: tuple[Any, ...]) -> None:
    net = HandMade()
    whole = net.call(aten.ceil.default, net.call(aten.relu.default, layer(net)[0]))
    options = {"dtype": torch.int64} if target is aten._to_copy.default else {}
    spikes = net.call(aten.minimum.default, whole, net.call(aten.ones_like.default, whole))
    source = net.call(aten.nan_to_num.default, spikes) if options else spikes
    result = net.call(target, source, *args, **options)
    others = [net.call(aten.neg.default, s) for s in layer(net)[1]]
    module = net.finish(result, *others)
    assert target not in {n.target for n in taken_in(module)}
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


def taken_in(module: GraphModule) -> set[Node]:
    """The nodes in regions, but for slices along time."""
    return {
        node
        for region in regions_of(module)
        for node in region.nodes
        if node.target is not aten.select.int or node.args[1] != 0
    }


def test_bfloat16_numbers_are_told_from_others() -> None:
    assert all(is_bfloat16(v) for v in (0.0, 1.0, -0.5, 256.0, float("inf")))
    assert not any(is_bfloat16(v) for v in (0.3, 257.0, float("nan")))


IN_TESTS_OF_POOLING = (
    *("max_pool2d", "max_pool2d_offsets", "max_pool2d_backward"),
    *("avg_pool2d_backward", "pool_packed"),
)
"""Operators whose rules `test_region_rules_pooling` holds."""


def test_every_rule_is_tested() -> None:
    tested = {case.target for case in CASES} | set(TESTED)
    tested |= {getattr(torch.ops.snnfx, name).default for name in IN_TESTS_OF_POOLING}
    packets = {t.overloadpacket for t in tested if isinstance(t, torch._ops.OpOverload)}
    assert set(REGION_RULES) <= tested | packets
