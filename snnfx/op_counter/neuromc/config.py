"""The memories of the NeuroMC accelerator: what holds what, how wide, and what an access costs.

Numbers are those of NeuroMC (Nature Communications 2026, s41467-026-70586-x) as its public code
(github.com/dayanhn/NeuroMC, commit 712c66f) has them, for 32 nm; SpikingJelly 2.0.0 uses the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from snnfx.errors import OptionError

LEVELS = ("dram", "sram", "reg", "noc")
"""Levels of memory, outermost first; ``noc``, the network on the chip, is counted as one."""

REGISTER_PJ_PER_BIT = 0.00901 / 7.1 * 2
"""Energy of a bit read from, or written to, a register."""


@dataclass(frozen=True)
class MemoryInstanceSpec:
    """One memory.

    Attributes:
        name: of the memory.
        size_bits: what it holds.
        datawidth: bits of one word.
        r_bw: bits that one read brings.
        w_bw: bits that one write takes.
        r_cost: energy of one read, pJ.
        w_cost: energy of one write, pJ.

    Raises:
        OptionError: a size or width is not positive, or an energy is negative.
    """

    name: str
    size_bits: int
    datawidth: int
    r_bw: int
    w_bw: int
    r_cost: float
    w_cost: float

    def __post_init__(self) -> None:
        for quantity in ("size_bits", "datawidth", "r_bw", "w_bw"):
            if getattr(self, quantity) <= 0:
                raise OptionError(
                    f"memory {self.name!r}: {quantity} must be positive, got "
                    f"{getattr(self, quantity)}"
                )
        if min(self.r_cost, self.w_cost) < 0:
            raise OptionError(
                f"memory {self.name!r}: energies must not be negative, got r_cost={self.r_cost}, "
                f"w_cost={self.w_cost} pJ"
            )


def _register(bits: int) -> MemoryInstanceSpec:
    cost_pj = bits * REGISTER_PJ_PER_BIT
    return MemoryInstanceSpec(f"reg_{bits}b", bits, bits, bits, bits, cost_pj, cost_pj)


def _sram(
    name: str, size_bits: int, word: int, width: int, read_pj: float, write_pj: float | None = None
) -> MemoryInstanceSpec:
    write_pj = read_pj if write_pj is None else write_pj
    return MemoryInstanceSpec(name, size_bits, word, width, width, read_pj, write_pj)


_SPIKES_PJ = 0.44854798  # of one bit
_WEIGHTS_PJ = 5.302477904  # of 16 bits
_SUMS_PJ = 5.792676768  # of 16 bits
_STATES_PJ = 92.68282828  # of 256 bits
_MASKS_PJ = 7.176767677  # of 16 bits

INSTANCES = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _register(1),
            _register(16),
            _register(32),
            _sram("sram_fp_conv_in_s", 18_496 * 16, 1, 1, _SPIKES_PJ),
            _sram("sram_fp_conv_in_w", 18_432 * 256, 16, 16, _WEIGHTS_PJ),
            _sram("sram_fp_conv_out_xi", 65_536 * 16, 16, 16, _SUMS_PJ),
            _sram("sram_fp_soma_u", 1_048_576, 16, 256, _STATES_PJ),
            _sram("sram_fp_soma_s", 262_144, 1, 16, _MASKS_PJ),
            _sram("sram_fp_soma_smask", 65_536, 1, 16, _MASKS_PJ),
            _sram("sram_bp_conv_in_du", 73_984 * 16, 16, 16, _SUMS_PJ),
            _sram("sram_bp_conv_in_w", 18_432 * 256, 16, 16, _WEIGHTS_PJ),
            _sram("sram_bp_conv_out_res", 65_536 * 16, 16, 16, _SUMS_PJ),
            _sram("sram_bp_grad_in_u", 1_048_576, 16, 256, _STATES_PJ),
            _sram("sram_bp_grad_in_smask", 65_536, 1, 16, _MASKS_PJ),
            _sram("sram_bp_grad_in_s", 65_536, 1, 16, _MASKS_PJ),
            _sram("sram_bp_grad_out_du", 1_048_576, 16, 256, _STATES_PJ),
            _sram("sram_wg_conv_in_s", 4_624 * 16, 1, 1, _SPIKES_PJ),
            _sram("sram_wg_conv_in_du", 65_536 * 16, 16, 16, _SUMS_PJ),
            _sram("sram_wg_conv_out_dw", 18_432 * 256, 16, 16, _WEIGHTS_PJ),
            _sram("sram_2MB", 1_048_576 * 16, 16, 256, 46.976, 45.96),
            _sram("sram_6MB", 50_331_648, 16, 256, 458.1830181, 375.0422185),
            MemoryInstanceSpec("dram", 134_217_728 * 64, 16, 64, 64, 1300.0, 1300.0),
        )
    }
)
"""The memories of ``neuromc_like_v1``, by name; the model needs one of each name."""


@dataclass
class MemoryHierarchyConfig:
    """The memories, and which levels the paper's energy leaves out.

    Attributes:
        preset_name: what the report calls the hierarchy.
        technology_nm: node of the numbers, nm; recorded only.
        level_order: the four levels, outermost first; recorded only.
        memory_instances: memories by name; all names of `INSTANCES` are needed.
        zero_dram_in_paper_energy: leave out DRAM, as the paper's figures do.
        zero_noc_in_paper_energy: leave out the network on the chip.
        zero_sram_high_directions: leave out the SRAM's side towards DRAM (``rl2h``, ``wh2l``).
    """

    preset_name: str = "neuromc_like_v1"
    technology_nm: int = 32
    level_order: tuple[str, str, str, str] = ("dram", "sram", "reg", "noc")
    memory_instances: dict[str, MemoryInstanceSpec] = field(default_factory=lambda: dict(INSTANCES))
    zero_dram_in_paper_energy: bool = True
    zero_noc_in_paper_energy: bool = True
    zero_sram_high_directions: bool = True

    def validate(self) -> None:
        """Check what a profiler needs.

        Raises:
            OptionError: a memory is missing, the levels are not the four known ones, or the node
                is not positive.
        """
        missing = sorted(set(INSTANCES) - set(self.memory_instances))
        if missing:
            raise OptionError(f"memory_instances lacks {', '.join(missing)}")
        if sorted(self.level_order) != sorted(LEVELS):
            raise OptionError(f"level_order must have each of {LEVELS} once: {self.level_order}")
        if self.technology_nm <= 0:
            raise OptionError(f"technology_nm must be positive, got {self.technology_nm}")

    def leaves_out(self, level: str, direction: str) -> bool:
        """Whether accesses to a level in a direction are not counted."""
        return (
            (level == "dram" and self.zero_dram_in_paper_energy)
            or (level == "noc" and self.zero_noc_in_paper_energy)
            or (level == "sram" and self.zero_sram_high_directions and direction in OUTWARD)
        )


OUTWARD = ("rl2h", "wh2l")
"""Directions of a memory's port to the next outer level: read to go out, written from outside.

The other two, ``rh2l`` (read to go in) and ``wl2h`` (written from inside), face the operators.
"""
