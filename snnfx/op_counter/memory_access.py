"""Counting bytes that are read and written.

A lower bound: each operand of an operator is read once, each result written once; views cost
nothing. What a kernel reads again, and what stays in a cache between operators, depends on the
device. The table of rules is `snnfx.op_counter.byte_rules.BYTES`. Values are those of SpikingJelly
2.0 for every operator that it has a rule for, but for these.

Corrections
-----------

- `max_pool2d_with_indices_backward` reads the indices, and not the input, whose place among the
  operands was taken for theirs: `max_pool_backward_bytes`.
- `native_batch_norm`, training, writes the running statistics as well as it reads them: they change
  in place, as what ``add_`` changes does.
- `native_batch_norm_backward` writes the gradients that it is asked for, which were left out. With
  running statistics it reads these, and not the saved ones, which are empty then.
- Fused attention writes the row sums of its softmax besides its output; its backward reads them and
  the output besides the gradient, q, k, v and the mask: they are operands of the kernel.
- `logical_not` reads one operand; it was an error.
"""

from __future__ import annotations

from snnfx.op_counter.byte_rules import BYTES
from snnfx.op_counter.counter import TableCounter


class MemoryAccessCounter(TableCounter):
    """Counts the bytes that operators of forwards and backwards read and write at least.

    For `snnfx.op_counter.DispatchCounterMode`. It looks at shapes and dtypes only.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win over those of `BYTES`.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    table = BYTES
