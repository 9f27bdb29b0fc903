"""The function that the command line plans for: found by name, and called without allocating.

A target is ``MODULE:FUNCTION`` or ``path/to/file.py:FUNCTION``. The function returns
``(model, example_inputs)``. It is called with all its tensors on the meta device, so that a model
of any size costs no memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snnfx._torch_compat import pytree
from snnfx.errors import TargetError

BATCH_ARGUMENTS = ("batch", "batch_size", "n")
MOVES = {Tensor.cpu, Tensor.cuda, Tensor.pin_memory}
LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
SMALL_TABLES = {torch.linspace}


@dataclass(frozen=True)
class Built:
    """What the function of a target returned.

    Attributes:
        model: with tensors that take no memory, unless real ones were asked for.
        inputs: the arguments of the model.
    """

    model: nn.Module
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Target:
    """A function that builds a model and its inputs.

    Attributes:
        name: as the user gave it.
        function: returns ``(model, example_inputs)``.
        batch_argument: its argument that takes the batch; None if it has none.
        batch_dim: which dimension of each input is the batch, for a function without such an
            argument; None if nobody said.
        real: call it with real tensors, for one that reads their values.
        keeps_values: inputs that are resized keep their values, repeated or cut off; else they take
            no memory, and have none.
    """

    name: str
    function: Callable[..., Any]
    batch_argument: str | None
    batch_dim: int | None = None
    real: bool = False
    keeps_values: bool = False

    def build(self, batch: int | None = None) -> Built:
        """Call the function, for a batch or with its own default.

        The batch goes to the function's argument of that name. A function without one is called as
        it is, and its inputs are resized: all whose size along `batch_dim` is that of the first
        input. Their values are lost unless `keeps_values`.

        Raises:
            TargetError: the function fails, returns something else, or its batch is not known.
        """
        self.check_batch(batch)
        given = {} if batch is None or self.batch_argument is None else {self.batch_argument: batch}
        with _named(self.name, self.real), nullcontext() if self.real else _Weightless():
            result = self.function(**given)
        built = _checked(self.name, result)
        if batch is None or self.batch_argument is not None:
            return built
        return Built(built.model, self._resized(built.inputs, batch))

    def check_batch(self, batch: int | None) -> None:
        """Hold that the function can be called for a batch, or without naming one.

        Raises:
            TargetError: no default, or no way to choose the batch.
        """
        if batch is None and self._needs_batch():
            raise TargetError(
                f"{self.name} has no default for '{self.batch_argument}': give --batch"
            )
        if batch is not None and self.batch_argument is None and self.batch_dim is None:
            raise TargetError(
                f"{self.name} has no argument named {_listed(BATCH_ARGUMENTS)}: add one, or say "
                "with --batch-dim which dimension of the inputs is the batch "
                "(0 for [N, ...], 1 for [T, N, ...])"
            )

    def _needs_batch(self) -> bool:
        if self.batch_argument is None:
            return False
        parameter = inspect.signature(self.function).parameters[self.batch_argument]
        return parameter.default is inspect.Parameter.empty

    def _resized(self, inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
        dim = self.batch_dim or 0
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        if not tensors or tensors[0].ndim <= dim:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "no tensors"
            raise TargetError(f"{self.name}: the inputs have no dimension {dim}: {shapes}")
        current = tensors[0].shape[dim]

        def resized(tensor: Tensor) -> Tensor:
            if tensor.ndim <= dim or tensor.shape[dim] != current:
                return tensor
            if self.keeps_values:
                places = torch.arange(batch, device=tensor.device) % current
                return (
                    tensor.detach().index_select(dim, places).requires_grad_(tensor.requires_grad)
                )
            shape = (*tensor.shape[:dim], batch, *tensor.shape[dim + 1 :])
            other = torch.empty(shape, dtype=tensor.dtype, device="meta")
            return other.requires_grad_(tensor.requires_grad)

        return pytree.tree_map_only(Tensor, resized, inputs)


def load_target(
    name: str, batch_dim: int | None = None, real: bool = False, keeps_values: bool = False
) -> Target:
    """Find the function that ``MODULE:FUNCTION`` or ``path/to/file.py:FUNCTION`` names.

    The current directory can be imported from, and so can the folder of a file, as when Python
    runs that file.

    Args:
        name: of the function.
        batch_dim: see `Target`.
        real: see `Target`.
        keeps_values: see `Target`.

    Raises:
        TargetError: there is no such module or function; the text says what there is.
    """
    place, colon, attribute = name.rpartition(":")
    if not (place and colon and attribute):
        raise TargetError(
            f"'{name}' names no function: give MODULE:FUNCTION or path/to/file.py:FUNCTION"
        )
    _importable(Path.cwd())
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        own = (n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_")
        raise TargetError(f"'{place}' has no function '{attribute}'; it has {_listed(own)}")
    parameters = inspect.signature(function).parameters
    argument = next((n for n in BATCH_ARGUMENTS if n in parameters), None)
    return Target(name, function, argument, batch_dim, real, keeps_values)


def _load_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise TargetError(f"there is no file '{place}'")
    _importable(path.resolve().parent)
    name = f"_snnfx_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"'{place}' cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _Explained(f"'{place}' cannot be imported"):
        spec.loader.exec_module(module)
    return module


def _load_module(place: str) -> ModuleType:
    with _Explained(f"'{place}' cannot be imported"):
        return importlib.import_module(place)


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _checked(name: str, result: Any) -> Built:
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise TargetError(
            f"{name} must return (model, example_inputs); what it returned is {_kind(result)}"
        )
    model, inputs = result
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"{name} must return (model, example_inputs): the model is {_kind(model)}, "
            "not a torch.nn.Module"
        )
    if not isinstance(inputs, (Tensor, tuple, list)):
        raise TargetError(
            f"{name} must return (model, example_inputs): the inputs are {_kind(inputs)}, "
            "not a tensor or a tuple of the model's arguments"
        )
    return Built(model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs))


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _named(name: str, real: bool) -> _Explained:
    way_out = "" if real else (
        ". It was called with all tensors on the meta device, so that nothing is allocated: there "
        "it must not read values of tensors. --real calls it with real tensors"
    )  # fmt: skip
    return _Explained(f"{name} failed", way_out)


class _Explained:
    """Turns whatever the user's own code raises into one line; code of ours is not run in it."""

    def __init__(self, what: str, way_out: str = "") -> None:
        self.what = what
        self.way_out = way_out

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind
        if isinstance(error, Exception):
            text = str(error).strip().partition("\n")[0].rstrip(".")
            place = _innermost(trace)
            raise TargetError(
                f"{self.what}{place}: {type(error).__name__}: {text}{self.way_out}"
            ) from error


def _innermost(trace: TracebackType | None) -> str:
    """The user's line that failed: the last one that lies in no installed package."""
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(("<", __file__, *LIBRARIES)):
            place = f" at {file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class _Weightless(TorchFunctionMode):
    """All new tensors are on the meta device and stay there, whatever device is asked for.

    Only `torch.linspace` gives real tensors: networks read rates from such tables while they are
    built (``[rate.item() for rate in torch.linspace(0, 0.1, depth)]``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._meta = torch.device("meta")

    def __enter__(self) -> Any:
        self._meta.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._meta.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in SMALL_TABLES:
            return func(*args, **{**kwargs, "device": "cpu"})
        if func in MOVES:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = self._meta
        kwargs.pop("generator", None)
        if func is Tensor.to:
            args = (args[0], *(self._meta if _is_device(arg) else arg for arg in args[1:]))
        return func(*args, **kwargs)


def _is_device(argument: Any) -> bool:
    is_number = isinstance(argument, int) and not isinstance(argument, bool)
    return is_number or isinstance(argument, (str, torch.device))
