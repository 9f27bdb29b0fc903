"""Checkpointing for eager training: functions and containers that keep only their input, packed.

The names and signatures are the documented ones of SpikingJelly's `activation_based.memopt`. What
differs: gradients, batch-norm statistics, neuron state and random numbers are those of the plain
modules, bit for bit, without anything to declare; `torch.autograd.grad`, hooks of parameters, DDP
and double backward work, since autograd sees the ordinary graph; and chunks along time that would
change the result are refused.

Shapes: T time steps, N batch. A sequence is ``[T, N, *]``.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from snnfx._torch_compat import FakeTensor, pytree
from snnfx.base import MemoryModule
from snnfx.compressors import BaseSpikeCompressor, NullSpikeCompressor
from snnfx.errors import ChunkError
from snnfx.recomputation import in_first_run, run_checkpointed

__all__ = [
    "GCContainer",
    "TCGCContainer",
    "in_gc_1st_forward",
    "input_compressed_gc",
    "query_autocast",
    "to_gc_function",
]

_NOT_FORWARDED = ("_memories", "_memories_rv")
_LOOKED_FOR = ("reset", "detach", "step_mode")
"""What SpikingJelly looks for on every module of a tree, and would find, and change, twice."""


def in_gc_1st_forward() -> bool:
    """Whether the code that asks is inside of the first forward pass of checkpointing.

    False outside of checkpointing, and while anything is computed again.
    """
    return in_first_run()


def query_autocast() -> tuple[str, torch.dtype, bool]:
    """The current autocast settings.

    Returns:
        ``(device_type, dtype, is_enabled)``. Without autocast the first two are ``"cpu"`` and
        ``torch.get_autocast_dtype("cpu")``.
    """
    for device_type in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device_type):
            return device_type, torch.get_autocast_dtype(device_type), True
    return "cpu", torch.get_autocast_dtype("cpu"), False


def input_compressed_gc(
    f_forward: Callable[..., Any], x_compressor: BaseSpikeCompressor, x_seq: Tensor, *args: Any
) -> Any:
    """Call a function; keep only its inputs, the first one compressed, for the backward pass.

    The state of modules (neurons, batch norm) moves on once if `f_forward` is a module or a method
    of one, or if they are found among its arguments, its closure, the globals that it names, the
    attributes of its object, or those of plain functions and objects of its own file.

    Args:
        f_forward: computes the same again from the same inputs, state and random numbers.
        x_compressor: of `x_seq`. It must hold the tensor without loss: see its class.
        x_seq: the input that is kept compressed, typically spikes ``[T, N, *]``.
        args: further inputs, kept as they are. Tensors among them get their gradients.

    Returns:
        What the function returns: a tensor, or a tuple.

    Raises:
        RecomputationError: `f_forward` writes in place to its inputs (to `x_seq` it may where that
            is kept compressed) or to tensors outside of modules; and in the backward pass, where
            the function took another path than in the forward pass, or a parameter was changed.
    """
    if torch.compiler.is_compiling():  # or the compiler would trace the search for modules
        return f_forward(x_seq, *args)
    modules, tensors = _reached(f_forward, args)
    name = getattr(f_forward, "__qualname__", type(f_forward).__name__)
    return run_checkpointed(
        f_forward, x_compressor, x_seq, args, modules=modules, tensors=tensors, name=f"'{name}'"
    )


def to_gc_function(
    x_compressor: BaseSpikeCompressor, f_forward: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A function that runs through `input_compressed_gc`; also a decorator.

    Args:
        x_compressor: of the function's first argument.
        f_forward: the function; if None, a decorator is returned that takes it.
    """

    def convert(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checkpointed(x_seq: Tensor, *args: Any) -> Any:
            return input_compressed_gc(function, x_compressor, x_seq, *args)

        return checkpointed

    return convert if f_forward is None else convert(f_forward)


def _reached(
    function: Callable[..., Any], args: Sequence[Any]
) -> tuple[tuple[nn.Module, ...], tuple[Tensor, ...]]:
    """The modules that a function can reach, each once, and weights that are not arguments."""
    modules: dict[nn.Module, None] = {}
    weights: list[Tensor] = []
    seen: set[int] = set()
    waiting: list[Any] = [function, *args]
    home = _home_of(function)
    given = {id(leaf) for leaf in pytree.tree_leaves(list(args))}
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            modules.update(dict.fromkeys(value.modules()))
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Tensor):
                # What has a history was computed; its memory is not for a segment to keep.
                weights += [value] if value.is_leaf and id(value) not in given else []
            else:
                waiting += _reached_from(value, home)
    return tuple(modules), tuple(weights)


def _home_of(value: Any) -> str | None:
    """The name of the file that defines a function, or the class of an object."""
    while isinstance(value, functools.partial):
        value = value.func
    return getattr(value, "__module__", None)


def _reached_from(value: Any, home: str | None) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    yield getattr(value, "__self__", None)
    yield getattr(value, "__wrapped__", None)
    if home is None or _home_of(value) != home:
        return
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if code is None:
        yield from getattr(value, "__dict__", {}).values()
        return
    yield from (getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None))
    for cell in getattr(value, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    names = getattr(value, "__globals__", {})
    yield from (names[name] for name in _names_in(code) if name in names)


def _names_in(code: CodeType) -> Iterator[str]:
    """The names of globals in a function, its comprehensions and the functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _name_as_wrapped(container: GCContainer, incompatible: Any) -> None:
    """Let the errors of `load_state_dict` name the keys that `state_dict` gives."""
    prefix = container.__dict__.pop("_loaded_under", "")
    for keys in incompatible:
        keys[:] = [
            f"{prefix}{key.removeprefix(f'{prefix}0.')}" if key.startswith(f"{prefix}0.") else key
            for key in keys
        ]


class GCContainer(nn.Sequential):
    """Modules in a row of which only the input is kept, compressed, until the backward pass.

    In inference, under `torch.no_grad`, and where nothing needs a gradient it is an
    `nn.Sequential`. So it is under `torch.compile`: the backend sees the whole graph, and
    ``backend="snnmem"`` plans it without the container's help.

    Args:
        x_compressor: of the first input; `NullSpikeCompressor` if None.
        args: the modules. The first one may take further inputs.
    """

    def __init__(self, x_compressor: BaseSpikeCompressor | None, *args: nn.Module) -> None:
        super().__init__(*args)
        self.x_compressor = NullSpikeCompressor() if x_compressor is None else x_compressor
        self._is_wrapper = False
        self._is_cut_out = False

    @classmethod
    def wrapping(
        cls,
        module: nn.Module,
        x_compressor: BaseSpikeCompressor | None = None,
        *,
        is_cut_out: bool = False,
        **options: int,
    ) -> Self:
        """A container that takes the place of one module in a model.

        Its `state_dict` has the module's own keys, so that checkpoints of the model with and
        without the container are the same, and the module's attributes can be read from it (but
        for `reset` and `detach` of other modules than ours, since SpikingJelly looks for them).

        Args:
            module: what to wrap.
            x_compressor: of its first input.
            is_cut_out: whether, inside of another container, it is a piece cut out of that: its
                inputs are kept, and the other container does not compute them again for it.
            options: further arguments of the class.
        """
        container = cls(x_compressor, module, **options)
        container._is_wrapper = True
        container._is_cut_out = is_cut_out
        container.register_load_state_dict_post_hook(_name_as_wrapped)
        return container

    def __getitem__(self, idx: Any) -> Any:
        """A module; for a slice, a container of some of the modules with the same settings."""
        if not isinstance(idx, slice):
            return super().__getitem__(idx)
        modules = OrderedDict(list(self._modules.items())[idx])
        return type(self)(self.x_compressor, cast(Any, modules), **self._counts())

    def _counts(self) -> dict[str, int]:
        """The options of `__init__` that are given by keyword."""
        return {}

    @property
    def num_states(self) -> int:
        """The number of state variables ("memories") of the modules."""
        return sum(len(getattr(module, "_memories", ())) for module in self.modules())

    def super_forward(self, input: Any) -> Any:
        """As `nn.Sequential`, without checkpointing."""
        for module in self:
            input = module(input)
        return input

    def stateless_forward(self, x: Tensor, *args: Any) -> Any:
        """Checkpoint modules without state variables; buffers and settings are kept all the same.

        Args:
            x: kept compressed.
            args: further inputs of the first module, kept as they are.
        """
        return self._checkpointed(x, *args)

    def stateful_forward(self, x: Tensor, *args: Any) -> Any:
        """Checkpoint modules with state variables, which are further inputs and outputs.

        Args:
            x: kept compressed.
            args: further inputs of the first module, kept as they are.
        """
        return self._checkpointed(x, *args)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the documented names
        self, x: Tensor, *args: Any
    ) -> Any:
        """Run the modules; see the class.

        Raises:
            RecomputationError: see `input_compressed_gc`.
        """
        if not self._needs_gradient(x, *args):
            return self._plain(x, *args)
        run = self.stateful_forward if self.num_states else self.stateless_forward
        return run(x, *args)

    def _plain(self, x: Any, *args: Any) -> Any:
        if not args:
            return self.super_forward(x)
        first, *others = self
        x = first(x, *args)
        for module in others:
            x = module(x)
        return x

    def _checkpointed(self, x: Tensor, *args: Any) -> Any:
        return run_checkpointed(
            self._plain,
            self.x_compressor,
            x,
            args,
            modules=tuple(self.modules()),
            name=f"the {type(self).__name__} of {', '.join(type(m).__name__ for m in self)}",
            keeps_own_inputs=self._is_cut_out,
        )

    def _needs_gradient(self, *inputs: Any) -> bool:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        states = (v for m in self.modules() for v in getattr(m, "_memories", {}).values())
        tensors = (v for values in (inputs, states) for v in values if isinstance(v, Tensor))
        return any(t.requires_grad for t in tensors) or any(
            parameter.requires_grad for parameter in self.parameters()
        )

    def extra_repr(self) -> str:
        """The compressor, for `repr`."""
        return f"x_compressor={type(self.x_compressor).__name__}"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            is_own = name in _NOT_FORWARDED or name.startswith("__")  # such as __deepcopy__
            if is_own or not self.__dict__.get("_is_wrapper"):
                raise
            module = self.__dict__["_modules"]["0"]
            if name in _LOOKED_FOR and not isinstance(module, MemoryModule):
                raise
            return getattr(module, name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; where the container wraps one module, with that module's keys."""
        if self._is_wrapper:
            return self[0].state_dict(*args, **kwargs)
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self._is_wrapper:
            self._loaded_under = prefix
            plain = {f"{prefix}{key}" for key in self[0].state_dict()}
            nested = {f"{prefix}0.{key.removeprefix(prefix)}" for key in plain}
            if sum(key in plain for key in state_dict) > sum(key in nested for key in state_dict):
                for key in [key for key in state_dict if key.startswith(prefix)]:
                    state_dict[f"{prefix}0.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def chunk_sizes(steps: int, count: int) -> list[int]:
    """The sizes of at most `count` chunks of `steps` time steps, as equal as can be."""
    count = max(1, min(count, steps))
    return [steps // count + (index < steps % count) for index in range(count)]


class TCGCContainer(GCContainer):
    """A `GCContainer` that runs its sequence in chunks along time, neuron state carried over.

    Each chunk is checkpointed by itself, so that only one at a time is computed again. Before a
    kind of input is first run in chunks, the modules are traced on its shapes, and it is proven
    that the chunks give the same outputs and state as the whole sequence (a weight's gradient is
    the sum over the chunks, in another order). Batch norm with the statistics of the batch, random
    numbers, and whatever else sees several time steps at once are refused: put these into a
    `GCContainer` of their own. Set the attribute ``check_chunks`` to False to do without the proof.

    Args:
        x_compressor: of each chunk of the first input; `NullSpikeCompressor` if None.
        args: the modules.
        n_chunk: number of chunks, at most T of them are made.
        n_seq_inputs: how many of the inputs are sequences ``[T, N, *]``; the others go whole to
            every chunk.
        n_outputs: how many outputs there are, all of them sequences.

    Raises:
        ChunkError: a count is less than 1.
    """

    def __init__(
        self,
        x_compressor: BaseSpikeCompressor | None,
        *args: nn.Module,
        n_chunk: int = 1,
        n_seq_inputs: int = 1,
        n_outputs: int = 1,
    ) -> None:
        super().__init__(x_compressor, *args)
        counts = {"n_chunk": n_chunk, "n_seq_inputs": n_seq_inputs, "n_outputs": n_outputs}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ChunkError(f"{name} must be a whole number of 1 or more, got {count!r}")
        self.n_chunk = n_chunk
        self.n_seq_inputs = n_seq_inputs
        self.n_outputs = n_outputs
        self.check_chunks = True
        self._proven: set[Any] = set()

    def _counts(self) -> dict[str, int]:
        names = ("n_chunk", "n_seq_inputs", "n_outputs")
        return {name: getattr(self, name) for name in names}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the documented names
        self, x_seq: Tensor, *args: Any
    ) -> Any:
        """Run the modules chunk by chunk; see the class.

        Args:
            x_seq: ``[T, N, *]``.
            args: further sequences, as many as `n_seq_inputs` says, then what goes to every chunk.

        Raises:
            ChunkError: sequences of different lengths, an unexpected number of outputs, or modules
                for which chunks are not proven to be exact.
        """
        if self.n_chunk == 1 or not self._needs_gradient(x_seq, *args):
            return super().forward(x_seq, *args)
        sequences, others = self._separated(x_seq, *args)
        sizes = chunk_sizes(sequences[0].shape[0], self.n_chunk)
        # A run on fake tensors has no results that could be wrong.
        if self.check_chunks and len(sizes) > 1 and not isinstance(x_seq, FakeTensor):
            self._prove(sequences, others, sizes)
        # One split has one gradient, where as many slices would each fill a whole one with zeros.
        parts = [sequence.split(sizes) for sequence in sequences]
        forward = super().forward
        chunks = [forward(*part, *others) for part in zip(*parts, strict=True)]
        return self._joined(chunks)

    def _separated(self, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        sequences, others = inputs[: self.n_seq_inputs], inputs[self.n_seq_inputs :]
        lengths = [x.shape[0] if isinstance(x, Tensor) and x.ndim else None for x in sequences]
        if len(lengths) < self.n_seq_inputs or None in lengths or len(set(lengths)) > 1:
            raise ChunkError(
                f"{self._get_name()} takes {self.n_seq_inputs} sequences with the same number of "
                f"time steps in dimension 0, and got inputs with {lengths} steps; see n_seq_inputs"
            )
        return sequences, others

    def _prove(
        self, sequences: Sequence[Tensor], others: Sequence[Any], sizes: Sequence[int]
    ) -> None:
        from snnfx.eager.chunk_proof import prove_chunks, run_key

        key = run_key(self, sequences, others, sizes)
        if key in self._proven:
            return
        refusal = prove_chunks(self, sequences, others, sizes, forward="_plain")
        if refusal is not None:
            raise ChunkError(
                f"running {', '.join(type(m).__name__ for m in self)} in {len(sizes)} chunks of "
                f"time is not proven to give what the whole sequence gives: {refusal.reason} Set "
                "n_chunk=1, put that part into a GCContainer of its own, or, if you know better, "
                "set check_chunks = False on this container."
            )
        self._proven.add(key)

    def _joined(self, chunks: Sequence[Any]) -> Any:
        if self.n_outputs == 1 and all(isinstance(chunk, Tensor) for chunk in chunks):
            return torch.cat(list(chunks))
        if any(not isinstance(c, (tuple, list)) or len(c) != self.n_outputs for c in chunks):
            raise ChunkError(
                f"the modules of {self._get_name()} must give {self.n_outputs} tensors; see "
                f"n_outputs. They gave {type(chunks[0]).__name__}"
            )
        return tuple(torch.cat(outputs) for outputs in zip(*chunks, strict=True))

    def extra_repr(self) -> str:
        """The compressor and the numbers of chunks, inputs and outputs, for `repr`."""
        counts = f"n_seq_inputs={self.n_seq_inputs}, n_outputs={self.n_outputs}"
        return f"{super().extra_repr()}, n_chunk={self.n_chunk}, {counts}"
