"""A backend that compiles a graph at every level at once, and compares them call for call.

Tracing a network takes far longer than planning it, and is the same for all levels. So the joint
graph is planned at each level; one of them runs as `snnmem` would run it, and the others run beside
it, on copies of its arguments and from its random state. Small graphs are mostly not worth a plan,
and would be left as they are: here every plan is applied that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule

from snnfx._torch_compat import aot_autograd, boxed, mutated_inputs
from snnfx.capture.offline import _copied
from snnfx.capture.pipeline import Partition, partition_joint
from snnfx.config import Options
from snnfx.passes.fxgraph import JointRoles, find_roles
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.fuzz.comparison import different
from tests.fuzz.grids import ClaimChecker, Tally

Boxed = Callable[[list[Any]], Any]
LEVELS = (0, 1, 2, 3, 4)


@dataclass
class EveryLevel:
    """The backend: ``torch.compile(model, backend=EveryLevel(...))``.

    Attributes:
        main: the level whose results the model gets.
        tolerances: how far the results of each level may be from those of level 0, as a part of
            their norm; 0 asks for the same bits.
        plans: of each graph that was compiled, at each level.
        problems: what differs.
        tally: how many claims of the value-range analysis were held against values.
    """

    main: int
    tolerances: dict[int, float]
    plans: list[dict[int, MemoryPlan]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def __call__(self, module: GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        graph = _Graph(self)
        compiler = aot_autograd(
            fw_compiler=graph.forward,
            bw_compiler=graph.backward,
            inference_compiler=lambda half, _: boxed(half),
            partition_fn=graph.partition,
        )
        return compiler(module, inputs)


@dataclass
class _Graph:
    """One graph of Dynamo, at all levels."""

    backend: EveryLevel
    parts: dict[int, Partition] = field(default_factory=dict)
    outputs: int = 0
    tangents: int = 0
    checker: ClaimChecker | None = None
    saved: list[tuple[tuple[Any, ...], dict[int, list[Any]]]] = field(default_factory=list)

    def partition(
        self, joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **_: Any
    ) -> tuple[GraphModule, GraphModule]:
        """Plan the joint graph at each level."""
        primals = len(inputs[0])
        mutated = mutated_inputs(joint, primals, num_fwd_outputs)
        roles = find_roles(joint, primals, num_fwd_outputs, mutated)
        self.outputs, self.tangents = num_fwd_outputs, len(roles.tangents)
        self.checker = _checker(joint, roles, self.backend.tally)
        with mock.patch("snnfx.capture.pipeline._why_not", return_value=None):
            for level in LEVELS:
                options = Options.parse({"level": level, "lowering": "eager"})
                self.parts[level] = partition_joint(*_copied(joint, roles), options)
        self.backend.plans.append({level: part.plan for level, part in self.parts.items()})
        main = self.parts[self.backend.main]
        return main.forward, main.backward

    def forward(self, half: GraphModule, _: Sequence[Any]) -> Boxed:
        halves = {level: boxed(part.forward) for level, part in self.parts.items()}
        halves[self.backend.main] = boxed(half)

        def run(args: list[Any]) -> Any:
            if self.checker is not None:
                with torch.random.fork_rng():
                    self.backend.problems += self.checker.check(_copies(args))
                self.checker = None  # a second run adds little, and takes as long
            own = {level: list(args) for level in halves}
            results = self._run("forward", halves, own, args)
            passed = {level: result[self.outputs :] for level, result in results.items()}
            key = _identity(_for_backward(passed[self.backend.main]))
            own = {level: _copies(_for_backward(values)) for level, values in passed.items()}
            self.saved.append((key, own))
            return results[self.backend.main]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backward(self, half: GraphModule, _: Sequence[Any]) -> Boxed:
        halves = {level: boxed(part.backward) for level, part in self.parts.items()}
        halves[self.backend.main] = boxed(half)

        def run(args: list[Any]) -> Any:
            count = len(args) - self.tangents
            saved, tangents = self._saved_with(args[:count]), args[count:]
            own = {level: [*values, *tangents] for level, values in saved.items()}
            return self._run("backward", halves, own, args)[self.backend.main]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def _saved_with(self, values: list[Any]) -> dict[int, list[Any]]:
        """What the last forward that saved these values saved at each level.

        A graph may have run several times before its first backward, and some runs have none.
        """
        keys = [key for key, _ in self.saved]
        index = len(keys) - 1 - keys[::-1].index(_identity(values))
        return self.saved.pop(index)[1]

    def _run(
        self, name: str, halves: dict[int, Boxed], own: dict[int, list[Any]], args: list[Any]
    ) -> dict[int, Sequence[Any]]:
        """Run a half at every level, and note what differs; `args` are those of the main level."""
        results: dict[int, Sequence[Any]] = {}
        seen: dict[int, dict[str, Tensor | None]] = {}
        for level in sorted(halves, key=lambda level: level == self.backend.main):
            is_main = level == self.backend.main
            given = list(args) if is_main else _copies(own[level])
            passed = args if is_main else list(given)
            if is_main:
                results[level] = halves[level](passed)
            else:
                with torch.random.fork_rng():
                    results[level] = halves[level](passed)
            count = self.outputs if name == "forward" else len(results[level])
            after = given if name == "forward" else []
            seen[level] = _tensors("result", results[level][:count]) | _tensors("argument", after)
        for level, found in seen.items():
            wrong = different(found, seen[0], self.backend.tolerances[level])
            self.backend.problems += [f"level {level} {name} {text}" for text in wrong]
        return results


def _checker(joint: GraphModule, roles: JointRoles, tally: Tally) -> ClaimChecker:
    copied, roles = _copied(joint, roles)
    return ClaimChecker(copied, tally, roles)


def _for_backward(saved: Sequence[Any]) -> list[Any]:
    """What a forward saves, in the order of the backward: there symbols come first."""
    tensors = [value for value in saved if isinstance(value, Tensor)]
    return [*(v for v in saved if not isinstance(v, Tensor)), *tensors]


def _identity(values: Sequence[Any]) -> tuple[Any, ...]:
    """Tells the values that one run saves from those of another."""
    return tuple(v.data_ptr() if isinstance(v, Tensor) else v for v in values)


def _tensors(prefix: str, values: Sequence[Any]) -> dict[str, Tensor | None]:
    return {
        f"{prefix} {i}": v.detach().clone() if isinstance(v, Tensor) else None
        for i, v in enumerate(values)
    }


def _copies(values: Sequence[Any]) -> list[Any]:
    return [_copy(value) if isinstance(value, Tensor) else value for value in values]


def _copy(value: Tensor) -> Tensor:
    """A copy with the same strides, gaps and overlaps too."""
    storage = value.untyped_storage().clone()
    empty = torch.empty(0, dtype=value.dtype)
    return empty.set_(storage, value.storage_offset(), value.shape, value.stride())
