"""Counting bytes that are read and written.

A lower bound: each operand of an operator is read once, each result written once; views cost
nothing. What a kernel reads again, and what stays in a cache between operators, depends on the
device. The table of rules is `snnfx.op_counter.byte_rules.BYTES`. Values are those of SpikingJelly
2.0 for every operator that it has a rule for, but for these.

Corrections
-----------

- `max_pool2d_with_indices_backward`: reads the input; here reads the indices: the second operand,
  taken for the indices, is the input: `max_pool_backward_bytes`.
- `native_batch_norm`, training: running statistics are read; here and written: they change in
  place, as operands of ``add_`` do.
- `native_batch_norm_backward`: writes nothing; here writes the gradients: they are results.
- `native_batch_norm_backward`, running statistics: reads saved ones, which are empty; here reads
  the running ones: that is what it computes with.
- fused attention: the output is written; here and the row sums of softmax: the backward reads
  them.
- fused attention, backward: reads gradient, q, k, v, mask; here and output and row sums: they are
  operands of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from snnfx.op_counter.byte_rules import BYTES
from snnfx.op_counter.counter import BaseCounter, Ignored, Rule, rules_of


class MemoryAccessCounter(BaseCounter):
    """Counts the bytes that operators of forwards and backwards read and write at least.

    For `snnfx.op_counter.DispatchCounterMode`. It looks at shapes and dtypes only.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win over those of `BYTES`.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    def __init__(
        self,
        extra_rules: Mapping[Any, Rule] | None = None,
        extra_ignore_modules: Iterable[Ignored] | None = None,
    ) -> None:
        super().__init__(rules_of(BYTES), extra_rules, extra_ignore_modules)
