"""The table of FLOP rules, which the modules ``flop_rules_*`` fill; see `snnfx.op_counter.flop`."""

from __future__ import annotations

from snnfx.op_counter.counter import Rule
from snnfx.passes.optable import OpTable

FLOPS: OpTable[Rule] = OpTable("flops")
"""``rule(args, kwargs, out)``: the floating-point operations of one call."""
