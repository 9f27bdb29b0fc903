"""The counter of accumulates."""

from __future__ import annotations

from snnfx.op_counter.spike_rules import ACS
from snnfx.op_counter.spikes import SpikeCounter


class ACCounter(SpikeCounter):
    """Counts accumulates (ACs): additions and subtractions that are not part of a MAC.

    These are what spikes cause in matrix products, convolutions and attention (`SynOpCounter`
    counts these alone), and the sums of residual connections, norms, pooling and so on. See
    `MACCounter`, which counts the rest: nothing is counted by both.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    table = ACS
