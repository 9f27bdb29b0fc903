"""What is on record of the convolutions of one module, a *stage* of SpikeSim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snnfx.op_counter.spikesim.config import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.events import Convolution, Events, Tiling
from snnfx.op_counter.spikesim.formulas import added, dense_energy_pj, event_energy_pj


@dataclass(frozen=True)
class Activity:
    """The sums over calls.

    Attributes:
        pe_cycles: of all processing elements.
        active: what was done: by spikes where these were looked at, else everything.
        dense: what there was to do.
    """

    pe_cycles: int
    active: Events
    dense: Events

    def __add__(self, other: Activity) -> Activity:
        return Activity(
            self.pe_cycles + other.pe_cycles, self.active + other.active, self.dense + other.dense
        )


class Stage:
    """The calls of one module; of several, if the weights change their size, each by its own.

    Args:
        scope: the name of the module.
        first: its first call.
    """

    def __init__(self, scope: str, first: Convolution) -> None:
        self.scope = scope
        self.first = first
        self.total_calls = 0
        self.event_driven_calls = 0
        self.shapes_differ = False
        self._activities: dict[Tiling, Activity] = {}

    def add(self, conv: Convolution, activity: Activity, by_events: bool) -> None:
        """Record one more call."""
        known = self._activities.get(conv.tiling)
        self._activities[conv.tiling] = activity if known is None else known + activity
        self.total_calls += 1
        self.event_driven_calls += by_events
        self.shapes_differ |= conv != self.first

    def energy_pj(self, config: SpikeSimEnergyConfig) -> dict[str, float]:
        """The energy of its calls, by parts."""
        if config.activity_mode == "dense":
            return added(
                [dense_energy_pj(config, m, a.pe_cycles) for m, a in self._activities.items()]
            )
        return added([event_energy_pj(config, m, a.active) for m, a in self._activities.items()])

    def stats(self) -> dict[str, Any]:
        """The sums over its calls; rows by tile only if all calls have the same tiles."""
        activities = list(self._activities.values())
        return {
            "dense_pe_cycle_count": sum(a.pe_cycles for a in activities),
            **_counts("active", [a.active for a in activities]),
            **_counts("dense", [a.dense for a in activities]),
        }

    def metadata(self) -> dict[str, Any]:
        """The sizes of its first call, and how its calls were counted."""
        tiling = self.first.tiling
        return {
            "scope": self.scope,
            "in_channels": tiling.in_channels,
            "out_channels": tiling.out_channels,
            "kernel_size": tiling.kernel_size,
            "stride": self.first.stride,
            "padding": self.first.padding,
            "dilation": self.first.dilation,
            "input_shape": self.first.input_shape,
            "output_shape": self.first.output_shape,
            "out_channel_tiles": tiling.out_channel_tiles,
            "input_tile_channels": tiling.input_tile_channels,
            "total_calls": self.total_calls,
            "event_driven_calls": self.event_driven_calls,
            "dense_fallback_calls": self.total_calls - self.event_driven_calls,
            "shape_mismatch_detected": self.shapes_differ,
        }


def _counts(kind: str, events: list[Events]) -> dict[str, Any]:
    tiles = {len(entry.rows_by_tile) for entry in events}
    by_tile = [sum(rows) for rows in zip(*(entry.rows_by_tile for entry in events), strict=False)]
    return {
        f"{kind}_patch_tile_count": sum(entry.patch_tiles for entry in events),
        f"{kind}_row_count": sum(entry.rows for entry in events),
        f"{kind}_row_count_by_tile": by_tile if len(tiles) == 1 else None,
        f"{kind}_output_tile_site_count": sum(entry.output_tile_sites for entry in events),
    }
