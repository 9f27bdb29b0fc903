"""The counter of multiply-accumulates."""

from __future__ import annotations

from snnfx.op_counter.spike_rules import MACS
from snnfx.op_counter.spikes import SpikeCounter


class MACCounter(SpikeCounter):
    """Counts multiply-accumulates (MACs): products that are added to a sum at once.

    These are the terms of matrix products, convolutions and attention, scale and shift of a norm,
    and so on. A term with a spike in it is an AC (`ACCounter`) or nothing, never a MAC. What counts
    how much, and where this differs from SpikingJelly's counter of that name, is said in the
    modules ``spike_rules_*``. Backwards are counted as well. To leave norms out, as after fusing
    them into weights, ignore their modules.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    table = MACS
