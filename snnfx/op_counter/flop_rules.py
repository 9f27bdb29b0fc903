"""The table of FLOP rules, complete."""

from __future__ import annotations

from snnfx.op_counter import (
    flop_rules_indexing,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_linear,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_loss,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_norm,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_optimizer,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_pointwise,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_pool,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_reduce,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    flop_rules_rnn,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from snnfx.op_counter.flop_table import FLOPS

__all__ = ["FLOPS"]
