"""The table of byte rules, which the modules ``byte_rules_*`` fill."""

from __future__ import annotations

from typing import Any

from snnfx.op_counter.counter import Rule
from snnfx.op_counter.operands import Args, Kwargs, operands, results, size_in_bytes
from snnfx.passes.optable import OpTable

BYTES: OpTable[Rule] = OpTable("bytes")
"""``rule(args, kwargs, out)``: the bytes that one call reads and writes."""


def read_and_written(args: Args, kwargs: Kwargs, out: Any) -> int:
    """All operands once and all results once; what is changed in place is both.

    As many bytes as there are elements, also where an operand is expanded.
    """
    written = size_in_bytes(results(args, out))
    return size_in_bytes(operands(args, kwargs, out)) + written
