"""Inputs with sizes of their own, read through windows, against the reference and torch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfx.errors import KernelError
from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_ir import Buffer, Load, Position, Program, Store, Window
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import Builder, layout_of

STEPS = 2
F32 = torch.float32


def read_through(windows: tuple[Window, ...], dtype: torch.dtype, fill: float) -> Program:
    """Both steps of a windowed input, of a plain one, and where in the dims 1 and 2 they are."""
    b = Builder()
    for step in range(STEPS):
        b.store(0, step, b.emit(Load(0, step, windows, fill), dtype))
    # Another window of the same input: what is loaded through each must be kept apart.
    shifted = tuple(Window(w.dim, 1, -1) for w in windows)
    b.store(1, 0, b.emit(Load(0, 1, shifted, 3), dtype))
    b.store(1, 1, b.load(1, 0, dtype))
    for step, position in enumerate((Position(1, 2, 3), Position(2, -1))):
        b.store(2, step, b.emit(position, torch.int32))
    windowed = tuple(window.dim for window in windows)
    return Program(
        (Buffer(dtype, windowed), Buffer(dtype)),
        (Buffer(dtype), Buffer(dtype), Buffer(torch.int32)),
        4,
        tuple(b.instructions),
    )


windows_of = st.builds(
    lambda dim, multiplier, offset, divisor, span: Window(
        dim, multiplier, offset, divisor, min(span, divisor)
    ),
    st.just(0), st.integers(1, 3), st.integers(-4, 4), st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip
ORDERS = [(0, 1, 2, 3, 4), (0, 1, 3, 4, 2), (1, 2, 0, 3, 4), (0, 4, 3, 2, 1)]


def laid_out(sizes: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    memory = torch.randint(0, 200, [sizes[d] for d in order]).to(dtype)
    return memory.permute([list(order).index(d) for d in range(len(sizes))])


# Compiled once for each program, so few programs and many sizes and layouts.
PROGRAMS = [
    read_through((Window(1, 1, 0, 2, 2), Window(2, 1, 1, 2, 1)), F32, 0),
    read_through((Window(2, 2, -1), Window(3, 2, -1)), torch.uint8, 255),
    read_through((Window(2, 1, 1, 3, 2), Window(3, 1, -2, 2, 1)), torch.float64, -1),
    read_through((Window(1, 3, -4, 2, 1),), torch.bfloat16, 7),
]


@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from(PROGRAMS[:3]),
    st.lists(st.sampled_from([0, 1, 2, 5, 19]), min_size=4, max_size=4),
    st.lists(st.integers(0, 7), min_size=2, max_size=2),
    st.sampled_from(ORDERS),
    st.sampled_from(ORDERS),
)
def test_any_sizes_and_layouts_give_the_values_of_the_reference(
    program: Program,
    sizes: list[int],
    own: list[int],
    order: tuple[int, ...],
    output_order: tuple[int, ...],
) -> None:
    dims = program.inputs[0].windowed
    source = list(sizes)
    for dim, size in zip(dims, own, strict=True):
        source[dim] = size
    inputs = [
        laid_out([STEPS, *source], order, program.inputs[0].dtype),
        laid_out([STEPS, *sizes], order, program.inputs[1].dtype),
    ]
    results = [laid_out([STEPS, *sizes], output_order, b.dtype) for b in program.outputs]
    expected = [torch.empty_like(result) for result in results]
    run_reference(program, inputs, expected, sizes)
    compile_program(program)(
        inputs,
        results,
        tuple(sizes),
        tuple(map(layout_of, inputs)),
        tuple(map(layout_of, results)),
        (tuple(own), ()),
    )
    assert all(torch.equal(r, e) for r, e in zip(results, expected, strict=True))


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(windows_of, st.integers(0, 9), st.integers(0, 9))
def test_the_reference_reads_what_a_window_says(window: Window, size: int, own: int) -> None:
    program = Program(
        (Buffer(F32, (0,)),), (Buffer(F32),), 1, (Load(0, 0, (window,), -7), Store(0, 0, 0))
    )
    source, result = torch.arange(own, dtype=F32).view(1, own), torch.empty(1, size)
    run_reference(program, [source], [result], (size,))
    for i in range(size):
        quotient, rest = divmod(i * window.multiplier + window.offset, window.divisor)
        found = 0 <= quotient < own and rest < window.span
        assert result[0, i] == (quotient if found else -7)


def test_a_window_in_a_small_index_space_without_other_dims() -> None:
    program = Program(
        (Buffer(F32, (0,)),), (Buffer(F32),), 1, (Load(0, 0, (Window(0, 2, 1),)), Store(0, 0, 0))
    )
    result = torch.empty(1, 1)
    layouts = ((0, (1,)),)
    compile_program(program)([torch.tensor([5.0, 6.0])], [result], (1,), layouts, layouts, ((2,),))
    assert result.item() == 6.0


def test_bfloat16_is_read_and_filled() -> None:
    program = PROGRAMS[3]
    inputs = [torch.randn(STEPS, 2, n, 4, 5).bfloat16() for n in (4, 6)]
    outputs = [torch.empty(STEPS, 2, 6, 4, 5, dtype=b.dtype) for b in program.outputs]
    expected = [torch.empty_like(output) for output in outputs]
    run_reference(program, inputs, expected, (2, 6, 4, 5))
    compile_program(program)(
        inputs, outputs, (2, 6, 4, 5), tuple(map(layout_of, inputs)),
        tuple(map(layout_of, outputs)), ((4,), ()),
    )  # fmt: skip
    assert all(torch.equal(r, e) for r, e in zip(outputs, expected, strict=True))
    assert (outputs[0] == 7).any()


REFUSED = [
    (r"windowed in the dims \(0,\)", Load(0, 0)),
    (r"windowed in the dims \(0,\)", Load(0, 0, (Window(1),))),
    ("a span is 1 to the divisor", Load(0, 0, (Window(0, 1, 0, 2, 3),))),
    ("there is no base dim 1", Position(1)),
    ("a modulus is 0 or more", Position(0, 0, -1)),
]


@pytest.mark.parametrize(("text", "instruction"), REFUSED)
def test_windows_that_do_not_fit_are_refused(text: str, instruction: Load | Position) -> None:
    program = Program((Buffer(F32, (0,)),), (Buffer(F32),), 1, (instruction, Store(0, 0, 0)))
    with pytest.raises(KernelError, match=text):
        program.validate()


def test_sizes_that_do_not_fit_the_windows_are_refused() -> None:
    program = PROGRAMS[0]
    tensor = torch.empty(STEPS, 2, 3, 4, 5)
    layouts = (layout_of(tensor),)
    with pytest.raises(KernelError, match=r"extents \(\) for inputs that are windowed"):
        compile_program(program).prepare((2, 3, 4, 5), layouts * 2, layouts * 3)


def test_outputs_have_no_windows() -> None:
    program = Program((Buffer(F32),), (Buffer(F32, (0,)),), 1, (Load(0, 0), Store(0, 0, 0)))
    with pytest.raises(KernelError, match="it has no windows"):
        program.validate()
