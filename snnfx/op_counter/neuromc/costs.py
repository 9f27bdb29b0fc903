"""Cores of the NeuroMC accelerator, their dataflows, and what arithmetic costs. Energies in pJ.

Sources: NeuroMC (Nature Communications 2026, s41467-026-70586-x) and its code
(github.com/dayanhn/NeuroMC, commit 712c66f), 32 nm, spikes of 1 bit and values of 16 bits. Cores
whose names begin with ``ann`` take values instead of spikes: a product costs a multiplication
there, where a spike only selects.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ADD_PJ, MUL_PJ, COMPARE_PJ, SQRT_PJ = 0.548, 0.812, 0.056, 0.514
SELECT_PJ = ADD_PJ / 16  # a multiplexer in front of an adder of 16 bits

PRIMITIVES_PJ = MappingProxyType(
    {"mux": SELECT_PJ, "add": ADD_PJ, "mul": MUL_PJ, "comp": COMPARE_PJ, "sqrt": SQRT_PJ}
)
"""Energy of each operation outside of products, in the order of the reports."""

LANES = 16
"""Rows, and columns, of the array of products: what is reduced, or shared, in one go."""

Operand = Literal["input", "weight", "output"]
Amount = Literal["macs", "weights", "outputs", "reads_back", "partial", "streamed", "by_k", "by_c"]


@dataclass(frozen=True)
class Access:
    """One line of a dataflow.

    Attributes:
        level: of memory.
        operand: that is moved; it says how many bits an element has, and in which memory it is.
        direction: of the movement.
        amount: how many elements, see `snnfx.op_counter.neuromc.mapping`.
    """

    level: Literal["reg", "sram"]
    operand: Operand
    direction: str
    amount: Amount


STREAMING = (
    Access("reg", "input", "rh2l", "macs"),
    Access("reg", "input", "wh2l", "macs"),
    Access("reg", "weight", "rh2l", "weights"),
    Access("reg", "weight", "wh2l", "weights"),
    Access("sram", "weight", "rh2l", "weights"),
    Access("reg", "output", "rl2h", "macs"),
    Access("reg", "output", "rh2l", "reads_back"),
    Access("reg", "output", "wh2l", "macs"),
    Access("reg", "output", "wl2h", "partial"),
    Access("sram", "input", "rh2l", "streamed"),
    Access("sram", "output", "rh2l", "partial"),
    Access("sram", "output", "wl2h", "streamed"),
)
"""Weights stay, inputs stream by, sums go out and come back once for each 16 reduced channels."""

ACCUMULATING = (
    Access("reg", "input", "rh2l", "macs"),
    Access("reg", "weight", "rh2l", "macs"),
    Access("reg", "input", "wh2l", "macs"),
    Access("reg", "weight", "wh2l", "macs"),
    Access("reg", "output", "rl2h", "outputs"),
    Access("reg", "output", "rh2l", "reads_back"),
    Access("reg", "output", "wl2h", "macs"),
    Access("sram", "input", "rh2l", "by_k"),
    Access("sram", "weight", "rh2l", "by_c"),
    Access("sram", "output", "wl2h", "outputs"),
)
"""Gradients of weights stay until they are complete; both operands stream by."""


@dataclass(frozen=True)
class Core:
    """A core that multiplies and accumulates.

    Attributes:
        mac_pj: energy of one product and its accumulation.
        dataflow: what it moves.
        reduced: the channels that it sums over, in (C) or out (K).
        registers: of input, weight and output.
        srams: of input, weight and output.
    """

    mac_pj: float
    dataflow: tuple[Access, ...]
    reduced: Literal["C", "K"]
    registers: tuple[str, str, str]
    srams: tuple[str, str, str]


_SPIKES = ("reg_1b", "reg_16b", "reg_16b")
_VALUES = ("reg_16b", "reg_16b", "reg_16b")
_BACKWARD = ("sram_bp_conv_in_du", "sram_bp_conv_in_w", "sram_bp_conv_out_res")
_IN_W, _OUT_XI = "sram_fp_conv_in_w", "sram_fp_conv_out_xi"
_IN_DU, _OUT_DW = "sram_wg_conv_in_du", "sram_wg_conv_out_dw"
_SELECTED, _MULTIPLIED = ADD_PJ + SELECT_PJ, ADD_PJ + MUL_PJ

CORES = MappingProxyType(
    {
        "fp_soma": Core(_SELECTED, STREAMING, "C", _SPIKES, ("sram_fp_conv_in_s", _IN_W, _OUT_XI)),
        "ann_fe": Core(_MULTIPLIED, STREAMING, "C", _VALUES, (_IN_W, _IN_W, _OUT_XI)),
        "bp_grad": Core(_MULTIPLIED, STREAMING, "K", _VALUES, _BACKWARD),
        "ann_be": Core(_MULTIPLIED, STREAMING, "K", _VALUES, _BACKWARD),
        "wg": Core(_SELECTED, ACCUMULATING, "C", _SPIKES, ("sram_wg_conv_in_s", _IN_DU, _OUT_DW)),
        "ann_we": Core(_MULTIPLIED, ACCUMULATING, "C", _VALUES, (_IN_DU, _IN_DU, _OUT_DW)),
    }
)
"""Cores with products, by name."""

OTHER_CORES = ("fp_bn", "bp_bn", "ann_bn", "ann_bn_bp", "bp_grad_opt")
"""Cores without products: normalisation, and the optimizer."""

CORE_TYPES = (*CORES, *OTHER_CORES)

FORWARD = MappingProxyType({True: "fp_soma", False: "ann_fe"})
INPUT_GRADIENT = MappingProxyType({True: "bp_grad", False: "ann_be"})
WEIGHT_GRADIENT = MappingProxyType({True: "wg", False: "ann_we"})
NORM_FORWARD = MappingProxyType({True: "fp_bn", False: "ann_bn"})
NORM_BACKWARD = MappingProxyType({True: "bp_bn", False: "ann_bn_bp"})
"""The core for each kind of work, by whether the layer's input is spikes."""
