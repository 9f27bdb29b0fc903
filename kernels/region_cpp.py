"""C++ source of a region: its program as one vectorised loop over small arrays.

See `region_prelude` for how the loop is fed. Values live in registers; where a program has more
live values than the machine has registers, the compiler spills to the stack, in the first-level
cache. No temporary has the size of a tensor.
"""

from __future__ import annotations

import functools
import math
from typing import TypeVar

import torch

from snnfx.kernels.region_ir import (
    ChannelSum,
    Compute,
    Constant,
    Instruction,
    Load,
    Position,
    Program,
    Store,
    value_dtype_of,
)
from snnfx.kernels.region_ops import operation
from snnfx.kernels.region_prelude import DRIVER, LANES, PRELUDE
from snnfx.kernels.region_windows import (
    load_positions,
    load_windowed,
    place_function,
    position_slots,
    tile_members,
    windowed_prelude,
)

Item = TypeVar("Item")

WORKSPACE_BYTES = 1 << 15
"""Bytes of the arrays of one tile, if each can then hold `MIN_BLOCK` elements."""

MIN_BLOCK, MAX_BLOCK = 128, 1024

_MEMORY_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat16",
    torch.bool: "boolean",
    torch.uint8: "uint8_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
}
_VALUE_TYPES = {
    **_MEMORY_TYPES,
    torch.bfloat16: "float",
    torch.bool: "word",
    torch.uint8: "word",
}
_MASKS = {torch.bool: 1, torch.uint8: 255}


def word_type(program: Program) -> str:
    """The integer that holds bool and uint8: as wide as the values they are computed with."""
    dtypes = set(program.value_dtypes())
    narrow = dtypes & {torch.float32, torch.int32}
    return "int64_t" if dtypes & {torch.float64, torch.int64} and not narrow else "int32_t"


def block_elements(program: Program) -> int:
    """Elements of a tile: a power of 2 so that the arrays of a tile stay in a near cache."""
    width = 8 if word_type(program) == "int64_t" else 4
    slots = len(program.sum_outputs()) + len(program.positions())
    slots += sum(len(program.input_loads(index)) for index in range(len(program.inputs)))
    slots += sum(len(program.output_steps(index)) for index in range(len(program.outputs)))
    fitting = WORKSPACE_BYTES // (max(1, slots) * width)
    return 1 << min(max(fitting, MIN_BLOCK), MAX_BLOCK).bit_length() - 1


def emit_cpp(program: Program) -> str:
    """C++17 source of `program`, with one entry ``snnfx_region``; see `region_prelude.DRIVER`.

    Raises:
        KernelError: `program` is not valid.
    """
    program.validate()
    buffers = len(program.inputs) + len(program.outputs)
    parts = [
        PRELUDE,
        f"constexpr int BUFFERS = {buffers};",
        f"using word = {word_type(program)};",
        windowed_prelude(program, MAX_BLOCK),
        "struct Tile {\n  int64_t offset[BUFFERS], step[BUFFERS];\n  Span span[BUFFERS];",
        tile_members(program) + "};",
        _workspace(program),
        _load(program),
        _compute(program),
        _store(program),
        _finish(program),
        place_function(program),
        DRIVER,
    ]
    return "\n".join(parts)


def _workspace(program: Program) -> str:
    """The arrays of a tile: one for each slice loaded or stored, each sum and each position."""
    block, lines = block_elements(program), list[str]()
    for index, buffer in enumerate(program.inputs):
        loads = len(program.input_loads(index))
        if loads:
            lines.append(f"  {_VALUE_TYPES[buffer.dtype]} in{index}[{loads}][{block}];")
    for index, buffer in enumerate(program.outputs):
        steps = len(program.output_steps(index))
        if steps:
            lines.append(f"  {_VALUE_TYPES[buffer.dtype]} out{index}[{steps}][{block}];")
    for index, (dtype, _) in _sums(program).items():
        lines.append(f"  {_VALUE_TYPES[dtype]} sum{index}[{block}];")
    if any(buffer.windowed for buffer in program.inputs):
        lines.append("  Reach reach;")
    if program.positions():
        lines.append(f"  int32_t position[{len(program.positions())}][{block}];")
    return "\n".join(["struct alignas(64) Workspace {", *lines, "};"])


def _sums(program: Program) -> dict[int, tuple[torch.dtype, list[int]]]:
    """For each sum output: the dtype of its values, and the values."""
    dtypes, sums = program.value_dtypes(), dict[int, tuple[torch.dtype, list[int]]]()
    for instruction in program.instructions:
        if isinstance(instruction, ChannelSum):
            dtype = dtypes[instruction.value]
            assert dtype is not None, "validated"
            sums.setdefault(instruction.output, (dtype, []))[1].append(instruction.value)
    return sums


def _for_steps(steps: tuple[int, ...], body: str) -> str:
    """C++ that runs `body` for position ``k`` of each step ``steps[k]``."""
    table = ", ".join(map(str, steps))
    return (
        f"  {{\n    static const int64_t steps[] = {{{table}}};\n"
        f"    for (int k = 0; k < {len(steps)}; ++k)\n      {body}\n  }}"
    )


def _load(program: Program) -> str:
    lines = ["void load(char* const* pointers, const Tile& tile, Workspace& w) {"]
    for index, buffer in enumerate(program.inputs):
        steps, kind = program.input_steps(index), _MEMORY_TYPES[buffer.dtype]
        source = (
            f"reinterpret_cast<const {kind}*>(pointers[{index}]) + tile.offset[{index}]"
            f" + steps[k] * tile.step[{index}]"
        )
        if buffer.windowed:
            missing = functools.partial(_missing, value_dtype_of(buffer))
            lines += load_windowed(program, index, source, missing)
        elif steps:
            body = f"load_tile(w.in{index}[k], {source}, tile.span[{index}]);"
            lines.append(_for_steps(steps, body))
    return "\n".join([*lines, *load_positions(program), "}"])


def _missing(dtype: torch.dtype, load: Load) -> str:
    """The value that a load gives where its windows find no element."""
    return f"{_VALUE_TYPES[dtype]}({_literal(Constant(load.fill, dtype))})"


def _store(program: Program) -> str:
    lines = [
        "void store(char* const* pointers, const Tile& tile, const Workspace& w, double* partial) {"
    ]
    for index, buffer in enumerate(program.outputs):
        steps, kind = program.output_steps(index), _MEMORY_TYPES[buffer.dtype]
        position = len(program.inputs) + index
        where = f"tile.offset[{position}]"
        if steps:
            target = (
                f"reinterpret_cast<{kind}*>(pointers[{position}]) + {where}"
                f" + steps[k] * tile.step[{position}]"
            )
            body = f"store_tile({target}, w.out{index}[k], tile.span[{position}]);"
            lines.append(_for_steps(steps, body))
        else:
            target = f"partial + tile.step[{position}] + {where}"
            lines.append(f"  sum_tile({target}, w.sum{index}, tile.span[{position}]);")
    return "\n".join([*lines, "}"])


def _finish(program: Program) -> str:
    """C++ that writes the sums; those of an output end where the next output's begin."""
    lines = [
        "void finish(char* const* pointers, const int64_t* strides, int64_t row,",
        "            const double* partial, int64_t sums, const int64_t* offsets) {",
    ]
    positions = [len(program.inputs) + index for index in program.sum_outputs()]
    ends = [f"strides[{position} * row]" for position in positions[1:]] + ["sums"]
    for index, position, end in zip(program.sum_outputs(), positions, ends, strict=False):
        kind = _MEMORY_TYPES[program.outputs[index].dtype]
        lines.append(
            f"  for (int64_t i = strides[{position} * row]; i < {end}; ++i)\n"
            f"    reinterpret_cast<{kind}*>(pointers[{position}])[offsets[i]] = {kind}(partial[i]);"
        )
    return "\n".join([*lines, "}"])


def _compute(program: Program) -> str:
    emitter = _LoopBody(program)
    lines = [
        f"    {line}" for i, step in enumerate(program.instructions) for line in emitter(i, step)
    ]
    for index, (_, values) in _sums(program).items():
        total = " + ".join(f"v{value}" for value in values)
        lines.append(f"    w.sum{index}[i] = {total};")
    return "\n".join(
        [
            "void compute(Workspace& w, int64_t vectors) {",
            "#pragma omp simd",
            f"  for (int64_t i = 0; i < vectors * {LANES}; ++i) {{",
            *lines,
            "  }",
            "}",
        ]
    )


class _LoopBody:
    """The C++ statement of each instruction."""

    def __init__(self, program: Program) -> None:
        self.dtypes = program.value_dtypes()
        inputs, outputs = range(len(program.inputs)), range(len(program.outputs))
        self.input_slots = {i: _numbered(program.input_loads(i)) for i in inputs}
        self.output_slots = {i: _numbered(program.output_steps(i)) for i in outputs}
        self.position_slots = position_slots(program)

    def __call__(self, position: int, instruction: Instruction) -> list[str]:
        if isinstance(instruction, ChannelSum):
            return []
        if isinstance(instruction, Store):
            slot = self.output_slots[instruction.output][instruction.step]
            return [f"w.out{instruction.output}[{slot}][i] = v{instruction.value};"]
        dtype = self.dtypes[position]
        assert dtype is not None, "validated"
        return [f"const {_VALUE_TYPES[dtype]} v{position} = {self._expression(instruction)};"]

    def _expression(self, instruction: Load | Position | Constant | Compute) -> str:
        if isinstance(instruction, Position):
            return f"w.position[{self.position_slots[instruction]}][i]"
        if isinstance(instruction, Load):
            slot = self.input_slots[instruction.buffer][instruction]
            return f"w.in{instruction.buffer}[{slot}][i]"
        if isinstance(instruction, Constant):
            return _literal(instruction)
        return self._computed(instruction)

    def _computed(self, compute: Compute) -> str:
        op, kind = operation(compute.op), _VALUE_TYPES[compute.dtype]
        expression = op.cpp.format(*(f"v{arg}" for arg in compute.args))
        if op.name == "cast" and compute.dtype == torch.bool:
            return f"{expression} != 0"
        expression = f"{kind}({expression})"
        mask = _MASKS.get(compute.dtype)
        return f"{expression} & {mask}" if op.wraps and mask else expression


def _numbered(items: tuple[Item, ...]) -> dict[Item, int]:
    return {item: position for position, item in enumerate(items)}


def _literal(constant: Constant) -> str:
    """A C++ expression of exactly the constant's value."""
    value, kind = constant.value, _VALUE_TYPES[constant.dtype]
    if constant.dtype == torch.bool:
        return str(int(bool(value)))
    if not constant.dtype.is_floating_point:
        return f"{kind}(INT64_C({max(int(value), 1 - 2**63)}){' - 1' if value == -(2**63) else ''})"
    number = float(value)
    if math.isnan(number):
        return f"{kind}(NAN)"
    if math.isinf(number):
        return f"{kind}({'-' if number < 0 else ''}INFINITY)"
    return f"{kind}({number.hex()})"
