"""Memory plans written by hand, with every field set, for tests of what is told about them."""

from __future__ import annotations

from snnfx.passes.plan.memory_plan import (
    Allocation,
    Decision,
    MemoryPlan,
    SavedTensor,
    Segment,
    Timeline,
)

MIB = 1024 * 1024
LINES = ("/home/me/net.py:12:forward", "/home/me/net.py:40:forward")

PLAN = MemoryPlan(
    level=1,
    applied=True,
    lowering="eager",
    segments=(Segment("conv", ("x",), 3, 500), Segment("conv_1", ("ge", "ge_1"), 4, 700)),
    saved=(
        SavedTensor("ge", "packed", 1, 32 * MIB, 1 * MIB, "threshold"),
        SavedTensor("ge_1", "packed", 2, 32 * MIB, 2 * MIB, "threshold"),
        SavedTensor("mean", "kept", None, 1 * MIB, 1 * MIB, "statistic"),
        SavedTensor("norm", "dropped", None, 63 * MIB, 0, "computed again"),
    ),
    predicted=Timeline((0, 10 * MIB, 4 * MIB), (4 * MIB, 40 * MIB, 0)),
    baseline=Timeline((0, 90 * MIB, 128 * MIB), (100 * MIB, 160 * MIB, 0)),
    extra_flops=1200,
    baseline_flops=4800,
    notes=("something to know",),
)
"""Without names, decisions, tiles or times, as a plan of an early release."""

FULL = MemoryPlan(
    level=4,
    applied=True,
    lowering="inductor",
    segments=(
        Segment("conv", ("x",), 3, 500, backward_points=(3, 4)),
        Segment("conv_1", ("ge",), 4, 700, tiles=4, axis="batch", backward_points=(0, 2)),
    ),
    saved=PLAN.saved,
    predicted=Timeline(
        (2 * MIB, 10 * MIB, 4 * MIB),
        (4 * MIB, 40 * MIB, 38 * MIB, 6 * MIB, 3 * MIB),
        ("conv", "ge", "pack"),
        ("conv_again", "norm_again", "grad", "conv_grad", "out"),
        (
            Allocation("conv", 2 * MIB, 0, 1, LINES),
            Allocation("ge", 8 * MIB, 1, 1, LINES),
            Allocation("pack", 4 * MIB, 2, 6),
            Allocation("norm_again", 34 * MIB, 4, 5, LINES[1:]),
            Allocation("small", 1 * MIB, 4, 4),
            Allocation("smaller", 1024, 4, 4),
        ),
    ),
    baseline=Timeline((90 * MIB, 128 * MIB), (160 * MIB, 0), ("conv", "ge"), ("grad", "out")),
    extra_flops=1200,
    baseline_flops=4800,
    predicted_seconds=0.012,
    baseline_seconds=0.010,
    decisions=(
        Decision("checkpoint", "conv", 160 * MIB, 80 * MIB, 0.001, "its input takes 1 bit"),
        Decision("split", "conv_1", 80 * MIB, 50 * MIB, 0.0005, "its output is the largest"),
        Decision("tile", "conv_1", 50 * MIB, 38 * MIB, 0.0008, "no statistic over the batch"),
        Decision("restore", "mean", 38 * MIB, 40 * MIB, -0.0003, "no step has less room"),
    ),
    memory_budget=48 * MIB,
    prefer="speed",
    notes=("something to know",),
)
"""With everything that a plan may hold."""
EMPTY = MemoryPlan(0, False, "eager")
