"""The table of byte rules, complete: what each operator has to read and write at least.

Every operator that has a rule for FLOPs has one for bytes. That of most is `read_and_written`.
"""

from __future__ import annotations

from snnfx.op_counter import (
    byte_rules_norm,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    byte_rules_partial,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from snnfx.op_counter.byte_table import BYTES, read_and_written
from snnfx.op_counter.flop_rules import FLOPS

__all__ = ["BYTES"]

BYTES.rule(*(target for target in FLOPS if target not in BYTES))(read_and_written)
