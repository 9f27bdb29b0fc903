"""The rules of `region_program`: what each operator is in a region."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx.passes.fxgraph import node_value, tensor_value
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
    """``a + alpha * b``, ``a - alpha * b`` or ``b - alpha * a``."""
    dtype = translator.dtype(node)
    _require_float(dtype, node)
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    left, right = (translator.operand(arg, node, dtype) for arg in node.args[:2])
    name = str(node.target)
    if "rsub" in name:
        left, right = right, left
    if alpha != 1:
        if not isinstance(alpha, (int, float)):
            raise Untranslatable(f"alpha of '{node.name}'")
        right = _map(translator, "mul", right, (translator.constant(alpha, dtype),))
    return _map(translator, "sub" if "sub" in name else "add", left, right)


@REGION_RULES.rule(*COMPARISONS)
def comparison(translator: Translator, node: Node) -> Ids:
    """Two operands in the dtype that they promote to."""
    left, right = (_operand_value(arg) for arg in node.args)
    promoted = torch.result_type(left, right)
    dtype = torch.float32 if promoted == torch.bfloat16 else promoted
    ids = [translator.operand(arg, node, dtype) for arg in node.args]
    return _map(translator, _named(COMPARISONS, node), *ids, dtype=torch.bool)


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
    exponent = node.args[1]
    if not isinstance(exponent, (int, float)):
        raise Untranslatable(f"exponent of '{node.name}'")
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
    bounds = list(node.args[1:]) + [node.kwargs.get("min"), node.kwargs.get("max")]
    if "clamp_min" in str(node.target):
        low, high = bounds[0], None
    elif "clamp_max" in str(node.target):
        low, high = None, bounds[0]
    else:
        given = list(node.args[1:]) + [None, None]
        low, high = node.kwargs.get("min", given[0]), node.kwargs.get("max", given[1])
    ids = translator.operand(node.args[0], node, dtype)
    for name, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            if not isinstance(bound, (int, float)):
                raise Untranslatable(f"bound of '{node.name}'")
            ids = _map(translator, name, ids, (translator.constant(bound, dtype),))
    return ids


@REGION_RULES.rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
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
    threshold = node.args[2]
    if not isinstance(threshold, (int, float)):
        raise Untranslatable(f"threshold of '{node.name}'")
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
    number = 0 if "zeros" in name else 1 if "ones" in name else node.args[1]
    if not isinstance(number, (bool, int, float)):
        raise Untranslatable(f"value of '{node.name}'")
    form = translator.form(node)
    return (translator.constant(number, translator.dtype(node)),) * form.steps


@REGION_RULES.rule(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
def view(translator: Translator, node: Node) -> Ids:
    """A view that only regroups time: all else would move elements between positions."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = tensor_value(source), translator.form(node)
    form = None if before is None else form_of(before.shape, translator.base)
    if form is None or form.steps != after.steps:
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
    if not isinstance(index, int) or dim != 0:
        raise Untranslatable(f"'{node.name}' selects along a dimension that is not time")
    ids = translator.slices(source, source)  # type: ignore[arg-type]
    return (ids[0] if len(ids) == 1 else ids[index % steps],)


@REGION_RULES.rule(aten.unbind)
def unbind(translator: Translator, node: Node) -> Items:
    """All time slices."""
    dim = node.args[1] if len(node.args) > 1 else 0
    steps = _steps_along_time(translator, node.args[0])
    if dim != 0:
        raise Untranslatable(f"'{node.name}' takes apart a dimension that is not time")
    ids = translator.slices(node.args[0], node.args[0])  # type: ignore[arg-type]
    return tuple((i,) for i in (ids * steps if len(ids) == 1 else ids))


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
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    value = tensor_value(node)
    if value is None or dim not in (0, -value.dim()):
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
    source, dims = node.args[0], node.args[1]
    value = tensor_value(source) if isinstance(source, Node) else None
    if value is None or source not in translator.inside or node.kwargs:
        raise Untranslatable(f"'{node.name}' sums what is not computed in the region")
    form = form_of(value.shape, translator.base)
    keeps = len(node.args) > 2 and bool(node.args[2])
    if form is None or not isinstance(dims, (list, tuple)) or not value.dtype.is_floating_point:
        raise Untranslatable(f"'{node.name}' has no form over the base space")
    if value.dtype == torch.bfloat16 or keeps:
        raise Untranslatable(f"'{node.name}' sums in a form that regions do not")
    summed = {d % value.dim() for d in dims}  # type: ignore[operator]
    offset = 1 if form.kind == "split" else 0
    kept = tuple(d - offset for d in range(value.dim()) if d not in summed)
    if any(d < 0 for d in kept) or (form.kind == "merged" and 0 in kept) or not kept:
        raise Untranslatable(f"'{node.name}' keeps time apart")
    ids = translator.slices(source, source)  # type: ignore[arg-type]
    translator.sums[node] = (ids * form.steps if len(ids) == 1 else ids, kept)
    return ()


@REGION_RULES.rule(snn.pack_bits)
def pack_bits(translator: Translator, node: Node) -> Ids:
    """Codes of several steps in one byte, along time."""
    source, bits, layout, scale, lo = node.args
    if layout != "time" or not isinstance(source, Node):
        raise Untranslatable(f"'{node.name}' packs neighbours")
    assert isinstance(bits, int)
    _steps_along_time(translator, source)
    per_byte = 8 // bits
    codes = [_code(translator, i, scale, lo) for i in translator.slices(source, source)]
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


def _code(translator: Translator, value: int, scale: Any, lo: Any) -> int:
    """The integer ``value / scale - lo``."""
    dtype = translator.dtypes[value]
    if scale != 1.0:
        value = translator.compute("div", value, translator.constant(scale, dtype))
    code = translator.cast(value, torch.int32)
    if lo:
        code = translator.compute("sub", code, translator.constant(lo, torch.int32))
    return code


@REGION_RULES.rule(snn.unpack_bits)
def unpack_bits(translator: Translator, node: Node) -> Ids:
    """The steps of bytes that were packed along time."""
    packed, shape, _, bits, layout, scale, lo = node.args
    dtype = translator.dtype(node)
    form = translator.form(node)
    if layout != "time" or form.kind != "split":
        raise Untranslatable(f"'{node.name}' unpacks neighbours")
    assert isinstance(bits, int)
    assert isinstance(shape, (list, tuple))
    source = translator.slices(packed, packed)  # type: ignore[arg-type]
    steps: list[int] = []
    for t in range(form.steps):
        byte, place = divmod(t, 8 // bits)
        value = translator.cast(source[byte], torch.int32)
        if place:
            shift = translator.constant(place * bits, torch.int32)
            value = translator.compute("shift_right", value, shift)
        mask = translator.constant((1 << bits) - 1, torch.int32)
        value = translator.compute("bitwise_and", value, mask)
        if lo:
            value = translator.compute("add", value, translator.constant(lo, torch.int32))  # type: ignore[arg-type]
        value = translator.cast(value, dtype)
        if scale != 1.0:
            value = translator.compute("mul", value, translator.constant(scale, dtype))  # type: ignore[arg-type]
        steps.append(value)
    return tuple(steps)


def _named(table: dict[Any, str], node: Node) -> str:
    target: Any = node.target
    return table[target] if target in table else table[target.overloadpacket]
