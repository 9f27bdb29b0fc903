"""Random programs on random layouts, against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_ir import Buffer, Program
from snnfx.kernels.region_ops import OPERATIONS
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import Builder, layout_of, run_kernel, sums_like

EXACT = sorted(
    op.name
    for op in OPERATIONS.values()
    if op.is_exact and op.name not in ("cast", "shift_left", "shift_right")
)
DTYPES = [torch.float32, torch.float64, torch.bool, torch.uint8, torch.int32, torch.int64]
STEPS = 3


@st.composite
def random_programs(draw: st.DrawFn) -> Program:
    """Programs of exact operations on inputs of several dtypes, some of whose values are stored."""
    builder = Builder()
    inputs = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    for _ in range(draw(st.integers(1, 6))):
        buffer = draw(st.integers(0, len(inputs) - 1))
        builder.load(buffer, draw(st.integers(0, STEPS - 1)), inputs[buffer])
    builder.constant(1, draw(st.sampled_from(DTYPES)))
    for _ in range(draw(st.integers(1, 25))):
        _extend(draw, builder)
    stored = draw(st.lists(st.integers(0, len(builder.dtypes) - 1), min_size=1, max_size=5))
    for output, value in enumerate(stored):
        builder.store(output, draw(st.integers(0, STEPS - 1)), value)
    return builder.program(inputs, [builder.dtypes[value] or torch.bool for value in stored], 3)


def _extend(draw: st.DrawFn, builder: Builder) -> None:
    """Append an operation on values that exist; one that is of no use there becomes a cast."""
    values = st.integers(0, len(builder.dtypes) - 1)
    op, first = OPERATIONS[draw(st.sampled_from(EXACT))], draw(values)
    dtype = builder.dtypes[first]
    if dtype not in op.accepts:
        to = draw(st.sampled_from([torch.float32, torch.float64, torch.bool]))
        builder.op("cast", first, dtype=to)
        return
    same = [value for value, kind in enumerate(builder.dtypes) if kind == dtype]
    args = [first, *(draw(st.sampled_from(same)) for _ in range(op.arity - 1))]
    if op.name == "where":
        conditions = [value for value, kind in enumerate(builder.dtypes) if kind == torch.bool]
        args[0] = draw(st.sampled_from(conditions or [builder.op("ne", first, first)]))
    builder.op(op.name, *args)


@st.composite
def views(draw: st.DrawFn, shape: Sequence[int], is_output: bool = False) -> torch.Tensor:
    """A view ``[STEPS, *shape]`` of float32 with strides of any order, gaps and broadcasts."""
    sizes = [STEPS, *shape]
    order = draw(st.permutations(range(len(sizes))))
    gaps = [draw(st.integers(1, 2)) for _ in sizes]
    memory = torch.randn([sizes[dim] * gap for dim, gap in zip(order, gaps, strict=True)])
    memory = memory[tuple(slice(None, None, gap) for gap in gaps)]
    view = memory.permute([order.index(dim) for dim in range(len(sizes))])
    if not is_output:
        for dim in range(len(sizes)):
            if sizes[dim] and draw(st.booleans()) and draw(st.booleans()):
                view = view.narrow(dim, 0, 1).expand(sizes)
    return view


def filled(dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    full = [STEPS, *shape]
    if dtype.is_floating_point:
        return torch.randn(full, dtype=dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 200, full).to(dtype)


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(random_programs())
def test_random_programs_equal_the_reference(program: Program) -> None:
    torch.manual_seed(0)
    shape = (2, 5, 37)
    inputs = [filled(buffer.dtype, shape) for buffer in program.inputs]
    results = [torch.zeros(STEPS, *shape, dtype=b.dtype) for b in program.outputs]
    expected = [result.clone() for result in results]
    run_kernel(program, inputs, results, shape)
    run_reference(program, inputs, expected, shape)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=0, equal_nan=True)


def mixer() -> Program:
    """Two inputs and two outputs of rank 4: a running sum over steps, and its sign."""
    builder, running = Builder(), None
    for step in range(STEPS):
        x, y = (builder.load(index, step, torch.float32) for index in (0, 1))
        term = builder.op("add", x, builder.op("mul", y, y))
        running = term if running is None else builder.op("add", running, term)
        builder.store(0, step, running)
        builder.store(1, step, builder.op("sign", running))
    return builder.program([torch.float32] * 2, [torch.float32] * 2, 4)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.data(), st.lists(st.sampled_from([0, 1, 2, 3, 17, 130]), min_size=4, max_size=4))
def test_any_sizes_and_strides_give_the_same_values(data: st.DataObject, sizes: list[int]) -> None:
    shape = tuple(sizes) if math.prod(sizes) < 20000 else (1, *sizes[1:3], 2)
    inputs = [data.draw(views(shape)) for _ in range(2)]
    results = [data.draw(views(shape, is_output=True)) for _ in range(2)]
    expected = [torch.empty(STEPS, *shape) for _ in range(2)]
    run_reference(mixer(), inputs, expected, shape)
    run_kernel(mixer(), inputs, results, shape)
    assert all(torch.equal(r, e) for r, e in zip(results, expected, strict=True))


def summing(output: torch.dtype) -> Program:
    builder = Builder()
    values = [builder.load(0, step, torch.float32) for step in range(STEPS)]
    for index, factor in enumerate((1.0, -2.0)):
        for value in values:
            scaled = builder.op("mul", value, builder.constant(factor, torch.float32))
            builder.channel_sum(index, scaled)
    return builder.program([torch.float32], [output] * 2, 4)


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    st.data(),
    st.lists(st.sampled_from([0, 1, 2, 5, 40]), min_size=4, max_size=4),
    st.sets(st.integers(0, 3)),
)
def test_sums_over_any_dims_are_right(
    data: st.DataObject, sizes: list[int], kept: set[int]
) -> None:
    shape = tuple(sizes)
    source = data.draw(views(shape))
    small = torch.empty([1, *(n if dim in kept else 1 for dim, n in enumerate(sizes))])
    view = small.expand(1, *shape)
    results, expected = [sums_like(view) for _ in range(2)], [sums_like(view) for _ in range(2)]
    run_kernel(summing(torch.float32), [source], results, shape)
    run_reference(summing(torch.float32), [source], expected, shape)
    for result, reference in zip(results, expected, strict=True):
        got, want = (t.as_strided(small.shape, small.stride()) for t in (result, reference))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_sums_are_accumulated_in_float64() -> None:
    shape = (1, 1, 1, 3_000_000)
    source = torch.full((1, *shape), 0.1).expand(STEPS, *shape)
    results = [torch.zeros(1, dtype=torch.float64) for _ in range(2)]
    views_ = [result.view(1, 1, 1, 1, 1).expand(1, *shape) for result in results]
    run_kernel(summing(torch.float64), [source], views_, shape)
    three = torch.tensor(0.1) + torch.tensor(0.1) + torch.tensor(0.1)
    assert results[0].item() == pytest.approx(three.item() * shape[-1], rel=1e-12)


def test_a_scalar_index_space_is_one_element() -> None:
    builder = Builder()
    x = builder.load(0, 1, torch.float32)
    builder.store(0, 0, builder.op("neg", x))
    program = builder.program([torch.float32], [torch.float32], 0)
    result = torch.empty(1)
    run_kernel(program, [torch.tensor([3.0, 4.0])], [result], ())
    assert result.item() == -4.0


def test_equal_programs_are_one_key() -> None:
    assert mixer() == mixer()
    assert len({mixer(), mixer(), summing(torch.float32)}) == 2
    assert hash(Buffer(torch.float32)) == hash(Buffer(torch.float32))


def test_calls_with_the_same_layout_are_planned_once() -> None:
    kernel, shape = compile_program(mixer()), (2, 3, 4, 5)
    inputs = [torch.randn(STEPS, *shape) for _ in range(2)]
    outputs = [torch.empty(STEPS, *shape) for _ in range(2)]
    layouts = tuple(map(layout_of, inputs)), tuple(map(layout_of, outputs))
    plan = kernel.prepare(shape, *layouts)
    plan(inputs, outputs)
    first = outputs[0].clone()
    kernel(inputs, outputs, shape, *layouts)
    assert torch.equal(first, outputs[0])
    assert torch.equal(first[0], inputs[0][0] + inputs[1][0] * inputs[1][0])
