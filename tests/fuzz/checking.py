"""Train a random network plainly and compiled, and say what differs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnfx._torch_compat import aot_autograd, boxed, default_partition
from snnfx.errors import SnnfxWarning
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.fuzz.comparison import different
from tests.fuzz.grids import Tally
from tests.fuzz.levels import LEVELS, EveryLevel
from tests.fuzz.network import Network, Results, build, train
from tests.fuzz.programs import Program

# Tiles add weight gradients up in another order; nothing else of levels 3 and 4 may differ.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}

PEERS: tuple[Any, ...] = (
    "aot_eager",
    aot_autograd(fw_compiler=lambda graph, _: boxed(graph), partition_fn=default_partition),
)
"""Backends of PyTorch alone: the second runs each graph as it was traced."""


@dataclass
class Outcome:
    """What came of one program.

    Attributes:
        kind: "equal"; "failure"; "invalid" where the plain module cannot be trained; or "torch"
            where PyTorch's own AOTAutograd fails or differs in the same way.
        reasons: of anything but "equal".
        plans: of each graph that was compiled, at each level.
        warnings: the library's.
        tally: how many claims about values were held.
    """

    kind: str
    reasons: list[str] = field(default_factory=list)
    plans: list[dict[int, MemoryPlan]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def notes(self) -> list[str]:
        """Why graphs were left as they are."""
        plans = [plan for levels in self.plans for level, plan in levels.items() if level]
        return [note for plan in plans if not plan.applied for note in plan.notes]


def check(program: Program, main: int = 4) -> Outcome:
    """Hold one program at every level; the model itself gets the results of level `main`."""
    tolerances = {level: tolerance(program, level) for level in LEVELS}
    backend = EveryLevel(main, tolerances)
    outcome = _checked(program, lambda net: torch.compile(net, backend=backend), tolerances[main])
    if outcome.kind in ("equal", "torch") and backend.problems:
        outcome.kind, outcome.reasons = "failure", backend.problems
    outcome.plans, outcome.tally = backend.plans, backend.tally
    return outcome


def check_level(program: Program, level: int) -> Outcome:
    """Hold one program at one level, through the backend that users name."""
    plans: list[dict[int, MemoryPlan]] = []
    options = {
        "level": level,
        "lowering": "eager",
        "plan_callback": lambda plan: plans.append({level: plan}),
    }
    outcome = _checked(
        program,
        lambda net: torch.compile(net, backend="snnmem", options=options),
        tolerance(program, level),
    )
    outcome.plans = plans
    return outcome


def tolerance(program: Program, level: int) -> float:
    """How far results may be from the plain module's, as a part of their norm."""
    return TOLERANCES[program.precision] if level >= 3 else 0.0


def _checked(
    program: Program, compile_: Callable[[Network], Callable[..., Any]], allowed: float
) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = _compared(program, compile_, allowed)
    texts = [str(w.message) for w in caught if issubclass(w.category, SnnfxWarning)]
    return dataclasses.replace(outcome, warnings=texts)


def _compared(
    program: Program, compile_: Callable[[Network], Callable[..., Any]], allowed: float
) -> Outcome:
    torch.compiler.reset()
    expected = _plain(program)
    if isinstance(expected, str):
        return Outcome("invalid", [expected])
    found = _trained(program, compile_)
    reasons = [found] if isinstance(found, str) else different(found, expected, allowed)
    if not reasons:
        return Outcome("equal")
    # PyTorch itself is not always equal to itself: what AOTAutograd cannot do either is not ours.
    for backend in PEERS:
        torch.compiler.reset()
        peer = _trained(program, functools.partial(torch.compile, backend=backend))
        if isinstance(peer, str):
            return Outcome("torch", [peer])
        if not isinstance(found, str) and not different(found, peer, allowed):
            return Outcome("torch", [f"as AOTAutograd does: {reason}" for reason in reasons])
    return Outcome("failure", reasons)


def _plain(program: Program) -> Results | str:
    """What the plain module gives; a text where it gives nothing that can be compared."""
    try:
        network = build(program)
        expected = train(program, network, network)
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    floats = [v for v in expected.values() if isinstance(v, Tensor) and v.is_floating_point()]
    return expected if all(bool(v.isfinite().all()) for v in floats) else "not finite"


def _trained(program: Program, compile_: Callable[[Network], Callable[..., Any]]) -> Results | str:
    """What the compiled module gives; the error if it gives one, whatever that is."""
    network = copy.deepcopy(build(program))
    try:
        return train(program, network, compile_(network))
    except Exception as error:  # whatever a compiler raises is what is looked for
        return "".join(traceback.format_exception(error)[-3:])
