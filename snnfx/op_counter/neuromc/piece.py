"""One piece of work for one core: what the recorder makes and the energy model takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Phase = Literal["forward", "backward", "optimizer"]
Process = Literal["with_nothing", "with_sg", "with_bn", "with_opt"]
Source = Literal["module", "trace", "optimizer"]


@dataclass(frozen=True)
class Loops:
    """The loops of one piece of work; a count of 1 where there is no such loop.

    Attributes:
        batch: B.
        steps: T, time steps.
        channels_in: C, of one group.
        channels_out: K, of one group.
        rows: OY, of the output.
        columns: OX, of the output.
        kernel_rows: FY.
        kernel_columns: FX.
        groups: how often all of this is done: groups of a convolution share nothing.
    """

    batch: int = 1
    steps: int = 1
    channels_in: int = 1
    channels_out: int = 1
    rows: int = 1
    columns: int = 1
    kernel_rows: int = 1
    kernel_columns: int = 1
    groups: int = 1

    @property
    def macs(self) -> int:
        """Products of the whole nest.

        With groups these are ``G B T (C/G) (K/G) OY OX FY FX``: an output element sums over the
        ``C/G`` inputs of its group alone. SpikingJelly 2.0.0 takes all C for each of the K
        outputs, which is G times as many.
        """
        return prod(self.as_dict().values())

    def as_dict(self) -> dict[str, int]:
        """By the letters of the paper; ``G`` only where there are groups."""
        loops = {
            "B": self.batch,
            "T": self.steps,
            "C": self.channels_in,
            "K": self.channels_out,
            "OY": self.rows,
            "OX": self.columns,
            "FY": self.kernel_rows,
            "FX": self.kernel_columns,
        }
        return loops if self.groups == 1 else {**loops, "G": self.groups}


@dataclass(frozen=True)
class Bits:
    """Bits of one element of each operand."""

    input: int = 16
    weight: int = 16
    output: int = 16


@dataclass(frozen=True)
class Piece:
    """One piece of work.

    Attributes:
        stage: the user's name for what runs.
        phase: what it is.
        op_name: operator or layer and direction, as reports name it.
        core_type: the core that does it, see `snnfx.op_counter.neuromc.costs`.
        process_key: which work besides products it is: none, soma, normalisation, optimizer.
        loops: its loops.
        bits: of its operands.
        weight_numel: elements of the second operand.
        output_numel: elements of the result.
        macs: its products.
        source: what told of it.
        batch_norm_backward: whether the backward of a normalisation computes anything.
        reuses_weights: whether the weights are in the core already.
        has_momentum: of an optimizer.
        has_weight_decay: of an optimizer.
        has_momentum_buffer: whether there has been a step before.
    """

    stage: str
    phase: Phase
    op_name: str
    core_type: str
    process_key: Process
    loops: Loops
    bits: Bits = Bits()
    weight_numel: int = 0
    output_numel: int = 0
    macs: int = 0
    source: Source = "module"
    batch_norm_backward: bool = True
    reuses_weights: bool = False
    has_momentum: bool = False
    has_weight_decay: bool = False
    has_momentum_buffer: bool = False
