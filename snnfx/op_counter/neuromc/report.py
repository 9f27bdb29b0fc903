"""The report, and its making from pieces of work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig
from snnfx.op_counter.neuromc.costs import CORES, PRIMITIVES_PJ
from snnfx.op_counter.neuromc.extra import extra_counts, extra_transfers
from snnfx.op_counter.neuromc.mapping import Transfer, base_transfers
from snnfx.op_counter.neuromc.piece import Piece

Number = TypeVar("Number", int, float)
Counts = dict[str, dict[str, int]]


@dataclass
class NeuroMCRuntimeEnergyReport:
    """Energy of what ran, in pJ, and what it comes from.

    Attributes:
        energy_total_pj: all of it: compute and memory.
        energy_compute_pj: arithmetic.
        energy_memory_pj: movement of data.
        energy_by_stage: total by stage.
        energy_by_op: total by layer and direction, operator or optimizer.
        primitive_counts: operations: ``totals`` (with ``mac``), ``by_stage``, ``by_op``, and the
            label ``core_type`` of the profiler.
        memory_bits_by_level: bits: ``totals`` by level, ``by_level_dir``, and ``preset_name``.
        warnings: what ran and is outside of the model.
        energy_mac_pj: products.
        energy_base_memory_pj: movement of operands of products.
        energy_extra_memory_pj: other movement.
        energy_extra_compute_pj: other arithmetic.
        energy_by_core_type: total by core.
        energy_by_process_key: total by kind of work.
        energy_by_memory_level_dir: of movement, by level and direction.
        counts_by_core_type: pieces, products and operations by core.
        counts_by_process_key: the same by kind of work.
        mapping_summary: each piece of work: what it is, loops, products, bits of an element.
    """

    energy_total_pj: float = 0.0
    energy_compute_pj: float = 0.0
    energy_memory_pj: float = 0.0
    energy_by_stage: dict[str, float] = field(default_factory=dict)
    energy_by_op: dict[str, float] = field(default_factory=dict)
    primitive_counts: dict[str, Any] = field(default_factory=dict)
    memory_bits_by_level: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    energy_mac_pj: float = 0.0
    energy_base_memory_pj: float = 0.0
    energy_extra_memory_pj: float = 0.0
    energy_extra_compute_pj: float = 0.0
    energy_by_core_type: dict[str, float] = field(default_factory=dict)
    energy_by_process_key: dict[str, float] = field(default_factory=dict)
    energy_by_memory_level_dir: dict[str, dict[str, float]] = field(default_factory=dict)
    counts_by_core_type: Counts = field(default_factory=dict)
    counts_by_process_key: Counts = field(default_factory=dict)
    mapping_summary: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> str:
        """The main figures as text: total, its parts, stages, and the warnings."""
        shares = (
            ("products", self.energy_mac_pj),
            ("other arithmetic", self.energy_extra_compute_pj),
            ("operands' movement", self.energy_base_memory_pj),
            ("other movement", self.energy_extra_memory_pj),
        )
        lines = [f"NeuroMC: {self.energy_total_pj:.6g} pJ", *_shares(shares, self.energy_total_pj)]
        lines += ["by stage:", *_shares(self.energy_by_stage.items(), self.energy_total_pj)]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def _shares(parts: Iterable[tuple[str, float]], total_pj: float) -> list[str]:
    return [
        f"  {name:<20} {value:>12.6g} pJ {value / total_pj if total_pj else 0:>7.1%}"
        for name, value in parts
    ]


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs.

    Attributes:
        piece: the work.
        counts: operations besides products, by primitive.
        base: transfers of operands of products.
        extra: other transfers.
    """

    piece: Piece
    counts: dict[str, int]
    base: tuple[Transfer, ...]
    extra: tuple[Transfer, ...]

    @property
    def mac_pj(self) -> float:
        core = CORES.get(self.piece.core_type)
        return self.piece.macs * core.mac_pj if core else 0.0

    @property
    def extra_compute_pj(self) -> float:
        return sum(count * PRIMITIVES_PJ[name] for name, count in self.counts.items())

    @property
    def base_pj(self) -> float:
        return sum(transfer.energy_pj for transfer in self.base)

    @property
    def extra_pj(self) -> float:
        return sum(transfer.energy_pj for transfer in self.extra)

    @property
    def total_pj(self) -> float:
        return self.mac_pj + self.extra_compute_pj + self.base_pj + self.extra_pj

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        return self.base + self.extra


def cost_of(piece: Piece, config: MemoryHierarchyConfig) -> Cost:
    """What a piece of work costs with some memories."""
    base = tuple(base_transfers(piece, config))
    return Cost(piece, extra_counts(piece), base, tuple(extra_transfers(piece, config)))


def build_report(
    pieces: Sequence[Piece], config: MemoryHierarchyConfig, core_type: str, warnings: Sequence[str]
) -> NeuroMCRuntimeEnergyReport:
    """The report of all pieces, in their order."""
    costs = [cost_of(piece, config) for piece in pieces]
    mac_pj, base_pj = sum(c.mac_pj for c in costs), sum(c.base_pj for c in costs)
    extra_compute_pj = sum(c.extra_compute_pj for c in costs)
    extra_pj = sum(c.extra_pj for c in costs)
    transfers = [transfer for cost in costs for transfer in cost.transfers]
    return NeuroMCRuntimeEnergyReport(
        energy_total_pj=mac_pj + extra_compute_pj + base_pj + extra_pj,
        energy_compute_pj=mac_pj + extra_compute_pj,
        energy_memory_pj=base_pj + extra_pj,
        energy_by_stage=_sums((c.piece.stage, c.total_pj) for c in costs),
        energy_by_op=_sums((c.piece.op_name, c.total_pj) for c in costs),
        primitive_counts=_primitives(costs, core_type),
        memory_bits_by_level=_bits(transfers, config),
        warnings=list(warnings),
        energy_mac_pj=mac_pj,
        energy_base_memory_pj=base_pj,
        energy_extra_memory_pj=extra_pj,
        energy_extra_compute_pj=extra_compute_pj,
        energy_by_core_type=_sums((c.piece.core_type, c.total_pj) for c in costs),
        energy_by_process_key=_sums((c.piece.process_key, c.total_pj) for c in costs),
        energy_by_memory_level_dir=_nested((t.level, t.direction, t.energy_pj) for t in transfers),
        counts_by_core_type=_tally((c.piece.core_type, c) for c in costs),
        counts_by_process_key=_tally((c.piece.process_key, c) for c in costs),
        mapping_summary=[_line(piece) for piece in pieces],
    )


def _primitives(costs: Sequence[Cost], core_type: str) -> dict[str, Any]:
    by_stage = _nested((c.piece.stage, *item) for c in costs for item in c.counts.items())
    by_op = _nested((c.piece.op_name, *item) for c in costs for item in c.counts.items())
    totals = {name: sum(c.counts[name] for c in costs) for name in PRIMITIVES_PJ}
    totals["mac"] = sum(c.piece.macs for c in costs)
    return {"totals": totals, "by_stage": by_stage, "by_op": by_op, "core_type": core_type}


def _bits(transfers: Sequence[Transfer], config: MemoryHierarchyConfig) -> dict[str, Any]:
    return {
        "preset_name": config.preset_name,
        "totals": _sums((t.level, t.bits) for t in transfers),
        "by_level_dir": _nested((t.level, t.direction, t.bits) for t in transfers),
    }


def _tally(costs: Iterable[tuple[str, Cost]]) -> Counts:
    return _nested(
        (key, name, count)
        for key, cost in costs
        for name, count in (("fragments", 1), ("mac", cost.piece.macs), *cost.counts.items())
    )


def _sums(items: Iterable[tuple[str, Number]]) -> dict[str, Number]:
    sums: dict[str, Any] = {}
    for key, value in items:
        sums[key] = sums.get(key, 0) + value
    return sums


def _nested(items: Iterable[tuple[str, str, Number]]) -> dict[str, dict[str, Number]]:
    sums: defaultdict[str, Any] = defaultdict(dict)
    for outer, inner, value in items:
        sums[outer][inner] = sums[outer].get(inner, 0) + value
    return dict(sums)


def _line(piece: Piece) -> dict[str, Any]:
    """One entry of the mapping summary, with the keys of SpikingJelly 2.0.0."""
    return {
        "stage": piece.stage,
        "phase": piece.phase,
        "op_name": piece.op_name,
        "core_type": piece.core_type,
        "process_key": piece.process_key,
        "input_precision_bits": piece.bits.input,
        "weight_precision_bits": piece.bits.weight,
        "output_precision_bits": piece.bits.output,
        "loop_dims": piece.loops.as_dict(),
        "b_type": 0,
        "t_type": int(piece.reuses_weights),
        "mac_count": piece.macs,
        "source": piece.source,
        "optimizer_has_momentum": piece.has_momentum,
        "optimizer_has_weight_decay": piece.has_weight_decay,
        "optimizer_has_momentum_buffer": piece.has_momentum_buffer,
    }
