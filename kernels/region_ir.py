"""A region: pointwise work on T time slices over one index space, as a straight-line program.

A `Program` says what happens to one element of the base index space (for a spiking layer
``[N, C, H, W]``): it loads elements of time slices of its inputs, computes, stores elements of
time slices of its outputs, and adds values up into sums that are smaller than the index space (the
channel sums of a batch norm's backward). Time steps are unrolled, so values such as membrane
potentials pass from step to step in registers.

Instructions are in single-assignment form: an instruction's value is named by its position. Where
a tensor lies is no part of the program: at run time a buffer is a pointer, a step stride and one
stride for each base dim, in elements, any of which may be 0. Programs are hashable.

An input may have sizes of its own in some dims, as what a pooling reads or what its gradient comes
from has. Such a buffer is *windowed*: in these dims a load says by `Window` which element is read.

All values that an instruction takes have one dtype: a program converts with ``cast``. Loads of
bfloat16 give float32, and a float32 value stored to a bfloat16 buffer is rounded, to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_ops import EVERY, FLOATS, Operation, operation

BUFFER_DTYPES = EVERY | {torch.bfloat16}


@dataclass(frozen=True)
class Buffer:
    """An input or output tensor.

    Attributes:
        dtype: float32, float64, bfloat16, bool, uint8, int32 or int64.
        windowed: of an input, the base dims in which it has sizes of its own, ascending.
    """

    dtype: torch.dtype
    windowed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """Which element of a windowed input belongs to index i of base dim `dim`.

    With ``x = i * multiplier + offset`` it is element ``x // divisor`` (rounded down), if that is
    one of the input's and ``x % divisor < span``; else there is none.
    """

    dim: int
    multiplier: int = 1
    offset: int = 0
    divisor: int = 1
    span: int = 1


@dataclass(frozen=True)
class Load:
    """The element of time slice `step` of input `buffer` (an index into `Program.inputs`).

    Attributes:
        windows: of a windowed input, one for each dim in which it is windowed, ascending.
        fill: the value where a window finds no element.
    """

    buffer: int
    step: int
    windows: tuple[Window, ...] = ()
    fill: float = 0


@dataclass(frozen=True)
class Position:
    """The int32 ``(i + offset) % modulus`` of the index i in base dim `dim`; no modulus if 0."""

    dim: int
    offset: int = 0
    modulus: int = 0


@dataclass(frozen=True)
class Constant:
    """The number `value`, rounded to `dtype`."""

    value: float | int | bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Compute:
    """`op` (see `region_ops`) of the values `args`; `dtype` is that of the result."""

    op: str
    args: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Store:
    """Write `value` as the element of time slice `step` of output `output`."""

    output: int
    step: int
    value: int


@dataclass(frozen=True)
class ChannelSum:
    """Add `value` over the index space to output `output`, whose reduced dims have stride 0.

    An output may have several: their values are added per element, in program order and in their
    own dtype, then over elements in float64. The order depends on sizes and layouts, but not on
    the number of threads, so results repeat bit for bit.
    """

    output: int
    value: int


Instruction = Load | Position | Constant | Compute | Store | ChannelSum


def value_dtype_of(buffer: Buffer) -> torch.dtype:
    """The dtype of values loaded from, or stored to, `buffer`."""
    return torch.float32 if buffer.dtype == torch.bfloat16 else buffer.dtype


@dataclass(frozen=True)
class Program:
    """Straight-line code for one element of the index space.

    Attributes:
        inputs: what may be loaded; several may lie in the same memory.
        outputs: what is written. An output may lie in an input's memory if both have the same
            pointer and strides: every element is loaded before it is stored. Any other overlap
            with an input or output gives undefined results.
        rank: number of base dims.
        instructions: in order of evaluation.
    """

    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    rank: int
    instructions: tuple[Instruction, ...]

    def validate(self) -> None:
        """Check that the program is well formed.

        Raises:
            KernelError: an instruction names a value, buffer, step, operation or dtype that does
                not exist or fit; the text names the instruction.
        """
        if self.rank < 0:
            raise KernelError(f"a program's rank is 0 or more, not {self.rank}")
        for index, buffer in enumerate((*self.inputs, *self.outputs)):
            if buffer.dtype not in BUFFER_DTYPES:
                raise KernelError(
                    f"buffer {index} is of {buffer.dtype}; allowed: {_names(BUFFER_DTYPES)}"
                )
        if any(buffer.windowed for buffer in self.outputs):
            raise KernelError("an output has the sizes of the index space: it has no windows")
        checker = _Checker(self)
        for position, instruction in enumerate(self.instructions):
            checker.check(position, instruction)
        checker.check_outputs()

    def value_dtypes(self) -> tuple[torch.dtype | None, ...]:
        """The dtype of each instruction's value; None for stores and sums."""
        return tuple(_value_dtype(self, instruction) for instruction in self.instructions)

    def sum_outputs(self) -> tuple[int, ...]:
        """The outputs written by `ChannelSum`, ascending."""
        return tuple(sorted({i.output for i in self.instructions if isinstance(i, ChannelSum)}))

    def input_steps(self, buffer: int) -> tuple[int, ...]:
        """The time slices of input `buffer` that are loaded, ascending."""
        loads = [i for i in self.instructions if isinstance(i, Load)]
        return tuple(sorted({load.step for load in loads if load.buffer == buffer}))

    def input_loads(self, buffer: int) -> tuple[Load, ...]:
        """The distinct loads of input `buffer`: those through the same windows together."""
        loads = {i: None for i in self.instructions if isinstance(i, Load) and i.buffer == buffer}
        groups = list(dict.fromkeys((load.windows, load.fill) for load in loads))
        return tuple(sorted(loads, key=lambda i: (groups.index((i.windows, i.fill)), i.step)))

    def positions(self) -> tuple[Position, ...]:
        """The distinct `Position` instructions."""
        return tuple(dict.fromkeys(i for i in self.instructions if isinstance(i, Position)))

    def window_dims(self) -> tuple[int, ...]:
        """The base dims whose index matters by itself, ascending."""
        dims = {position.dim for position in self.positions()}
        return tuple(sorted(dims.union(*(buffer.windowed for buffer in self.inputs))))

    def output_steps(self, output: int) -> tuple[int, ...]:
        """The time slices of output `output` that are stored, ascending."""
        stores = [i for i in self.instructions if isinstance(i, Store)]
        return tuple(sorted({store.step for store in stores if store.output == output}))


def _value_dtype(program: Program, instruction: Instruction) -> torch.dtype | None:
    if isinstance(instruction, Load):
        return value_dtype_of(program.inputs[instruction.buffer])
    if isinstance(instruction, Position):
        return torch.int32
    return instruction.dtype if isinstance(instruction, Constant | Compute) else None


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


class _Checker:
    """Checks instructions in order, remembering the dtypes of values and what was written."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.dtypes: list[torch.dtype | None] = []
        self.stored: set[tuple[int, int]] = set()
        self.summed: dict[int, torch.dtype] = {}

    def check(self, position: int, instruction: Instruction) -> None:
        self.where = f"instruction {position}, {instruction}:"
        if isinstance(instruction, Load):
            self._check_load(instruction)
        elif isinstance(instruction, Position):
            self._check_dim(instruction.dim)
            self._require(instruction.modulus >= 0, "a modulus is 0 or more")
        elif isinstance(instruction, Constant):
            self._require(instruction.dtype in EVERY, f"a value cannot be of {instruction.dtype}")
        elif isinstance(instruction, Compute):
            self._check_compute(instruction)
        elif isinstance(instruction, Store):
            self._check_store(instruction)
        else:
            self._check_sum(instruction)
        self.dtypes.append(_value_dtype(self.program, instruction))

    def check_outputs(self) -> None:
        written = {output for output, _ in self.stored} | self.summed.keys()
        missing = sorted(set(range(len(self.program.outputs))) - written)
        if missing:
            raise KernelError(f"nothing is written to the outputs {missing}; drop them")

    def _require(self, condition: bool, text: str) -> None:
        if not condition:
            raise KernelError(f"{self.where} {text}")

    def _value(self, value: int) -> torch.dtype:
        known = 0 <= value < len(self.dtypes)
        dtype = self.dtypes[value] if known else None
        if dtype is None:
            raise KernelError(f"{self.where} there is no value {value} before it")
        return dtype

    def _check_slice(self, index: int, step: int, buffers: tuple[Buffer, ...], kind: str) -> None:
        self._require(0 <= index < len(buffers), f"there are only {len(buffers)} {kind}s")
        self._require(step >= 0, "a step is 0 or more")

    def _check_load(self, load: Load) -> None:
        self._check_slice(load.buffer, load.step, self.program.inputs, "input")
        windowed = self.program.inputs[load.buffer].windowed
        named = tuple(window.dim for window in load.windows)
        self._require(named == windowed, f"the input is windowed in the dims {windowed}")
        for window in load.windows:
            self._check_dim(window.dim)
            self._require(0 < window.span <= window.divisor, "a span is 1 to the divisor")

    def _check_dim(self, dim: int) -> None:
        self._require(0 <= dim < self.program.rank, f"there is no base dim {dim}")

    def _check_compute(self, compute: Compute) -> None:
        op = operation(compute.op)
        self._require(len(compute.args) == op.arity, f"{op.name} takes {op.arity} arguments")
        dtypes = [self._value(arg) for arg in compute.args]
        if op.name == "where":
            self._require(dtypes.pop(0) == torch.bool, "the condition must be bool")
        self._require(len(set(dtypes)) == 1, f"arguments of several dtypes {dtypes}; cast them")
        self._require(dtypes[0] in op.accepts, f"{op.name} takes {_names(op.accepts)}")
        self._check_result(op, dtypes[0], compute.dtype)
        if op.name == "pow":
            exponent = self.program.instructions[compute.args[1]]
            self._require(isinstance(exponent, Constant), "the exponent must be a Constant")

    def _check_result(self, op: Operation, argument: torch.dtype, result: torch.dtype) -> None:
        self._require(result in EVERY, f"a value cannot be of {result}")
        expected = {"same": argument, "bool": torch.bool, "any": result}[op.result]
        self._require(result == expected, f"the result of {op.name} is of {expected}")

    def _check_store(self, store: Store) -> None:
        self._check_slice(store.output, store.step, self.program.outputs, "output")
        self._require(store.output not in self.summed, "the output is already a ChannelSum")
        key = (store.output, store.step)
        self._require(key not in self.stored, "the slice is stored already")
        self.stored.add(key)
        buffer, dtype = self.program.outputs[store.output], self._value(store.value)
        self._require(
            dtype == value_dtype_of(buffer), f"a value of {dtype} goes to {buffer.dtype}; cast it"
        )

    def _check_sum(self, total: ChannelSum) -> None:
        self._check_slice(total.output, 0, self.program.outputs, "output")
        is_stored = any(output == total.output for output, _ in self.stored)
        self._require(not is_stored, "the output is already written by a Store")
        dtype = self._value(total.value)
        allowed = {dtype, self.program.outputs[total.output].dtype} <= FLOATS
        self._require(allowed, f"sums add up and are of {_names(FLOATS)}")
        first = self.summed.setdefault(total.output, dtype)
        self._require(first == dtype, f"the output sums values of {first} and {dtype}; cast them")
