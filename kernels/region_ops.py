"""The pointwise operations of a region: each one's C++ expression beside its torch reference.

Types in C++: float32 is ``float``, float64 ``double``, int32 and int64 their fixed-width integers.
bool and uint8 are held in a ``word`` of the width of the program's other values (int32 or int64),
since a vectoriser that meets bytes beside floats picks its vector length from the bytes.

Arithmetic follows ATen's CPU kernels bit for bit; functions such as ``exp`` are within 4 units in
the last place (the bound of glibc's vector math). ``sqrt`` is correctly rounded, which ATen's is
not where it calls MKL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from snnfx.errors import KernelError

FLOATS = frozenset({torch.float32, torch.float64})
INTEGERS = frozenset({torch.uint8, torch.int32, torch.int64})
BOOL = frozenset({torch.bool})
NUMBERS = FLOATS | INTEGERS
BITS = INTEGERS | BOOL
EVERY = NUMBERS | BOOL

Reference = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Operation:
    """One pointwise operation.

    Attributes:
        name: what `Compute.op` says.
        arity: number of arguments.
        accepts: dtypes allowed for the arguments, which must all be of one dtype (for ``where``:
            the second and third; its first is bool).
        result: ``"same"`` as the arguments, ``"bool"``, or ``"any"`` (given by the instruction).
        cpp: the C++ expression, with ``{0}``, ``{1}`` and ``{2}`` for the arguments.
        reference: the same on torch tensors.
        wraps: the expression can leave the range of bool or uint8 in a ``word``.
        is_exact: float results equal ATen's bit for bit.
    """

    name: str
    arity: int
    accepts: frozenset[torch.dtype]
    result: str
    cpp: str
    reference: Reference
    wraps: bool = False
    is_exact: bool = True


def _power(x: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """`x` to a constant power: ATen computes some exponents as products and roots."""
    return torch.pow(x, exponent.item())


def _round_bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def _function(name: str, reference: Reference) -> Operation:
    """A function of one float that ATen rounds in its own way."""
    return Operation(name, 1, FLOATS, "same", f"f_{name}({{0}})", reference, is_exact=False)


def _float(name: str, cpp: str, reference: Reference) -> Operation:
    return Operation(name, 1, FLOATS, "same", cpp, reference)


def _compare(name: str, sign: str, reference: Reference) -> Operation:
    return Operation(name, 2, EVERY, "bool", f"{{0}} {sign} {{1}}", reference)


def _binary(
    name: str, accepts: frozenset[torch.dtype], cpp: str, reference: Reference, *, wraps: bool
) -> Operation:
    return Operation(name, 2, accepts, "same", cpp, reference, wraps=wraps)


_OPERATIONS = (
    _binary("add", NUMBERS, "{0} + {1}", torch.add, wraps=True),
    _binary("sub", NUMBERS, "{0} - {1}", torch.sub, wraps=True),
    _binary("mul", NUMBERS, "{0} * {1}", torch.mul, wraps=True),
    _binary("div", FLOATS, "{0} / {1}", torch.div, wraps=False),
    _binary("maximum", EVERY, "f_maximum({0}, {1})", torch.maximum, wraps=False),
    _binary("minimum", EVERY, "f_minimum({0}, {1})", torch.minimum, wraps=False),
    Operation("pow", 2, FLOATS, "same", "f_pow({0}, {1})", _power, is_exact=False),
    Operation("neg", 1, NUMBERS, "same", "-{0}", torch.neg, wraps=True),
    Operation("abs", 1, NUMBERS, "same", "f_abs({0})", torch.abs),
    Operation("sign", 1, NUMBERS, "same", "({0} > 0) - ({0} < 0)", torch.sign),
    Operation("relu", 1, NUMBERS, "same", "f_relu({0})", torch.relu),
    _float("reciprocal", "1 / {0}", torch.reciprocal),
    _function("sqrt", torch.sqrt),
    _float("rsqrt", "1 / f_sqrt({0})", torch.rsqrt),
    _float("floor", "f_floor({0})", torch.floor),
    _float("ceil", "f_ceil({0})", torch.ceil),
    _float("trunc", "f_trunc({0})", torch.trunc),
    _float("round", "f_round({0})", torch.round),
    Operation(
        "round_bfloat16",
        1,
        frozenset({torch.float32}),
        "same",
        "f_round_bfloat16({0})",
        _round_bfloat16,
    ),
    _function("exp", torch.exp),
    _function("log", torch.log),
    _function("log1p", torch.log1p),
    _function("tanh", torch.tanh),
    _function("sigmoid", torch.sigmoid),
    _function("erf", torch.erf),
    _function("sin", torch.sin),
    _function("cos", torch.cos),
    Operation("isnan", 1, FLOATS, "bool", "{0} != {0}", torch.isnan),
    Operation("where", 3, EVERY, "same", "{0} ? {1} : {2}", torch.where),
    Operation("cast", 1, EVERY, "any", "{0}", torch.Tensor.to, wraps=True),
    _compare("eq", "==", torch.eq),
    _compare("ne", "!=", torch.ne),
    _compare("lt", "<", torch.lt),
    _compare("le", "<=", torch.le),
    _compare("gt", ">", torch.gt),
    _compare("ge", ">=", torch.ge),
    _binary("logical_and", BOOL, "{0} & {1}", torch.logical_and, wraps=False),
    _binary("logical_or", BOOL, "{0} | {1}", torch.logical_or, wraps=False),
    _binary("logical_xor", BOOL, "{0} ^ {1}", torch.logical_xor, wraps=False),
    Operation("logical_not", 1, BOOL, "same", "{0} ^ 1", torch.logical_not),
    _binary("bitwise_and", BITS, "{0} & {1}", torch.bitwise_and, wraps=False),
    _binary("bitwise_or", BITS, "{0} | {1}", torch.bitwise_or, wraps=False),
    _binary("bitwise_xor", BITS, "{0} ^ {1}", torch.bitwise_xor, wraps=False),
    Operation("bitwise_not", 1, BITS, "same", "~{0}", torch.bitwise_not, wraps=True),
    _binary("shift_left", INTEGERS, "f_shift_left({0}, {1})", torch.bitwise_left_shift, wraps=True),
    _binary(
        "shift_right", INTEGERS, "f_shift_right({0}, {1})", torch.bitwise_right_shift, wraps=False
    ),
)

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _OPERATIONS}
"""All operations by name."""


def operation(name: str) -> Operation:
    """The operation called `name`.

    Raises:
        KernelError: there is none.
    """
    if name not in OPERATIONS:
        raise KernelError(f"regions have no operation '{name}'; known: {', '.join(OPERATIONS)}")
    return OPERATIONS[name]
