"""Reports made by hand, small enough to add up on paper."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import sympy
import torch

from snnfx.op_counter.report import CountReport, OperatorCount, SpikeTensor, Stage, frozen

aten = torch.ops.aten
NET, BODY, CONV, LIF = "Net", "Net.body", "Net.body.0", "Net.body.1"
RATE = sympy.Symbol("r_body.1", nonnegative=True)


def entry(
    path: tuple[str, ...], operator: Any, calls: int, *counts: Any, stage: Stage = "forward"
) -> OperatorCount:
    """One operator; FLOPs, bytes, MACs, ACs, SynOps in that order, as many as there are."""
    names = ("flops", "bytes", "mac", "ac", "synops")
    return OperatorCount(
        path, stage, operator, calls, frozen(dict(zip(names, counts, strict=False)))
    )


def small_report() -> CountReport:
    """A convolution and a neuron in a container, a readout outside of it; both stages."""
    operators = (
        entry((NET, BODY, CONV), aten.convolution.default, 1, 4000, 800, 2000, 0, 0),
        entry((NET, BODY, LIF), aten.mul.Tensor, 4, 400, 3200, 0, 0, 0),
        entry((NET, BODY, LIF), aten.ge.Scalar, 4, 400, 2000),
        entry((NET, "Net.heads.0"), aten.mm.default, 1, 1_234_567, 2048, 0, 30, 30),
        entry((), aten.mean.dim, 1, 50, 240),
        entry((NET, BODY, CONV), aten.convolution_backward.default, 1, 8000, 1600, 4000, 0, 0,
              stage="backward"),
    )  # fmt: skip
    tensors = (
        SpikeTensor("body.1", 100, Fraction(3, 10), True),
        SpikeTensor("heads.0", 300, Fraction(1, 10), False),
    )
    return CountReport(
        operators,
        tensors,
        {"synops": frozen({"aten.ge.Scalar": 4}), "flops": frozen({})},
        ("heads.0 was binary in the run, but is not proven",),
    )


def symbolic_report() -> CountReport:
    """The same where the number of spikes is a rate."""
    report = small_report()
    operators = tuple(
        replace(e, counts=frozen({**e.counts, "ac": 100 * RATE, "synops": 100 * RATE + 7}))
        if e.operator is aten.mm.default
        else e
        for e in report.operators
    )
    tensors = (replace(report.spike_tensors[0], rate=RATE),)
    return replace(report, operators=operators, spike_tensors=tensors)
