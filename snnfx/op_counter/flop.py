"""Counting floating-point operations.

One multiplication, addition, division, comparison or call of an elementary function (exp, log,
sqrt, ...) is one operation; the table of rules is `snnfx.op_counter.flop_rules.FLOPS`. Values are
those of SpikingJelly 2.0 for every operator that it has a rule for, but for these.

Corrections
-----------

- `convolution_backward`, grouped: the weight gradient takes as many products as the forward, as
  each weight belongs to one group; it was `groups` times as much: `convolution_backward_flops`.
- `native_batch_norm_backward` without a weight: ``10 n - c``, or n with running statistics; it was
  an error: `flop_rules_norm`.
- `max_pool2d_with_indices`, `avg_pool2d` with a kernel of one number: k * k positions, as ATen
  takes it for both dimensions; it was an error, or k in a list of one.
- `add.Scalar`, `sub.Scalar`, `rsub.Scalar` with a factor, which is given by its position: it is a
  product; it was ignored.
- `rsub` with a factor: ``rsub(x, y) = y - alpha x`` scales x; elements of y were counted.
- `sum` of nothing to m zeros, the gradient of a bias of an empty batch: no additions; it was -m.
"""

from __future__ import annotations

from snnfx.op_counter.counter import TableCounter
from snnfx.op_counter.flop_rules import FLOPS


class FlopCounter(TableCounter):
    """Counts the floating-point operations of forwards and backwards.

    For `snnfx.op_counter.DispatchCounterMode`. It looks at shapes only.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win over those of `FLOPS`.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    table = FLOPS
