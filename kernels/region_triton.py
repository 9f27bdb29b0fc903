"""Triton source of a region: one program instance runs `BLOCK` elements of the index space.

Written from the same `Program` as the C++, with the same types: bool and uint8 are computed with
as int1 and int32, float32 divisions and square roots are correctly rounded. ``exp`` and the other
functions are as accurate as Triton's on the device, which no test here has measured. Launch with
``enable_fp_fusion=False``, as `TritonRegion` does, or the compiler contracts products and sums.

Not available here, and refused: `ChannelSum`, windowed inputs, `Position`, and operations that
Triton itself has no exact form of (``log1p``, ``tanh``, powers other than those that are products
and roots).

Loads of an element stand before its stores, so an output may lie in an input's memory as on the
CPU. This module needs triton, and a GPU or ``TRITON_INTERPRET=1`` set before it is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from snnfx.errors import KernelError
from snnfx.kernels.region_build import cache_folder
from snnfx.kernels.region_ir import (
    Buffer,
    ChannelSum,
    Compute,
    Constant,
    Instruction,
    Load,
    Position,
    Program,
    Store,
)
from snnfx.kernels.region_layout import Layout

BLOCK = 512
"""Elements a program instance handles."""

HEADER = '''"""Generated from a region's program."""

import triton
import triton.language as tl


@triton.jit
def f_round(x, LIMIT: tl.constexpr):
    size = tl.abs(x)
    size = tl.where(size < LIMIT, (size + LIMIT) - LIMIT, size)
    return tl.where(x < 0, -size, size)


'''

_TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.float32",
    torch.bool: "tl.int1",
    torch.uint8: "tl.int32",
    torch.int32: "tl.int32",
    torch.int64: "tl.int64",
}
_MEMORY_TYPES = {
    **_TYPES,
    torch.bfloat16: "tl.bfloat16",
    torch.bool: "tl.uint8",
    torch.uint8: "tl.uint8",
}
_LARGER = "tl.where({0} != {0}, {0}, tl.where({0} > {1}, {0}, {1}))"
_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "maximum": _LARGER,
    "minimum": _LARGER.replace(">", "<"),
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1, 0) - tl.where({0} < 0, 1, 0)",
    "relu": "tl.where({0} != {0}, {0}, tl.where({0} > 0, {0}, 0))",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "erf": "tl.erf({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "isnan": "{0} != {0}",
    "where": "tl.where({0}, {1}, {2})",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_xor": "{0} ^ {1}",
    "logical_not": "{0} == 0",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "bitwise_not": "~{0}",
    "round_bfloat16": "{0}.to(tl.bfloat16).to(tl.float32)",
}
_WRAPPING = frozenset({"add", "sub", "mul", "neg", "bitwise_not", "shift_left"})
_POWERS = {0.0: "{0} * 0 + 1", 1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}"}


def _divide(over: str, under: str, dtype: torch.dtype) -> str:
    return f"tl.div_rn({over}, {under})" if dtype == torch.float32 else f"({over} / {under})"


def _root(x: str, dtype: torch.dtype) -> str:
    return f"tl.sqrt_rn({x})" if dtype == torch.float32 else f"tl.sqrt({x})"


def emit_triton(program: Program) -> str:
    """Python source of a module with a Triton kernel ``region`` for `program`.

    Raises:
        KernelError: `program` is not valid, or has something that Triton kernels do not offer.
    """
    program.validate()
    body = _Body(program)
    lines = [line for i, step in enumerate(program.instructions) for line in body(i, step)]
    # Stores come last: an output may lie in an input's memory.
    lines = [line for line in lines if "tl.store" not in line] + [
        line for line in lines if "tl.store" in line
    ]
    return HEADER + "\n".join(["@triton.jit", *_signature(program), *_indices(program), *lines, ""])


def _buffers(program: Program) -> list[tuple[str, Buffer]]:
    named = [(f"in{i}", buffer) for i, buffer in enumerate(program.inputs)]
    return named + [(f"out{i}", buffer) for i, buffer in enumerate(program.outputs)]


def _signature(program: Program) -> list[str]:
    names = [name for name, _ in _buffers(program)]
    arguments = [*names, *(f"{name}_step" for name in names)]
    arguments += [f"{name}_stride{dim}" for name in names for dim in range(program.rank)]
    arguments += [f"size{dim}" for dim in range(program.rank)]
    joined = ",\n    ".join([*arguments, "count", "BLOCK: tl.constexpr"])
    return [f"def region(\n    {joined},\n):"]


def _indices(program: Program) -> list[str]:
    """The offset of each element of the block in each buffer."""
    lines = [
        "index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "mask = index < count",
    ]
    for dim in reversed(range(program.rank)):
        lines += [f"i{dim} = index % size{dim}", f"index = index // size{dim}"]
    for name, _ in _buffers(program):
        terms = [f"i{dim} * {name}_stride{dim}" for dim in range(program.rank)]
        lines.append(f"{name}_at = {name} + {' + '.join(terms or ['index * 0'])}")
    return [f"    {line}" for line in lines]


def _slice(name: str, step: int) -> str:
    """Pointers into a time slice, by an offset that may be beyond 2**31."""
    return f"{name}_at + tl.full([1], {step}, tl.int64) * {name}_step"


class _Body:
    """The statements of each instruction."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.dtypes = program.value_dtypes()

    def __call__(self, position: int, instruction: Instruction) -> list[str]:
        if isinstance(instruction, ChannelSum):
            raise KernelError(
                f"instruction {position}, {instruction}: Triton kernels of regions have no sums; "
                "store the value and reduce it"
            )
        if isinstance(instruction, Position) or (
            isinstance(instruction, Load) and instruction.windows
        ):
            raise KernelError(
                f"instruction {position}, {instruction}: Triton kernels of regions have no "
                "windows; leave the pooling outside of the region"
            )
        if isinstance(instruction, Store):
            return [f"    {self._store(instruction)}"]
        return [f"    v{position} = {self._expression(instruction)}"]

    def _store(self, store: Store) -> str:
        name, dtype = f"out{store.output}", self.program.outputs[store.output].dtype
        value = f"v{store.value}.to({_MEMORY_TYPES[dtype]})"
        return f"tl.store({_slice(name, store.step)}, {value}, mask=mask)"

    def _expression(self, instruction: Load | Constant | Compute) -> str:
        if isinstance(instruction, Load):
            name, dtype = f"in{instruction.buffer}", self.program.inputs[instruction.buffer].dtype
            loaded = f"tl.load({_slice(name, instruction.step)}, mask=mask, other=0)"
            return f"{loaded} != 0" if dtype == torch.bool else f"{loaded}.to({_TYPES[dtype]})"
        if isinstance(instruction, Constant):
            return f"tl.full([BLOCK], {_literal(instruction)}, {_TYPES[instruction.dtype]})"
        return self._computed(instruction)

    def _computed(self, compute: Compute) -> str:
        args, dtype = [f"v{arg}" for arg in compute.args], compute.dtype
        if compute.op == "cast":
            return self._cast(args[0], self.dtypes[compute.args[0]], dtype)
        special = self._special(compute, args)
        if special is None and compute.op not in _EXPRESSIONS:
            raise KernelError(f"{compute}: Triton kernels of regions have no '{compute.op}'")
        expression = special or _EXPRESSIONS[compute.op].format(*args)
        if dtype == torch.bool:
            return expression
        wraps = dtype == torch.uint8 and compute.op in _WRAPPING
        return f"(({expression}) & 255)" if wraps else f"({expression}).to({_TYPES[dtype]})"

    def _special(self, compute: Compute, args: list[str]) -> str | None:
        """Operations whose form depends on the dtype or on a constant."""
        dtype, x = compute.dtype, args[0]
        if compute.op == "div":
            return _divide(x, args[1], dtype)
        if compute.op == "pow":
            return self._power(compute, x)
        one = f"tl.full([BLOCK], 1.0, {_TYPES[dtype]})"
        unary = {
            "sqrt": lambda: _root(x, dtype),
            "rsqrt": lambda: _divide(one, _root(x, dtype), dtype),
            "reciprocal": lambda: _divide(one, x, dtype),
            "sigmoid": lambda: _divide(one, f"(1 + tl.exp(-{x}))", dtype),
            "round": lambda: f"f_round({x}, {2.0**23 if dtype == torch.float32 else 2.0**52})",
            "shift_left": lambda: self._shift("<<", compute),
            "shift_right": lambda: self._shift(">>", compute),
        }
        return unary[compute.op]() if compute.op in unary else None

    def _shift(self, sign: str, compute: Compute) -> str:
        """A shift; a count beyond the width gives 0, or the sign, as ATen does."""
        x, count = (f"v{arg}" for arg in compute.args)
        width = 64 if compute.dtype == torch.int64 else 32
        outside = f"({count} < 0) | ({count} >= {width})"
        if sign == "<<":
            return f"tl.where({outside}, 0, {x} << ({count} & {width - 1}))"
        return f"{x} >> tl.where({outside}, {width - 1}, {count})"

    def _power(self, compute: Compute, x: str) -> str:
        dtype, constant = compute.dtype, self.program.instructions[compute.args[1]]
        assert isinstance(constant, Constant), "validated"
        exponent, one = float(constant.value), f"tl.full([BLOCK], 1.0, {_TYPES[dtype]})"
        if exponent in _POWERS:
            return _POWERS[exponent].format(x)
        powers = {
            0.5: _root(x, dtype),
            -0.5: _divide(one, _root(x, dtype), dtype),
            -1.0: _divide(one, x, dtype),
            -2.0: _divide(one, f"({x} * {x})", dtype),
        }
        if exponent not in powers:
            raise KernelError(f"{compute}: Triton kernels have no power {exponent} that is exact")
        return powers[exponent]

    def _cast(self, x: str, source: torch.dtype | None, target: torch.dtype) -> str:
        if target == torch.bool:
            return f"({x} != 0)"
        if target == torch.uint8 and source != torch.bool:
            return f"({x}.to(tl.int32) & 255)"
        return f"{x}.to({_TYPES[target]})"


def _literal(constant: Constant) -> str:
    if constant.dtype == torch.bool:
        return str(int(bool(constant.value)))
    if not constant.dtype.is_floating_point:
        return str(int(constant.value))
    number = float(constant.value)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def load_module(source: str) -> Any:
    """The kernel ``region`` of a module's `source`, which Triton needs to find in a file."""
    name = f"region_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    path = cache_folder() / f"{name}.py"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(source)
        Path(file.name).replace(path)
    spec = importlib.util.spec_from_file_location(name, os.fspath(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.region


class TritonRegion:
    """A program as a Triton kernel; called as `region_build.RegionKernel` is.

    Raises:
        KernelError: as `emit_triton`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.source = emit_triton(program)
        self.kernel = load_module(self.source)

    def __call__(
        self,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        base_sizes: Sequence[int],
        input_layouts: Sequence[Layout],
        output_layouts: Sequence[Layout],
    ) -> None:
        """Run the program on CUDA tensors (any tensors where Triton interprets)."""
        count = math.prod(base_sizes)
        if not count:
            return
        layouts = (*input_layouts, *output_layouts)
        tensors = [t.view(torch.uint8) if t.dtype == torch.bool else t for t in (*inputs, *outputs)]
        steps = [step for step, _ in layouts]
        strides = [stride for _, row in layouts for stride in row]
        self.kernel[(triton.cdiv(count, BLOCK),)](
            *tensors, *steps, *strides, *base_sizes, count, BLOCK=BLOCK, enable_fp_fusion=False
        )
