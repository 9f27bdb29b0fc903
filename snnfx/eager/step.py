"""The record of one eager training step: events, module calls, and the graph of the forward.

`snnfx.eager.trace` makes it, `snnfx.eager.replay` predicts from it.

Events are plain tuples `(kind, key, value)`, in the order in which they happened:

| kind | key | value | what happened |
|---|---|---|---|
| ALLOC | storage | | a storage was allocated |
| FREE | storage | | the last reference to it in Python, or in autograd, went |
| SAVE | holder | storage | autograd saved a tensor in that storage for the backward |
| USE | holder | | the backward took the saved tensor out |
| RETURN | holder | | what was taken out is no longer referenced |
| DROP | holder | | autograd let go of the saved tensor |
| RUN | operator | bytes | it ran: what it needs at its worst moment, beyond what it leaves behind |
| ENTER, EXIT | call | | a module was called, and returned |

ALLOC comes before the RUN of the operator that allocates. Saving keeps a storage alive; since who
saves what is what containers change, FREE does not count it: a storage lives as long as FREE has
not come, or as a holder that keeps it is neither dropped nor in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

ALLOC, FREE, SAVE, USE, RETURN, DROP, RUN, ENTER, EXIT = range(9)

Event = tuple[int, int, int]

OUTSIDE = 0
"""The number that stands for all memory which the record does not follow: parameters, buffers."""


@dataclass(frozen=True)
class CallTensor:
    """A tensor that is passed to a module.

    Attributes:
        node: its value in the graph of the forward.
        storage: where it lies; `OUTSIDE` if that is not followed.
        shape: its sizes.
        dtype: of its elements.
        bytes: of its elements, without gaps.
    """

    node: Node
    storage: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.bytes // self.dtype.itemsize


@dataclass(frozen=True)
class CallArguments:
    """How a module is called.

    Attributes:
        starts_with_tensor: the first positional argument is a tensor.
        only_tensors: so are all arguments, none of them given by keyword.
        has_keywords: there are keyword arguments.
    """

    starts_with_tensor: bool
    only_tensors: bool
    has_keywords: bool


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module in the forward.

    Attributes:
        path: of the module, as `named_modules` names it first; empty for the model itself.
        index: how many calls of the same module came before.
        inputs: the tensors among its arguments, positional ones first.
        arguments: what else is known of its arguments.
        outputs: the tensors among its results, in the graph.
        enter: the position of its ENTER among the events.
        exit: the position of its EXIT.
        seconds: of the operators between them, by the roofline.
    """

    path: str
    index: int
    inputs: tuple[CallTensor, ...]
    arguments: CallArguments
    outputs: tuple[Node, ...]
    enter: int
    exit: int
    seconds: float


@dataclass(frozen=True)
class EagerStep:
    """One training step, recorded.

    Attributes:
        events: see the module's description.
        graph: the operators of the forward, with fake tensors; placeholders stand for parameters,
            buffers and inputs (`meta["name"]` says which), and for tensors whose memory was written
            since they were computed, or that come from elsewhere (no name).
        calls: of modules in the forward, in the order in which they began.
        storage_bytes: of each storage; 0 for inputs, and for gradients of parameters, which are
            there with any method.
        operator_seconds: of each operator, by the roofline.
        backward: the position of the first event of the backward.
        holder_calls: for each holder, the innermost call in which it was made, or -1.
        peak_bytes: the most activation memory of the step as it was recorded.
        replayable: whether saved tensors are among the events, so that other choices of what is
            saved can be predicted.
    """

    events: tuple[Event, ...] = field(repr=False)
    graph: Graph = field(repr=False)
    calls: tuple[ModuleCall, ...] = field(repr=False)
    storage_bytes: tuple[int, ...] = field(repr=False)
    operator_seconds: tuple[float, ...] = field(repr=False)
    backward: int
    holder_calls: tuple[int, ...] = field(repr=False)
    peak_bytes: int
    replayable: bool

    def calls_of(self, path: str) -> tuple[ModuleCall, ...]:
        """The calls of one module; none if the step does not call it."""
        return tuple(call for call in self.calls if call.path == path)
