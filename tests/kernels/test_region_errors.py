"""What the kernels of regions refuse, and what they say."""

from __future__ import annotations

import pytest
import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_ir import (
    Buffer,
    ChannelSum,
    Compute,
    Constant,
    Instruction,
    Load,
    Program,
    Store,
)
from snnfx.kernels.region_layout import Layout
from snnfx.kernels.region_reference import run_reference

F32, F64, BOOL, I32 = torch.float32, torch.float64, torch.bool, torch.int32
LOAD, STORE = Load(0, 0), Store(0, 0, 0)

CASES: list[tuple[str, list[Instruction]]] = [
    ("there are only 1 inputs", [Load(1, 0), STORE]),
    ("a step is 0 or more", [Load(0, -1), STORE]),
    ("there is no value 1 before it", [LOAD, Compute("neg", (1,), F32), STORE]),
    ("there is no value -1 before it", [LOAD, Compute("neg", (-1,), F32), STORE]),
    ("no operation 'gelu'; known: add, sub", [LOAD, Compute("gelu", (0,), F32), STORE]),
    ("add takes 2 arguments", [LOAD, Compute("add", (0,), F32), STORE]),
    ("arguments of several dtypes", [LOAD, Constant(1, F64), Compute("add", (0, 1), F32), STORE]),
    ("logical_not takes bool", [LOAD, Compute("logical_not", (0,), F32), STORE]),
    ("the result of neg is of torch.float32", [LOAD, Compute("neg", (0,), F64), STORE]),
    ("the result of eq is of torch.bool", [LOAD, Compute("eq", (0, 0), F32), STORE]),
    ("the condition must be bool", [LOAD, Compute("where", (0, 0, 0), F32), STORE]),
    ("the exponent must be a Constant", [LOAD, Compute("pow", (0, 0), F32), STORE]),
    ("a value cannot be of torch.bfloat16", [Constant(1.0, torch.bfloat16), STORE]),
    ("a value of torch.int32 goes to torch.float32; cast it", [Constant(1, I32), STORE]),
    ("the slice is stored already", [LOAD, STORE, STORE]),
    ("the output is already written by a Store", [LOAD, STORE, ChannelSum(0, 0)]),
    ("the output is already a ChannelSum", [LOAD, ChannelSum(0, 0), STORE]),
    ("sums add up and are of float32, float64", [Constant(1, I32), ChannelSum(0, 0)]),
    ("there are only 1 outputs", [LOAD, Store(1, 0, 0)]),
    (r"nothing is written to the outputs \[0\]", [LOAD]),
]


@pytest.mark.parametrize(("text", "instructions"), CASES, ids=[text for text, _ in CASES])
def test_a_program_that_is_not_valid_is_refused(text: str, instructions: list[Instruction]) -> None:
    program = Program((Buffer(F32),), (Buffer(F32),), 1, tuple(instructions))
    with pytest.raises(KernelError, match=text):
        program.validate()
    with pytest.raises(KernelError, match=text):
        compile_program(program)


def test_float16_buffers_are_refused() -> None:
    program = Program((Buffer(torch.float16),), (Buffer(F32),), 1, (LOAD, STORE))
    with pytest.raises(
        KernelError, match=r"buffer 0 is of torch\.float16; allowed: bfloat16, bool"
    ):
        program.validate()


COPY = Program((Buffer(F32),), (Buffer(F32),), 2, (LOAD, STORE))
X, Y = torch.zeros(3, 4), torch.zeros(3, 4)
PLAIN: Layout = (0, (4, 1))


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("2 inputs; the program has 1", ([X, X], [Y], (3, 4), (PLAIN,), (PLAIN,))),
        ("2 input layouts for 1 inputs", ([X], [Y], (3, 4), (PLAIN, PLAIN), (PLAIN,))),
        ("input 0 is torch.float64 on cpu", ([X.double()], [Y], (3, 4), (PLAIN,), (PLAIN,))),
        ("output 0 is torch.float32 on meta", ([X], [Y.to("meta")], (3, 4), (PLAIN,), (PLAIN,))),
        ("output layout 0 has 1 base strides", ([X], [Y], (3, 4), (PLAIN,), ((0, (1,)),))),
        ("rank is 2", ([X], [Y], (12,), (PLAIN,), (PLAIN,))),
        (r"stride 0 in base dims \[1\]", ([X], [Y], (3, 4), (PLAIN,), ((0, (4, 0)),))),
    ],
)
def test_a_call_that_does_not_fit_is_refused(text: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(KernelError, match=text):
        compile_program(COPY)(*arguments)  # pyright: ignore[reportArgumentType]


def test_the_reference_refuses_sizes_of_another_rank() -> None:
    with pytest.raises(KernelError, match="the program's rank is 2"):
        run_reference(COPY, [X[None]], [Y[None]], (12,))
