"""The counter of synaptic operations."""

from __future__ import annotations

from snnfx.op_counter.spike_rules import SYNOPS
from snnfx.op_counter.spikes import SpikeCounter


class SynOpCounter(SpikeCounter):
    """Counts synaptic operations (SynOps): the accumulations that spikes cause at weights.

    A spike causes one for each weight that it meets in a matrix product or a convolution, and for
    each element of the other operand in a product of activations, as in attention. `ACCounter`
    counts these and all other additions.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.
    """

    table = SYNOPS
