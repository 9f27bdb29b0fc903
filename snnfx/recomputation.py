"""Run a function now and again in the backward pass, keeping only its inputs in between.

This is checkpointing without re-entering autograd. The first run builds the ordinary graph, but of
the tensors that operators save for their backward only place-holders are kept (through
`torch.autograd.graph.saved_tensors_hooks`). When the backward pass asks for the first of them the
function is run again, from inputs that were kept, possibly compressed, and the tensors that it
saves this time are handed out, each to its place-holder, which gives it away once. Gradients flow
through the ordinary graph, so they are accumulated in the order, and through the hooks, of the
plain model: same kernels on the same numbers, hence the same bits.

What the second run shares with the first: autocast settings, random numbers, and what modules held
(`snnfx.module_state`). It stops once the last tensor that is still wanted has been saved. Nested
segments work: what an inner segment keeps is kept through the hooks of the outer one.

References: Chen et al., "Training deep nets with sublinear memory cost", 2016; Huang et al.,
"Towards lossless memory-efficient training of spiking neural networks via gradient checkpointing
and spike compression", ICLR 2026 (compressed inputs).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy

from snnfx._torch_compat import FakeTensor, in_transform, pytree
from snnfx.compressors import BaseSpikeCompressor, NullSpikeCompressor
from snnfx.errors import RecomputationError
from snnfx.module_state import StateBefore, StateWatch, version_of

Function = Callable[..., Any]


class _Here(threading.local):
    """What this thread is doing.

    Attributes:
        first: the innermost segment in its first run.
        second_runs: how many second runs this is inside of.
        latest: the segment that was computed again last, while it lives.
    """

    first: _Segment | None = None
    second_runs: int = 0
    latest: weakref.ref[_Segment] | None = None


_here = _Here()


def in_first_run() -> bool:
    """Whether this thread is inside of the first run of a segment, and not of a second one."""
    return _here.first is not None and _here.second_runs == 0


class _Enough(BaseException):
    """Ends a second run early; no handler of errors may take it for one."""


class _Kind(NamedTuple):
    """What a saved tensor must be like in both runs."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Kind:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)} on {self.device}"


class _Held(NamedTuple):
    """A tensor, and its version when it was saved: under hooks autograd does not compare them."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Held:
        return cls(tensor, version_of(tensor))

    def unchanged(self, segment: str) -> Tensor:
        if version_of(self.tensor) != self.version:
            raise RecomputationError(
                f"a tensor {_Kind.of(self.tensor)} that {segment} needs for the backward pass was "
                "changed in place after it was used. Use an operation that is not in place, and "
                "call backward before the optimizer's step."
            )
        return self.tensor


class _PlaceHolder:
    """Stands for a saved tensor; holds it from the second run until it is asked for."""

    __slots__ = ("__weakref__", "segment", "value")

    def __init__(self, segment: _Segment) -> None:
        self.segment = segment  # keeps the inputs alive as long as a tensor may be asked for
        self.value: _Held | None = None


@dataclass(frozen=True)
class _Surroundings:
    """Autocast, and the random numbers if the first run drew some."""

    autocast: tuple[tuple[str, torch.dtype, bool], ...]
    cpu_rng: Tensor | None
    cuda_rng: Tensor | None
    device: torch.device

    @contextmanager
    def restored(self) -> Generator[None]:
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            if self.cpu_rng is not None:
                devices = [self.device] if self.device.type == "cuda" else []
                stack.enter_context(torch.random.fork_rng(devices))
                torch.set_rng_state(self.cpu_rng)
                if self.cuda_rng is not None:
                    torch.cuda.set_rng_state(self.cuda_rng, self.device)
            yield


class _SurroundingsWatch:
    """Notes the surroundings when it is made; `before` says them once the run is over."""

    def __init__(self, x: Tensor) -> None:
        self._device = x.device
        kinds = dict.fromkeys((x.device.type, "cpu"))
        kinds.pop("meta", None)
        self._autocast = tuple(
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds
        )
        self._has_values = not isinstance(x, FakeTensor) and x.device.type != "meta"
        self._before = self._random_state()

    def _random_state(self) -> tuple[Tensor | None, Tensor | None]:
        if not self._has_values:
            return None, None
        on_cuda = self._device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_cuda else None

    def before(self) -> _Surroundings:
        pairs = zip(self._before, self._random_state(), strict=True)
        drawn = any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)
        states = self._before if drawn else (None, None)
        return _Surroundings(self._autocast, *states, self._device)


class _Keep(torch.autograd.Function):
    """Keeps tensors as autograd keeps them: through hooks around it, and with version checks."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return token.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise AssertionError("nothing depends on this node")


class _Again(torch.autograd.Function):
    """An input of a second run that autograd takes for the result of an operator.

    It has no history, so hooks that the function sets on its inputs are not set a second time.
    """

    @staticmethod
    def forward(ctx: Any, token: Tensor, make: Callable[[], Tensor]) -> Tensor:
        return make()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise AssertionError("the second run is not differentiated")


def _token() -> Tensor:
    return torch.empty(0, requires_grad=True)


def _again(tensor: Tensor) -> Tensor:
    """A kept tensor as the second run gets it; a parameter as it is, for `_Segment.save`."""
    if isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
        return tensor
    return _Again.apply(_token(), tensor.detach)


class _Inputs:
    """All that the second run starts from; autograd keeps its tensors.

    Made before the first run, which may change lists among the arguments; `keep` comes after it.
    """

    def __init__(self, compressor: BaseSpikeCompressor, x: Tensor, args: Sequence[Any]) -> None:
        self._compressor = compressor
        payload = compressor.compress(x)
        self._is_itself = any(tensor is x for tensor in payload.tensors())
        self._tracked = x.requires_grad
        self._empty_payload = payload.with_tensors(tuple(t.new_empty(0) for t in payload.tensors()))
        leaves, self._structure = pytree.tree_flatten((payload.tensors(), tuple(args)))
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._given: list[_Held] = [_Held.of(leaves[i]) for i in self._places]

    def keep(self, state: Sequence[Tensor], segment: str) -> None:
        """Let autograd keep the inputs, and the tensors of the modules' state.

        Raises:
            RecomputationError: the first run wrote to an input that is not kept compressed.
        """
        if any(version_of(tensor) != version for tensor, version in self._given):
            raise RecomputationError(
                f"{segment} changes one of its inputs in place, so it cannot be computed again "
                "from that. Begin it with an operation that is not in place."
            )
        tensors = (*(given.tensor for given in self._given), *state)
        self._given.clear()
        # Autograd keeps no inference tensors; plain modules may add them to others all the same.
        kept = (tensor.clone() if tensor.is_inference() else tensor for tensor in tensors)
        self._node = _Keep.apply(_token(), *kept).grad_fn

    def load(self) -> tuple[Tensor, Sequence[Any], Sequence[Tensor]]:
        """The first input, the further ones, and the tensors of the modules' state."""
        tensors = self._node.saved_tensors
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=False):
            leaves[place] = _again(tensor)
        packed, args = pytree.tree_unflatten(leaves, self._structure)
        state = [_again(tensor) for tensor in tensors[len(self._places) :]]
        return self._unpacked(packed), args, state

    def _unpacked(self, packed: Sequence[Tensor]) -> Tensor:
        if self._is_itself:
            return _again(packed[0])
        payload = self._empty_payload.with_tensors(packed)
        if not self._tracked:
            return self._compressor.decompress(payload)
        return _Again.apply(_token(), lambda: self._compressor.decompress(payload))


class _Segment:
    """One call of a function whose saved tensors are computed again when they are needed."""

    inputs: _Inputs | None = None
    state: StateBefore
    surroundings: _Surroundings

    def __init__(self, function: Function, name: str, tensors: Sequence[Tensor]) -> None:
        self.function = function
        self.name = name
        self.reached = [_Held.of(tensor) for tensor in tensors]
        self.outer = _here.first
        self.kinds: list[_Kind] = []
        self.holders: list[weakref.ref[_PlaceHolder]] = []

    @contextmanager
    def first_run(self) -> Generator[None]:
        """Let autograd keep place-holders."""
        _here.first = self
        try:
            with saved_tensors_hooks(self.save, self.load):
                yield
        finally:
            _here.first = self.outer

    def save(self, tensor: Tensor) -> _Held | _PlaceHolder:
        """What autograd keeps instead of a tensor; parameters, which live on, are kept."""
        if isinstance(tensor, nn.Parameter):
            return _Held.of(tensor)
        holder = _PlaceHolder(self)
        self.kinds.append(_Kind.of(tensor))
        self.holders.append(weakref.ref(holder))
        return holder

    def load(self, saved: _Held | _PlaceHolder) -> Tensor:
        """The tensor that was saved; the place-holder gives it away."""
        if isinstance(saved, _Held):
            return saved.unchanged(self.name)
        if saved.value is None:
            self._run_again()
        value, saved.value = saved.value, None
        assert value is not None
        return value.unchanged(self.name)

    def _run_again(self) -> None:
        inputs = self.inputs
        if inputs is None:
            raise RecomputationError(
                f"a gradient was asked for inside of {self.name}, of which only the input is kept. "
                "Leave the part that computes gradients of its own out of checkpointing."
            )
        for held in self.reached:
            held.unchanged(self.name)
        self._forget_others()
        second = _SecondRun(self)
        _here.second_runs += 1
        try:
            with torch.enable_grad():
                x, args, state = inputs.load()
                with (
                    self.state.restored(state),
                    self.surroundings.restored(),
                    saved_tensors_hooks(second.save, _same),
                ):
                    self.function(x, *args)
            second.fail_at_end()
        except _Enough:
            _here.latest = weakref.ref(self)
        finally:
            _here.second_runs -= 1

    def _forget_others(self) -> None:
        """Drop what the segment before was computed again for, and was not asked for.

        The backward pass runs through segments in the reverse of their order, so it has left that
        one. What nothing depends on (the last potential of a neuron) would otherwise be kept until
        the graph dies. Whatever is asked for nevertheless is computed once more.
        """
        mine = {id(segment) for segment in self._with_outer_ones()}
        latest = None if _here.latest is None else _here.latest()
        for segment in () if latest is None else latest._with_outer_ones():
            if id(segment) not in mine:
                segment.forget()

    def _with_outer_ones(self) -> Iterator[_Segment]:
        segment: _Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.outer

    def forget(self) -> None:
        """Drop the tensors that were computed again and are still here."""
        for reference in self.holders:
            holder = reference()
            if holder is not None:
                holder.value = None


class _SecondRun:
    """Hands what a second run saves to the place-holders that are left from the first."""

    def __init__(self, segment: _Segment) -> None:
        self._segment = segment
        self._count = 0
        holders = segment.holders
        self._end = max(i for i, holder in enumerate(holders) if holder() is not None) + 1

    def save(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        index = self._count
        self._check(index, tensor)
        holder = self._segment.holders[index]()
        value = tensor.detach()
        if holder is not None:
            holder.value = _Held.of(value)
        self._count += 1
        if self._count == self._end:
            raise _Enough
        return value

    def _check(self, index: int, tensor: Tensor) -> None:
        expected, found = self._segment.kinds[index], _Kind.of(tensor)
        if found != expected:
            raise RecomputationError(
                f"{self._segment.name} took another path when it was computed again: tensor "
                f"{index} that it saves for the backward pass is {found}, and was {expected}. "
                "What it computes may depend only on its inputs, its modules and random numbers."
            )

    def fail_at_end(self) -> None:
        raise RecomputationError(
            f"{self._segment.name} took another path when it was computed again: it saved "
            f"{self._count} tensors for the backward pass, and {self._end} are needed. What it "
            "computes may depend only on its inputs, its modules and random numbers."
        )


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _nothing(tensor: Tensor) -> None:
    """What is saved where nothing is differentiated."""


def _waits_for_input(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and is_lazy(tensor) for tensor in own)


def run_checkpointed(
    function: Function,
    compressor: BaseSpikeCompressor,
    x: Tensor,
    args: Sequence[Any] = (),
    *,
    modules: Sequence[nn.Module] = (),
    tensors: Sequence[Tensor] = (),
    name: str = "a checkpointed function",
    keeps_own_inputs: bool = False,
) -> Any:
    """``function(x, *args)``, of which only the inputs are kept for the backward pass.

    Where no gradient can flow, while torch.compile traces (its backend sees and plans the whole
    graph), under a transform of `torch.func`, which has no hooks of saved tensors, and while a lazy
    module waits for its first input, the function is simply called.

    Args:
        function: computes the same again from the same inputs, `modules` and random numbers.
        compressor: of `x`; must hold it without loss.
        x: kept compressed.
        args: kept as they are.
        modules: those whose state the function may read or change, each once.
        tensors: others that it reads; it may not write to them.
        name: of the segment, for errors.
        keeps_own_inputs: whether a segment inside of another one keeps its inputs itself, so that
            they need not be computed again with the outer one: it is then a piece cut out of the
            outer one, which saves none of its tensors.

    Returns:
        What the function returns.

    Raises:
        RecomputationError: the function changes its inputs in place, or asks for gradients of what
            it computes; and in the backward pass, where the second run went another way than the
            first, or could not be run on what the first was run on.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or in_transform():
        return function(x, *args)
    if keeps_own_inputs and _here.second_runs:
        with saved_tensors_hooks(_nothing, _same):
            return function(x, *args)
    if any(_waits_for_input(module) for module in modules):
        return function(x, *args)
    if isinstance(x, nn.Parameter):  # lives on anyhow
        compressor = NullSpikeCompressor()
    state_watch, surroundings_watch = StateWatch(modules), _SurroundingsWatch(x)
    inputs, segment = _Inputs(compressor, x, args), _Segment(function, name, tensors)
    with segment.first_run():
        outputs = function(x, *args)
    state_watch.release_histories()
    if any(holder() is not None for holder in segment.holders):
        segment.state, state = state_watch.before()
        segment.surroundings = surroundings_watch.before()
        with saved_tensors_hooks(_same, _same) if keeps_own_inputs else nullcontext():
            inputs.keep(state, name)
        for held in segment.reached:
            held.unchanged(name)
        segment.inputs = inputs
    return outputs
