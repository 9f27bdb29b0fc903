"""Watches a run and writes down its pieces of work: those of layers, and those outside of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.overrides import resolve_name
from torch.utils.hooks import RemovableHandle

from snnfx._torch_compat import TorchDispatchMode, in_backward, pytree
from snnfx.op_counter.counter import Ignored, is_ignored
from snnfx.op_counter.neuromc.modules import (
    LayerCall,
    LayerRules,
    Stage,
    is_spikes,
    rules_for,
)
from snnfx.op_counter.neuromc.operators import (
    BACKWARD,
    FORWARD,
    OperatorCall,
    Products,
    is_free,
)
from snnfx.op_counter.neuromc.piece import Piece
from snnfx.op_counter.neuron_types import is_neuron
from snnfx.op_counter.tracker import ActiveModuleTracker


class Recorder:
    """What runs, as pieces of work, while `watching`.

    Layers tell of themselves through hooks: of each call, and of its backward when the gradient of
    the output is there. Operators are seen by dispatch. In a forward, those that run inside of a
    layer are the layer's. In a backward nothing says whose an operator is: each layer whose
    backward ran claims one piece of the same size for each of its own. (SpikingJelly 2.0.0 compares
    shapes: it drops any number of functional operators that look like a layer, and counts the
    products of linear layers' backwards a second time, since it takes their C and K for each
    other.)

    Args:
        model: whose layers tell.
        ignored: modules, or types of modules, inside of which nothing is recorded.
        verbose: print each piece.

    Attributes:
        stage: what the user says of what runs.
        paused: whether nothing is recorded.
        pieces: of layers and of optimizers.
        outside: calls of operators that are outside of the model, by name.
    """

    def __init__(self, model: nn.Module, ignored: Iterable[Ignored], verbose: bool) -> None:
        self.stage = Stage()
        self.paused = False
        self.pieces: list[Piece] = []
        self.outside: Counter[str] = Counter()
        self._ignored = tuple(ignored)
        self._verbose = verbose
        self._tracker = ActiveModuleTracker()
        left_out = {part for m in model.modules() if self._ignores(m) for part in m.modules()}
        self._layers = {m: rules for m, rules in _layers(model) if m not in left_out}
        self._products = Products(model)
        self._handles: list[RemovableHandle] = []
        self._others: list[Piece] = []
        self._claims: Counter[tuple[str, int, int, str]] = Counter()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Record what runs inside; on leaving, the model has none of the hooks any more."""
        with ExitStack() as stack:
            stack.enter_context(self._tracker)
            stack.callback(self._forget_calls)
            for layer in self._layers:
                forward = layer.register_forward_hook(self._forward, with_kwargs=True)
                stack.callback(forward.remove)
            stack.enter_context(_Dispatch(self))
            yield

    def _forget_calls(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def add(self, pieces: Iterable[Piece]) -> None:
        """Write down pieces of layers or optimizers."""
        for piece in pieces:
            self.pieces.append(piece)
            self._tell(piece)

    def all_pieces(self) -> list[Piece]:
        """Those of layers and optimizers, then those of operators that no layer claims."""
        return [*self.pieces, *_unclaimed(self._others, self._claims)]

    def _forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if self._is_off() or not inputs or not outputs:
            return
        spikes = not is_neuron(layer) and is_spikes(inputs[0])
        needed = inputs[0].requires_grad
        call = LayerCall(layer, inputs[0].shape, outputs[0].shape, spikes, needed)
        if not self._is_recomputation():
            self.add(self._layers[layer].forward(self.stage, call))
        reached = [output for output in outputs if output.requires_grad]
        if torch.is_grad_enabled() and reached:
            back = register_multi_grad_hook(reached, lambda *_: self._backward(call), mode="any")
            self._handles.append(back)

    def _backward(self, call: LayerCall) -> None:
        """The gradient of a layer's output is there: its backward runs next."""
        if self._is_off():
            return
        pieces = self._layers[call.module].backward(self.stage, call)
        self._claims.update(_size(piece) for piece in pieces)
        self.add(pieces)

    def operator(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Look at an operator that ran."""
        if self._is_off() or self._is_recomputation():
            return
        back = in_backward() or self.stage.phase != "forward"
        in_layer = not back and any(m in self._layers for m in self._tracker.active_modules)
        rule = (BACKWARD if back else FORWARD).find(func)
        name = str(resolve_name(func))
        pieces = rule and rule(OperatorCall(name, args, out, self.stage, self._products))
        if pieces is not None:
            found = list(pieces)  # a rule also remembers, so it runs inside of a layer, too
            self._others += [] if in_layer else found
        elif not in_layer and not is_free(func):
            self.outside[name] += 1

    def _is_off(self) -> bool:
        return self.paused or any(map(self._ignores, self._tracker.active_modules))

    def _ignores(self, module: nn.Module) -> bool:
        return is_ignored(module, self._ignored)

    def _is_recomputation(self) -> bool:
        """Whether a forward runs inside of a backward: checkpointing, which the chip has not."""
        return self.stage.phase == "backward" and torch.is_grad_enabled()

    def _tell(self, piece: Piece) -> None:
        if self._verbose:
            print(
                f"NeuroMC: {piece.stage}: {piece.op_name} on {piece.core_type}, {piece.macs} MACs"
            )


class _Dispatch(TorchDispatchMode):
    """Hands each operator to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        self._recorder.operator(func, args, out)
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, LayerRules]]:
    """The layers of the cost model, each once; neurons inside of a neuron are part of it."""
    inside = {
        part for m in model.modules() if is_neuron(m) for part in m.modules() if part is not m
    }
    for module in model.modules():
        rules = rules_for(module)
        if rules is not None and not (is_neuron(module) and module in inside):
            yield module, rules


def _size(piece: Piece) -> tuple[str, int, int, str]:
    return piece.process_key, piece.macs, piece.output_numel, piece.core_type


def _unclaimed(pieces: list[Piece], claims: Counter[tuple[str, int, int, str]]) -> list[Piece]:
    """Pieces without those that are claimed: of the same size and core, then of the size alone."""
    left, pieces = Counter(claims), list(pieces)
    for length in (4, 3):
        wanted = _shortened(left, length)
        kept: list[Piece] = []
        for piece in pieces:
            size = _size(piece)
            if piece.phase == "backward" and wanted[size[:length]] > 0:
                wanted[size[:length]] -= 1
            else:
                kept.append(piece)
        left, pieces = wanted, kept
    return pieces


def _shortened(claims: Counter[Any], length: int) -> Counter[Any]:
    shortened: Counter[Any] = Counter()
    for size, count in claims.items():
        shortened[size[:length]] += count
    return shortened
