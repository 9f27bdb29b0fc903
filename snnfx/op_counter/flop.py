"""Counting floating-point operations.

One multiplication, addition, division, comparison or call of an elementary function (exp, log,
sqrt, ...) is one operation; the table of rules is `snnfx.op_counter.flop_rules.FLOPS`. Values are
those of SpikingJelly 2.0 for every operator that it has a rule for, but for these.

Corrections
-----------

- `convolution_backward`, grouped: weight gradient times `groups`; here as many products as the
  forward: each weight belongs to one group: `convolution_backward_flops`.
- `native_batch_norm_backward`, no weight: an error; here ``10 n - c``: `flop_rules_norm`.
- `native_batch_norm_backward`, no weight, running statistics: an error; here ``n``: a factor less.
- `max_pool2d_with_indices`, `avg_pool2d`, kernel of one number: an error, or k for k * k; here k *
  k positions: ATen takes one number for both dimensions.
- `add.Scalar`, `sub.Scalar`, `rsub.Scalar`, factor given by its position: ignored; here counted:
  the factor is no keyword there.
- `rsub`, a factor: scales the other operand; here scales the first: ``rsub(x, y) = y - alpha x``.
- `sum` and others of nothing, gradient of a bias of an empty batch: ``-m``; here 0: no additions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from snnfx.op_counter.counter import BaseCounter, Ignored, Rule, rules_of
from snnfx.op_counter.flop_rules import FLOPS


class FlopCounter(BaseCounter):
    """Counts the floating-point operations of forwards and backwards.

    For `snnfx.op_counter.DispatchCounterMode`. It looks at shapes only.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win over those of `FLOPS`.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    def __init__(
        self,
        extra_rules: Mapping[Any, Rule] | None = None,
        extra_ignore_modules: Iterable[Ignored] | None = None,
    ) -> None:
        super().__init__(rules_of(FLOPS), extra_rules, extra_ignore_modules)
