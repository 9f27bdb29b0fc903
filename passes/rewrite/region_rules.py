"""The rules of `region_program`: what each operator is in a region."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx.kernels.bitpack_reference import is_float32
from snnfx.passes.fxgraph import node_value, schema_of, tensor_value
from snnfx.passes.rewrite.region_program import (
    REGION_RULES,
    Ids,
    Items,
    Translator,
    Untranslatable,
    form_of,
    same_shape,
)

aten = torch.ops.aten
snn = torch.ops.snnfx

UNARY = {
    aten.neg: "neg", aten.abs: "abs", aten.reciprocal: "reciprocal", aten.sqrt: "sqrt",
    aten.rsqrt: "rsqrt", aten.exp: "exp", aten.log: "log", aten.log1p: "log1p",
    aten.tanh: "tanh", aten.sigmoid: "sigmoid", aten.erf: "erf", aten.sin: "sin",
    aten.cos: "cos", aten.sign: "sign", aten.floor: "floor", aten.ceil: "ceil",
    aten.trunc: "trunc", aten.round.default: "round", aten.relu: "relu",
}  # fmt: skip
BINARY = {
    aten.mul: "mul", aten.div.Tensor: "div", aten.div.Scalar: "div", aten.maximum: "maximum",
    aten.minimum: "minimum",
}  # fmt: skip
COMPARISONS = {
    aten.eq: "eq", aten.ne: "ne", aten.lt: "lt", aten.le: "le", aten.gt: "gt", aten.ge: "ge",
}  # fmt: skip
LOGICAL = {
    aten.logical_and: "logical_and", aten.logical_or: "logical_or",
    aten.logical_xor: "logical_xor",
}  # fmt: skip
BITWISE = {
    aten.bitwise_and: "bitwise_and", aten.bitwise_or: "bitwise_or",
    aten.bitwise_xor: "bitwise_xor",
}  # fmt: skip


def arguments(node: Node) -> dict[str, Any]:
    """The operator's arguments by name, defaults included."""
    schema = schema_of(node)
    if schema is None or schema.is_mutable:
        raise Untranslatable(f"'{node.name}' calls no functional operator")
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= zip((a.name for a in schema.arguments), node.args, strict=False)
    return named | dict(node.kwargs)


def number(node: Node, value: Any, what: str) -> float | int | bool:
    """An argument that is a number."""
    if not isinstance(value, (bool, int, float)):
        raise Untranslatable(f"{what} of '{node.name}' is no known number")
    return value


def _stored(arg: Any, dtype: torch.dtype) -> Any:
    """A number as the operator sees it: some round it to the tensors' bfloat16 first."""
    if dtype == torch.bfloat16 and isinstance(arg, (int, float)):
        return torch.tensor(arg, dtype=dtype).item()
    return arg


def _zip(*operands: Ids) -> list[tuple[int, ...]]:
    """Operands slice by slice; one of a single slice goes with every slice of the others."""
    steps = max(len(ids) for ids in operands)
    if any(len(ids) not in (1, steps) for ids in operands):
        raise Untranslatable("operands have different numbers of time slices")
    return list(zip(*(ids * steps if len(ids) == 1 else ids for ids in operands), strict=True))


def _map(translator: Translator, op: str, *operands: Ids, dtype: torch.dtype | None = None) -> Ids:
    return tuple(translator.compute(op, *args, dtype=dtype) for args in _zip(*operands))


def _require_float(dtype: torch.dtype, node: Node) -> None:
    if not dtype.is_floating_point:
        raise Untranslatable(f"'{node.name}' computes in {dtype}")


@REGION_RULES.rule(*UNARY)
def unary(translator: Translator, node: Node) -> Ids:
    """One operand, in the dtype of the result."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    return _map(translator, _named(UNARY, node), translator.operand(node.args[0], node, dtype))


@REGION_RULES.rule(*BINARY)
def binary(translator: Translator, node: Node) -> Ids:
    """Two operands, in the dtype of the result."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    if node.kwargs:
        raise Untranslatable(f"'{node.name}' has keyword arguments")
    left, right = (translator.operand(arg, node, dtype) for arg in node.args)
    return _map(translator, _named(BINARY, node), left, right)


@REGION_RULES.rule(aten.add, aten.sub, aten.rsub)
def addition(translator: Translator, node: Node) -> Ids:
    """``a + alpha * b``, ``a - alpha * b`` or ``b - alpha * a``.

    ATen does not round the product before the sum: equal bits only if alpha is a power of two.
    """
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    given = arguments(node)
    pair = (given["self"], given["other"])
    left, right = (translator.operand(_stored(arg, _dtype_of(node)), node, dtype) for arg in pair)
    alpha = number(node, given["alpha"], "alpha")
    name = str(node.target)
    if "rsub" in name:
        left, right = right, left
    if alpha != 1:
        right = _map(translator, "mul", right, (translator.constant(alpha, dtype),))
    return _map(translator, "sub" if "sub" in name else "add", left, right)


@REGION_RULES.rule(*COMPARISONS)
def comparison(translator: Translator, node: Node) -> Ids:
    """Two operands in the dtype that they promote to."""
    left, right = (_operand_value(arg) for arg in node.args)
    promoted = torch.result_type(left, right)
    dtype = torch.float32 if promoted == torch.bfloat16 else promoted
    operands = (_stored(arg, promoted) for arg in node.args)
    ids = [translator.operand(arg, node, dtype) for arg in operands]
    return _map(translator, _named(COMPARISONS, node), *ids, dtype=torch.bool)


def _dtype_of(node: Node) -> torch.dtype:
    value = tensor_value(node)
    assert value is not None, "the rule has asked for the dtype of its values"
    return value.dtype


def _operand_value(arg: Any) -> Any:
    return node_value(arg) if isinstance(arg, Node) else arg


@REGION_RULES.rule(*LOGICAL)
def logical(translator: Translator, node: Node) -> Ids:
    """Two operands as bool."""
    ids = [translator.operand(arg, node, torch.bool) for arg in node.args]
    return _map(translator, _named(LOGICAL, node), *ids)


@REGION_RULES.rule(aten.logical_not)
def logical_not(translator: Translator, node: Node) -> Ids:
    """One operand as bool."""
    return _map(translator, "logical_not", translator.operand(node.args[0], node, torch.bool))


@REGION_RULES.rule(*BITWISE)
def bitwise(translator: Translator, node: Node) -> Ids:
    """Two operands in the dtype of the result."""
    dtype = translator.dtype(node)
    ids = [translator.operand(arg, node, dtype) for arg in node.args]
    table = LOGICAL if dtype == torch.bool else BITWISE
    name = _named(BITWISE, node)
    return _map(translator, name.replace("bitwise", "logical") if table is LOGICAL else name, *ids)


@REGION_RULES.rule(aten.bitwise_not)
def bitwise_not(translator: Translator, node: Node) -> Ids:
    """One operand; of bool the logical one."""
    dtype = translator.dtype(node)
    name = "logical_not" if dtype == torch.bool else "bitwise_not"
    return _map(translator, name, translator.operand(node.args[0], node, dtype))


@REGION_RULES.rule(aten.pow.Tensor_Scalar)
def power(translator: Translator, node: Node) -> Ids:
    """A constant power."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    exponent = number(node, node.args[1], "exponent")
    ids = translator.operand(node.args[0], node, dtype)
    if exponent == 1:
        return ids
    return _map(translator, "pow", ids, (translator.constant(exponent, dtype),))


@REGION_RULES.rule(aten.square)
def square(translator: Translator, node: Node) -> Ids:
    """``x * x``."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    ids = translator.operand(node.args[0], node, dtype)
    return _map(translator, "mul", ids, ids)


@REGION_RULES.rule(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def clamp(translator: Translator, node: Node) -> Ids:
    """Bounds that are numbers."""
    dtype = translator.dtype(node)
    given = arguments(node)
    low, high = given.get("min"), given.get("max")
    ids = translator.operand(node.args[0], node, dtype)
    for name, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            value = number(node, bound, "bound")
            ids = _map(translator, name, ids, (translator.constant(value, dtype),))
    return ids


@REGION_RULES.rule(
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar
)
def where(translator: Translator, node: Node) -> Ids:
    """A condition and two operands in the dtype of the result."""
    dtype = translator.dtype(node)
    condition = translator.operand(node.args[0], node, torch.bool)
    left, right = (translator.operand(arg, node, dtype) for arg in node.args[1:])
    return _map(translator, "where", condition, left, right, dtype=dtype)


@REGION_RULES.rule(aten.sigmoid_backward, aten.tanh_backward)
def activation_backward(translator: Translator, node: Node) -> Ids:
    """``g * (1 - y) * y`` of a sigmoid, ``g * (1 - y * y)`` of a tanh."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    grad, result = (translator.operand(arg, node, dtype) for arg in node.args)
    one = (translator.constant(1, dtype),)
    if "tanh" in str(node.target):
        squared = _map(translator, "mul", result, result)
        return _map(translator, "mul", grad, _map(translator, "sub", one, squared))
    rest = _map(translator, "mul", grad, _map(translator, "sub", one, result))
    return _map(translator, "mul", rest, result)


@REGION_RULES.rule(aten.threshold_backward)
def threshold_backward(translator: Translator, node: Node) -> Ids:
    """The gradient where the operand is above a number, else 0."""
    dtype = translator.dtype(node)
    grad, operand = (translator.operand(arg, node, dtype) for arg in node.args[:2])
    threshold = number(node, node.args[2], "threshold")
    below = _map(translator, "le", operand, (translator.constant(threshold, dtype),),
                 dtype=torch.bool)  # fmt: skip
    return _map(translator, "where", below, (translator.constant(0, dtype),), grad, dtype=dtype)


@REGION_RULES.rule(
    aten._to_copy, aten.clone, aten.alias, aten.detach, torch.ops.prims.convert_element_type,
    aten.expand,
)  # fmt: skip
def conversion(translator: Translator, node: Node) -> Ids:
    """The operand in the dtype of the result, broadcast if need be."""
    source = tensor_value(node.args[0]) if isinstance(node.args[0], Node) else None
    value = tensor_value(node)
    if source is None or value is None or source.device != value.device:
        raise Untranslatable(f"'{node.name}' changes the device")
    dtype = translator.dtype(node)
    from_float = translator.dtype(node.args[0]).is_floating_point  # type: ignore[arg-type]
    if from_float and not dtype.is_floating_point and dtype != torch.bool:
        raise Untranslatable(f"'{node.name}' rounds to integers")
    return translator.operand(node.args[0], node, dtype)


@REGION_RULES.rule(
    aten.full, aten.full_like, aten.zeros, aten.zeros_like, aten.ones, aten.ones_like
)
def filled(translator: Translator, node: Node) -> Ids:
    """A constant tensor."""
    name = str(node.target)
    filler = 0 if "zeros" in name else 1 if "ones" in name else arguments(node)["fill_value"]
    form = translator.form(node)
    value = translator.constant(number(node, filler, "value"), translator.dtype(node))
    return (value,) * form.steps


@REGION_RULES.rule(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
def view(translator: Translator, node: Node) -> Ids:
    """A view that only regroups time: all else would move elements between positions."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = translator.form(source), translator.form(node)
    if before.steps != after.steps or _dtype_of(source) != _dtype_of(node):
        raise Untranslatable(f"'{node.name}' moves elements")
    if source not in translator.inside:
        return translator.slices(source, source)
    return translator.slices(source, node)


@REGION_RULES.rule(aten.repeat)
def repeat(translator: Translator, node: Node) -> Ids:
    """The same slice at every time step."""
    source, counts = node.args
    value, form = tensor_value(source), translator.form(node)  # type: ignore[arg-type]
    assert isinstance(counts, (list, tuple))
    if value is None or form.kind != "split" or any(c != 1 for c in counts[1:]):
        raise Untranslatable(f"'{node.name}' repeats along a dimension that is not time")
    ids = translator.slices(source, node)
    if len(ids) != 1:
        raise Untranslatable(f"'{node.name}' repeats several time slices")
    return ids * form.steps


@REGION_RULES.rule(aten.select.int)
def select(translator: Translator, node: Node) -> Ids:
    """One time slice."""
    source, dim, index = node.args
    steps = _steps_along_time(translator, source)
    if not isinstance(source, Node) or not isinstance(index, int) or dim != 0:
        raise Untranslatable(f"'{node.name}' selects along a dimension that is not time")
    ids = _every_step(translator.slices(source, source), steps)
    return (ids[index % steps],)


@REGION_RULES.rule(aten.unbind)
def unbind(translator: Translator, node: Node) -> Items:
    """All time slices."""
    steps = _steps_along_time(translator, node.args[0])
    if arguments(node)["dim"] != 0:
        raise Untranslatable(f"'{node.name}' takes apart a dimension that is not time")
    ids = translator.slices(node.args[0], node.args[0])  # type: ignore[arg-type]
    return tuple((i,) for i in _every_step(ids, steps))


def _every_step(ids: Ids, steps: int) -> Ids:
    """One value a step, of values that may be the same at all steps."""
    return ids * steps if len(ids) == 1 else ids


def _steps_along_time(translator: Translator, source: Any) -> int:
    value = tensor_value(source) if isinstance(source, Node) else None
    form = None if value is None else form_of(value.shape, translator.base)
    if form is None or form.kind != "split":
        raise Untranslatable("time is not a dimension of its own")
    return form.steps


@REGION_RULES.rule(operator.getitem)
def getitem(translator: Translator, node: Node) -> Ids:
    """One of several results."""
    source, index = node.args
    items = translator.values.get(source) if isinstance(source, Node) else None
    if not items or not isinstance(items[0], tuple) or not isinstance(index, int):
        raise Untranslatable(f"'{node.name}' picks a result from outside the region")
    return items[index]  # type: ignore[return-value]


@REGION_RULES.rule(aten.stack)
def stack(translator: Translator, node: Node) -> Ids:
    """Slices along time."""
    value = tensor_value(node)
    if value is None or arguments(node)["dim"] not in (0, -value.dim()):
        raise Untranslatable(f"'{node.name}' stacks along a dimension that is not time")
    ids: list[int] = []
    assert isinstance(node.args[0], (list, tuple))
    for part in node.args[0]:
        whole = tensor_value(part) if isinstance(part, Node) else None
        if whole is None or not same_shape(whole.shape, translator.base):
            raise Untranslatable(f"'{node.name}' stacks what is no time slice")
        one = translator.slices(part, part)  # type: ignore[arg-type]
        ids += one
    return tuple(ids)


@REGION_RULES.rule(aten.sum.dim_IntList)
def channel_sum(translator: Translator, node: Node) -> Ids:
    """A sum over time and some of the base dims; only ever a result of the region."""
    given = arguments(node)
    source, dims = given["self"], given["dim"]
    if source not in translator.inside or given["dtype"] is not None or given["keepdim"]:
        raise Untranslatable(f"'{node.name}' sums in a form that regions do not")
    value = tensor_value(source)
    if value is None or value.dtype not in (torch.float32, torch.float64) or not dims:
        raise Untranslatable(f"'{node.name}' sums what regions do not")
    form = translator.form(source)
    summed = {d % value.dim() for d in dims}
    offset = 1 if form.kind == "split" else 0
    kept = tuple(d - offset for d in range(value.dim()) if d not in summed)
    if any(d < 0 for d in kept) or (form.kind == "merged" and 0 in kept) or not kept:
        raise Untranslatable(f"'{node.name}' keeps time apart")
    translator.sums[node] = (_every_step(translator.slices(source, source), form.steps), kept)
    return ()


@REGION_RULES.rule(snn.pack_bits)
def pack_bits(translator: Translator, node: Node) -> Ids:
    """Codes of several steps in one byte, along time."""
    given = arguments(node)
    source, bits = given["x"], given["bits"]
    if given["layout"] != "time":
        raise Untranslatable(f"'{node.name}' packs neighbours")
    per_byte = 8 // bits
    ids = _every_step(translator.slices(source, source), _steps_along_time(translator, source))
    codes = [_code(translator, i, given["scale"], given["lo"]) for i in ids]
    packed: list[int] = []
    for start in range(0, len(codes), per_byte):
        byte = codes[start]
        for place, code in enumerate(codes[start + 1 : start + per_byte], start=1):
            shift = translator.constant(place * bits, torch.int32)
            byte = translator.compute(
                "bitwise_or", byte, translator.compute("shift_left", code, shift)
            )
        packed.append(translator.cast(byte, torch.uint8))
    return tuple(packed)


def _code(translator: Translator, value: int, scale: float, lo: int) -> int:
    """The integer ``value / scale - lo``; the quotient is rounded, as it may fall short of it."""
    dtype = translator.dtypes[value]
    if scale != 1:
        if not dtype.is_floating_point:
            raise Untranslatable(f"a grid of {dtype} with scale {scale}")
        value = translator.compute("div", value, translator.constant(scale, dtype))
        value = translator.compute("round", value)
    code = translator.cast(value, torch.int32)
    if lo:
        code = translator.compute("sub", code, translator.constant(lo, torch.int32))
    return code


@REGION_RULES.rule(snn.unpack_bits)
def unpack_bits(translator: Translator, node: Node) -> Ids:
    """The steps of bytes that were packed along time."""
    given = arguments(node)
    packed, bits, form = given["packed"], given["bits"], translator.form(node)
    if given["layout"] != "time" or form.kind != "split":
        raise Untranslatable(f"'{node.name}' unpacks neighbours")
    source = _every_step(translator.slices(packed, packed), _steps_along_time(translator, packed))
    mask = translator.constant((1 << bits) - 1, torch.int32)
    steps: list[int] = []
    for t in range(form.steps):
        byte, place = divmod(t, 8 // bits)
        code = translator.cast(source[byte], torch.int32)
        if place:
            shift = translator.constant(place * bits, torch.int32)
            code = translator.compute("shift_right", code, shift)
        code = translator.compute("bitwise_and", code, mask)
        if given["lo"]:
            code = translator.compute("add", code, translator.constant(given["lo"], torch.int32))
        steps.append(grid_value(translator, code, given["scale"], translator.dtype(node)))
    return tuple(steps)


def grid_value(translator: Translator, code: int, scale: float, dtype: torch.dtype) -> int:
    """``code * scale``, rounded once: in float64 if the scale is no float32."""
    if scale == 1:
        return translator.cast(code, dtype)
    wide = dtype == torch.float32 and not is_float32(scale)
    inner = torch.float64 if wide else dtype
    factor = translator.constant(scale, inner)
    return translator.cast(translator.compute("mul", translator.cast(code, inner), factor), dtype)


def _named(table: dict[Any, str], node: Node) -> str:
    target: Any = node.target
    return table[target] if target in table else table[target.overloadpacket]
