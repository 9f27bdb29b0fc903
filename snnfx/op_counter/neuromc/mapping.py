"""From a piece of work to the bits that its products move, and what that costs.

The mapping is fixed: the array has 16 rows and columns, weights stay in it. With M products of a
piece, O its outputs, W its weights, and R = ceil(channels reduced / 16) FY FX rounds of reduction:

    macs        M           streamed    O R
    outputs     O           partial     O (R - 1)
    weights     W, or 0 if they are reused and fit into their SRAM
    reads_back  M - O: all but the first product of an output read the sum so far
    by_k        ceil(M / min(K, 16)): an input is read once for 16 output channels
    by_c        ceil(M / min(C, 16)): a gradient is read once for 16 input channels

A count that comes out negative (fewer products than outputs, for the gradient of the input of a
strided convolution) is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig, MemoryInstanceSpec
from snnfx.op_counter.neuromc.costs import CORES, LANES, Amount, Core, Operand
from snnfx.op_counter.neuromc.piece import Piece

OPERANDS: tuple[Operand, ...] = get_args(Operand)


@dataclass(frozen=True)
class Transfer:
    """Bits that cross one side of one level of memory, and their energy.

    Attributes:
        level: of memory.
        direction: ``r`` or ``w`` for read or written, then from where to where (``h``: outer
            level, ``l``: inner).
        bits: how many.
        energy_pj: of all of them.
    """

    level: str
    direction: str
    bits: int
    energy_pj: float


def transfer(
    level: str, direction: str, bits: int, spec: MemoryInstanceSpec, config: MemoryHierarchyConfig
) -> list[Transfer]:
    """The transfer of some bits; none if there are no bits or the level is left out.

    An access moves as many bits as the memory is wide; parts of one count as such parts.
    """
    if bits <= 0 or config.leaves_out(level, direction):
        return []
    reads = direction.startswith("r")
    width, cost_pj = (spec.r_bw, spec.r_cost) if reads else (spec.w_bw, spec.w_cost)
    return [Transfer(level, direction, bits, bits / width * cost_pj)]


def base_transfers(piece: Piece, config: MemoryHierarchyConfig) -> list[Transfer]:
    """What the products of a piece move; nothing if it has none."""
    core = CORES.get(piece.core_type)
    if core is None or piece.macs == 0:
        return []
    memories = {"reg": core.registers, "sram": core.srams}
    elements = _elements(piece, core, config)
    transfers: list[Transfer] = []
    for access in core.dataflow:
        spec = config.memory_instances[memories[access.level][OPERANDS.index(access.operand)]]
        bits = elements[access.amount] * getattr(piece.bits, access.operand)
        transfers += transfer(access.level, access.direction, bits, spec, config)
    return transfers


def _elements(piece: Piece, core: Core, config: MemoryHierarchyConfig) -> dict[Amount, int]:
    """The amounts of the module's docstring."""
    loops, macs, outputs = piece.loops, piece.macs, piece.output_numel
    reduced = loops.channels_in if core.reduced == "C" else loops.channels_out
    rounds = -(-reduced // LANES) * loops.kernel_rows * loops.kernel_columns
    return {
        "macs": macs,
        "weights": 0 if _weights_are_there(piece, core, config) else piece.weight_numel,
        "outputs": outputs,
        "reads_back": macs - outputs,
        "partial": outputs * (rounds - 1),
        "streamed": outputs * rounds,
        "by_k": -(-macs // min(loops.channels_out, LANES)),
        "by_c": -(-macs // min(loops.channels_in, LANES)),
    }


def _weights_are_there(piece: Piece, core: Core, config: MemoryHierarchyConfig) -> bool:
    sram = config.memory_instances[core.srams[OPERANDS.index("weight")]]
    return piece.reuses_weights and piece.weight_numel * piece.bits.weight <= sram.size_bits
