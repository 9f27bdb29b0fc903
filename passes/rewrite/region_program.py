"""Translating pointwise graph nodes to a region's `Program`.

A region works on one *base* index space, such as ``[N, C, H, W]``. A tensor of the region is seen
as T slices of it: ``plain`` (one slice, shaped as the base), ``split`` (``[T, *base]``), ``merged``
(``[T*N, *base[1:]]``, time first), or it broadcasts to one of these. A node's translation is a
tuple of value ids, one a slice; views that only regroup time cost nothing.

Rules are registered in `REGION_RULES`, see `region_rules`. A rule that meets a form it does not
know raises `Untranslatable`: the node then stays outside of regions.

Results of bfloat16 operators are rounded one by one, as ATen's are: what is proven of their values
(that spikes times a scale lie on a grid) then holds for the region's values too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.fx import Node

from snnfx.kernels.region_ir import (
    Buffer,
    ChannelSum,
    Compute,
    Constant,
    Instruction,
    Load,
    Program,
    Store,
    Window,
    value_dtype_of,
)
from snnfx.passes.fxgraph import tensor_value
from snnfx.passes.optable import OpTable

aten = torch.ops.aten
FormKind = Literal["plain", "split", "merged"]
Size = int | torch.SymInt
Ids = tuple[int, ...]
Items = tuple[Ids, ...]

SUPPORTED_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int32,
     torch.int64}
)  # fmt: skip


class Untranslatable(Exception):  # noqa: N818 - control flow, never shown
    """A node has a form that its rule does not know."""


@dataclass(frozen=True)
class Form:
    """How a tensor is made of slices of the base space."""

    kind: FormKind
    steps: int


@dataclass(frozen=True)
class InputSpec:
    """An input of a region: the node that gives it, and how it is addressed.

    Attributes:
        node: gives it.
        kind: how it is made of slices of the base space.
        windowed: the base dims in which it has sizes of its own, ascending.
    """

    node: Node
    kind: FormKind
    windowed: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputSpec:
    """A result of a region: the node that it replaces, its form, or a sum over the base."""

    node: Node
    form: Form | None
    kept_dims: tuple[int, ...] = ()


@dataclass(frozen=True)
class RegionProgram:
    """A translated region.

    Attributes:
        program: the straight-line code; regions that are equal up to sizes have equal programs.
        base: sizes of the base space.
        inputs: in the order of the program's inputs.
        outputs: in the order of the program's outputs.
    """

    program: Program
    base: tuple[Size, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]


NARROW_OPERATIONS = frozenset({"where", "neg", "abs", "relu", "sign", "maximum", "minimum"})
"""Operations whose results are bfloat16 numbers if their arguments are."""

NUMBER_TENSORS = frozenset({aten.scalar_tensor.default, aten.full.default})
"""Operators whose last argument is the number that fills a tensor."""

RegionRule = Callable[["Translator", Node], Ids | Items]
REGION_RULES: OpTable[RegionRule] = OpTable("region")


def size_key(size: Size) -> object:
    """Something hashable that is equal for sizes that are known to be equal."""
    return size if isinstance(size, int) else size.node.expr


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are known to be equal; symbolic ones are compared as expressions."""
    return bool(size_key(left) == size_key(right))


def known_number(arg: Any) -> float | int | bool | None:
    """The number that an operand is: itself, or what a tensor without dims is made of."""
    if isinstance(arg, (bool, int, float)):
        return arg
    if not isinstance(arg, Node) or arg.target not in NUMBER_TENSORS:
        return None
    value, number = tensor_value(arg), arg.args[-1]
    if value is None or value.dim() or not isinstance(number, (bool, int, float)):
        return None
    return torch.tensor(number, dtype=value.dtype).item()


def is_bfloat16(value: float) -> bool:
    """Whether a number is a bfloat16 (NaN does not count)."""
    return torch.tensor(value, dtype=torch.bfloat16).item() == value


def same_shape(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """Whether two shapes are known to be equal."""
    return len(left) == len(right) and all(
        same_size(a, b) for a, b in zip(left, right, strict=True)
    )


def form_of(shape: Sequence[Size], base: Sequence[Size]) -> Form | None:
    """The form that a tensor of this shape has over a base space, if any."""
    if same_shape(shape, base):
        return Form("plain", 1)
    if len(shape) == len(base) + 1 and same_shape(shape[1:], base):
        return Form("split", shape[0]) if isinstance(shape[0], int) else None
    if base and len(shape) == len(base) and same_shape(shape[1:], base[1:]):
        steps = _ratio(shape[0], base[0])
        return Form("merged", steps) if steps is not None and steps > 1 else None
    return None


def _ratio(whole: Size, part: Size) -> int | None:
    """The integer `whole / part`, if it is one."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    if isinstance(whole, int) or isinstance(part, int):
        return None
    ratio = whole.node.expr / part.node.expr
    return int(ratio) if ratio.is_Integer else None


def base_reference(
    inputs: Sequence[InputSpec], base: Sequence[Size]
) -> tuple[int, FormKind, int] | None:
    """An input whose shape shows the sizes of the base space: position, kind, time steps."""
    for position, spec in enumerate(inputs):
        value = tensor_value(spec.node)
        form = None if value is None else form_of(value.shape, base)
        if form is not None and not spec.windowed:
            return position, form.kind, form.steps
    return None


@dataclass
class Translator:
    """Builds one region's program, node by node."""

    base: tuple[Size, ...]
    inside: frozenset[Node]
    instructions: list[Instruction] = field(default_factory=list)
    known: dict[Instruction, int] = field(default_factory=dict)
    dtypes: dict[int, torch.dtype] = field(default_factory=dict)
    values: dict[Node, Ids | Items] = field(default_factory=dict)
    inputs: dict[InputSpec, int] = field(default_factory=dict)
    sums: dict[Node, tuple[Ids, tuple[int, ...]]] = field(default_factory=dict)
    _constants: dict[tuple[str, torch.dtype], int] = field(default_factory=dict)
    _narrow: set[int] = field(default_factory=set)

    def translate(self, node: Node) -> None:
        """Translate one node, whose inputs from the region are translated already.

        Raises:
            Untranslatable: its rule does not know what it is used for here.
        """
        rule = REGION_RULES.find(node.target)
        if rule is None:
            raise Untranslatable(f"no region rule for {node.target}")
        values = rule(self, node)
        result = tensor_value(node)
        if result is not None and node not in self.sums:
            self.form(node)
            if result.dtype == torch.bfloat16:
                values = tuple(self._rounded(value) for value in values)  # type: ignore[arg-type]
        self.values[node] = values

    def form(self, node: Node) -> Form:
        """The form of a node's tensor."""
        value = tensor_value(node)
        form = None if value is None else form_of(value.shape, self.base)
        if value is None or form is None or value.dtype not in SUPPORTED_DTYPES:
            raise Untranslatable(f"'{node.name}' has no form over the base space")
        return form

    def dtype(self, node: Node) -> torch.dtype:
        """The dtype in which a node's values are computed."""
        value = tensor_value(node)
        if value is None or value.dtype not in SUPPORTED_DTYPES:
            raise Untranslatable(f"'{node.name}' is of an unsupported dtype")
        return value_dtype_of(Buffer(value.dtype))

    def slices(self, arg: Any, like: Node) -> Ids:
        """The values of an operand of node `like`: one a slice, or one for all slices."""
        if not isinstance(arg, Node):
            raise Untranslatable(f"operand {arg!r} of '{like.name}'")
        if arg in self.inside:
            found = self.values[arg]
            if found and isinstance(found[0], tuple):
                raise Untranslatable(f"'{arg.name}' has several results")
            return found  # type: ignore[return-value]
        return self._load(arg, self.form(like))

    def operand(self, arg: Any, like: Node, dtype: torch.dtype) -> Ids:
        """As `slices`, converted to `dtype`; numbers become constants."""
        number = known_number(arg)
        if number is not None:
            return (self.constant(number, dtype),)
        return tuple(self.cast(i, dtype) for i in self.slices(arg, like))

    def _load(self, arg: Node, form: Form) -> Ids:
        value = tensor_value(arg)
        if value is None or value.dtype not in SUPPORTED_DTYPES:
            raise Untranslatable(f"'{arg.name}' is not a tensor of a supported dtype")
        own = form_of(value.shape, self.base)
        if own is not None and (own.kind == "plain" or own.steps == form.steps):
            kind, steps = own.kind, own.steps
        else:
            kind, steps = self._broadcast(value, form)
        spec = InputSpec(arg, kind)
        buffer = self.inputs.setdefault(spec, len(self.inputs))
        dtype = value_dtype_of(Buffer(value.dtype))
        loaded = tuple(self.emit(Load(buffer, t), dtype) for t in range(steps))
        if value.dtype == torch.bfloat16:
            self._narrow.update(loaded)
        return loaded

    def windowed(self, arg: Any, windows: Sequence[Window], fill: float = 0) -> Ids:
        """The values of an operand with sizes of its own: one a slice, seen through `windows`.

        Args:
            arg: a node outside of the region.
            windows: one for each base dim in which it has sizes of its own, ascending.
            fill: the value where a window finds no element.
        """
        value = tensor_value(arg) if isinstance(arg, Node) else None
        if value is None or arg in self.inside or value.dtype not in SUPPORTED_DTYPES:
            raise Untranslatable(f"operand {arg!r} cannot be read through windows")
        dims = tuple(window.dim for window in windows)
        shape: list[Size] = list(value.shape)
        lead = value.dim() - len(self.base)
        for dim in dims if lead in (0, 1) else ():
            shape[dim + lead] = self.base[dim]
        form = form_of(shape, self.base)
        if form is None:
            raise Untranslatable(f"'{arg.name}' has no form over the base space but for windows")
        buffer = self.inputs.setdefault(InputSpec(arg, form.kind, dims), len(self.inputs))
        loads = [Load(buffer, t, tuple(windows), fill) for t in range(form.steps)]
        return tuple(self.emit(load, value_dtype_of(Buffer(value.dtype))) for load in loads)

    def _broadcast(self, value: torch.Tensor, form: Form) -> tuple[FormKind, int]:
        """How a smaller tensor is addressed when it broadcasts to a tensor of this form."""
        rank = len(self.base)
        rest = list(value.shape[-rank:]) if rank else []
        lead = list(value.shape[: max(0, value.dim() - rank)])
        sizes = [1] * (rank - len(rest)) + rest
        fits = all(
            same_size(s, 1) or same_size(s, b) for s, b in zip(sizes, self.base, strict=True)
        )
        if form.kind == "merged" and sizes and not same_size(sizes[0], 1):
            fits = False
        if not fits or len(lead) > 1 or (lead and form.kind != "split"):
            raise Untranslatable(f"shape {tuple(value.shape)} does not broadcast to the base space")
        if not lead:
            return "plain", 1
        if isinstance(lead[0], int) and lead[0] in (1, form.steps):
            return "split", lead[0]
        raise Untranslatable(f"shape {tuple(value.shape)} does not broadcast over time")

    def emit(self, instruction: Instruction, dtype: torch.dtype) -> int:
        """Append an instruction with a value, or find it."""
        if instruction not in self.known:
            self.known[instruction] = len(self.instructions)
            self.dtypes[len(self.instructions)] = dtype
            self.instructions.append(instruction)
        return self.known[instruction]

    def constant(self, value: float | int | bool, dtype: torch.dtype) -> int:
        """A number of `dtype`; whole numbers wrap, as ATen's do."""
        if dtype == torch.bool:
            value = bool(value)
        elif dtype.is_floating_point:
            value = float(value)
        elif not math.isfinite(value) or value != int(value):
            raise Untranslatable(f"{value} is no number of {dtype}")
        else:
            info = torch.iinfo(dtype)
            value = (int(value) - info.min) % (1 << info.bits) + info.min
        # 0.0 == -0.0 == False, so equal constants of other bits must not be found as one.
        key = (repr(value), dtype)
        if key not in self._constants:
            self._constants[key] = len(self.instructions)
            self.dtypes[len(self.instructions)] = dtype
            self.instructions.append(Constant(value, dtype))
        return self._constants[key]

    def cast(self, value: int, dtype: torch.dtype) -> int:
        """A value in another dtype."""
        if self.dtypes[value] == dtype:
            return value
        if dtype == torch.bool:
            zero = self.constant(0, self.dtypes[value])
            return self.emit(Compute("ne", (value, zero), torch.bool), torch.bool)
        return self.emit(Compute("cast", (value,), dtype), dtype)

    def compute(self, op: str, *args: int, dtype: torch.dtype | None = None) -> int:
        """One operation; the result is of `dtype`, or of the dtype of the first argument."""
        result = dtype or self.dtypes[args[0]]
        return self.emit(Compute(op, args, result), result)

    def _rounded(self, value: int) -> int:
        """A float32 value rounded to bfloat16, unless it is one already."""
        if value in self._narrow:
            return value
        if self._keeps_narrow(self.instructions[value]):
            self._narrow.add(value)
            return value
        rounded = self.compute("round_bfloat16", value)
        self._narrow.add(rounded)
        return rounded

    def _keeps_narrow(self, instruction: Instruction) -> bool:
        """Whether the result is a bfloat16 because it is one of the arguments, or their like."""
        if isinstance(instruction, Constant):
            return is_bfloat16(float(instruction.value))
        if not isinstance(instruction, Compute):
            return False
        if instruction.op == "cast":
            return self.dtypes[instruction.args[0]] in (torch.bool, torch.uint8)
        args = [i for i in instruction.args if self.dtypes[i] == torch.float32]
        return instruction.op in NARROW_OPERATIONS and all(
            i in self._narrow or self._keeps_narrow(self.instructions[i]) for i in args
        )

    def finish(self, outputs: Sequence[Node]) -> RegionProgram:
        """Store the values of `outputs`, and drop what nothing needs."""
        buffers: list[Buffer] = []
        specs: list[OutputSpec] = []
        body: list[Instruction] = []
        for node in outputs:
            value = tensor_value(node)
            assert value is not None
            position = len(buffers)
            buffers.append(Buffer(value.dtype))
            if node in self.sums:
                ids, kept = self.sums[node]
                body += [ChannelSum(position, i) for i in ids]
                specs.append(OutputSpec(node, None, kept))
            else:
                form = self.form(node)
                ids = self.slices(node, node)
                ids = ids * form.steps if len(ids) == 1 else ids
                body += [Store(position, t, i) for t, i in enumerate(ids)]
                specs.append(OutputSpec(node, form))
        dtypes = {spec: _dtype(spec.node) for spec in self.inputs}
        program, used = _trimmed(
            [Buffer(dtypes[spec], spec.windowed) for spec in self.inputs], buffers, len(self.base),
            [*self.instructions, *body],
        )  # fmt: skip
        inputs = tuple(spec for i, spec in enumerate(self.inputs) if i in used)
        return RegionProgram(program, self.base, inputs, tuple(specs))


def _dtype(node: Node) -> torch.dtype:
    value = tensor_value(node)
    assert value is not None
    return value.dtype


def _trimmed(
    inputs: list[Buffer], outputs: list[Buffer], rank: int, instructions: list[Instruction]
) -> tuple[Program, list[int]]:
    """The program without dead instructions and inputs; which inputs are left."""
    live: set[int] = set()
    for position in range(len(instructions) - 1, -1, -1):
        instruction = instructions[position]
        if isinstance(instruction, (Store, ChannelSum)):
            live |= {position, instruction.value}
        elif position in live and isinstance(instruction, Compute):
            live |= set(instruction.args)
    order = [p for p in range(len(instructions)) if p in live]
    renamed = {old: new for new, old in enumerate(order)}
    loads = [i for p in order if isinstance(i := instructions[p], Load)]
    used = sorted({load.buffer for load in loads})
    buffers = {old: new for new, old in enumerate(used)}
    body = tuple(_renamed(instructions[p], renamed, buffers) for p in order)
    return Program(tuple(inputs[i] for i in used), tuple(outputs), rank, body), used


def _renamed(
    instruction: Instruction, values: dict[int, int], buffers: dict[int, int]
) -> Instruction:
    if isinstance(instruction, Load):
        return replace(instruction, buffer=buffers[instruction.buffer])
    if isinstance(instruction, Compute):
        args = tuple(values[a] for a in instruction.args)
        return Compute(instruction.op, args, instruction.dtype)
    if isinstance(instruction, Store):
        return Store(instruction.output, instruction.step, values[instruction.value])
    if isinstance(instruction, ChannelSum):
        return ChannelSum(instruction.output, values[instruction.value])
    return instruction
