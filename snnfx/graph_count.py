"""How many graphs Dynamo makes of one model, and a warning where it is more than one.

Memory is planned in each graph by itself, and what passes from one to the next is kept as it is,
so a model that Dynamo splits saves less. The backend is called once for each graph, and only when
the first backward runs are all graphs of a step known: that is when the warning comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule

from snnfx._torch_compat import compile_call, compiled_frame, graph_break_reason
from snnfx.errors import SnnfxWarning

_KEPT_AS = "_snnfx_graph_count"
_resets = 0


class GraphCount:
    """The graphs that were made for one call of `torch.compile`.

    A frame that is compiled again, for another shape or state, is not counted again.
    """

    def __init__(self) -> None:
        self.graphs = 0
        self.breaks: list[str] = []
        self.told = False
        self._first: dict[object, object] = {}
        self._resets = _resets

    @classmethod
    def current(cls) -> GraphCount:
        """That of the call for which the backend is running; a new one outside of any."""
        call = compile_call()
        return cls() if call is None else vars(call).setdefault(_KEPT_AS, cls())

    def add(self, module: GraphModule) -> None:
        """Count a graph that Dynamo hands to the backend."""
        if self._resets != _resets:  # all was forgotten, and frames are numbered from 0 again
            self._resets, self.graphs = _resets, 0
            self.breaks.clear()
            self._first.clear()
        frame, compilation = compiled_frame()
        if self._first.setdefault(frame, compilation) != compilation:
            return
        self.graphs += 1
        reason = graph_break_reason(module)
        if reason is not None:
            self.breaks.append(reason)

    def tell_when_run(self, run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """A boxed backward that first warns, once for a model, if there is more than one graph."""

        def told(args: list[Any]) -> Any:
            if self.graphs > 1 and not self.told:
                self.told = True
                warnings.warn(self.message(), SnnfxWarning, stacklevel=2)
            return run(args)

        told._boxed_call = True  # type: ignore[attr-defined]
        return told

    def message(self) -> str:
        """How many graphs, where the first break is, and what can be done."""
        first = f" The first break: {self.breaks[0]}." if self.breaks else ""
        return (
            f"snnmem compiles this model as {self.graphs} graphs, since Dynamo splits it; memory "
            f"is planned in each by itself, so less is saved than in one.{first} What to do: "
            "torch._dynamo.explain(model)(*inputs) lists all breaks; "
            "snnfx.adapters.adapt(model), called before torch.compile, mends those that Norse, "
            "Sinabs and snnTorch make; under DDP, set torch._dynamo.config.optimize_ddp = False."
        )


def forget_frames() -> None:
    """Called when `torch.compiler.reset` has made Dynamo forget what it compiled."""
    global _resets
    _resets += 1
