"""The tables of MAC, AC and SynOp rules, complete."""

from __future__ import annotations

from snnfx.op_counter import (
    spike_rules_conv,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_matmul,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_norm,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_others,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_pointwise,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_reduce,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    spike_rules_rnn,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from snnfx.op_counter.spike_table import ACS, MACS, SYNOPS

__all__ = ["ACS", "MACS", "SYNOPS"]
