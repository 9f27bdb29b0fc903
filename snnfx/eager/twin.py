"""A twin of a model on fake tensors: the same modules and state, without memory."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnfx._torch_compat import FakeTensor, FakeTensorMode, pytree
from snnfx.errors import CaptureError
from snnfx.module_state import kept_state

MAKES_LITERALS = (
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.lift_fresh_copy.default,
    torch.ops.aten.lift.default,
)
"""Operators that take a real tensor, which the user's code wrote down, and make a fake one."""


def fake_twin(net: nn.Module, mode: FakeTensorMode, *, train: bool = True) -> nn.Module:
    """A copy of `net` whose parameters, buffers and state are fake tensors.

    Tensors that are one in `net` are one in the twin. Tensors are looked for among the attributes
    of modules, and in the lists, tuples and dicts there; what is not found is copied for real.

    Args:
        net: what to copy.
        mode: of the fake tensors.
        train: whether a model in evaluation mode is copied in training mode.

    Raises:
        CaptureError: the model cannot be copied.
    """
    fakes: dict[int, Any] = {}
    try:
        for tensor in _state_tensors(net):
            if id(tensor) not in fakes:
                fakes[id(tensor)] = fake_of(tensor, mode)
        twin = copy.deepcopy(net, fakes)
    except (TypeError, RuntimeError) as error:
        raise CaptureError(
            f"the model cannot be copied, so no step of it can be recorded: {error}. Make it work "
            "with copy.deepcopy: keep tensors in parameters, buffers or plain attributes, and "
            "what belongs to the process (locks, files, streams) outside of the model."
        ) from error
    return twin.train() if train and not twin.training else twin


def fake_of(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A fake leaf of the same sizes, strides, type and device; from the meta device, on the CPU."""
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is mode:
        return tensor
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    if tensor.layout is not torch.strided:
        return mode.from_tensor(tensor.detach())
    with torch.no_grad(), mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def with_fakes(values: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """The arguments of an operator with fake tensors in the place of real ones."""
    if isinstance(values, Tensor):
        return values if isinstance(values, FakeTensor) else make(values)
    if isinstance(values, dict):
        return {name: with_fakes(value, make) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(with_fakes(value, make) for value in values)
    return values


def fake_arguments(args: Sequence[Any], mode: FakeTensorMode) -> tuple[Any, ...]:
    """The arguments with fake tensors in the place of tensors; one tensor stays one."""
    fakes: dict[int, Tensor] = {}
    return pytree.tree_map_only(
        Tensor, lambda t: fakes.setdefault(id(t), fake_of(t, mode)), tuple(args)
    )


def _state_tensors(net: nn.Module) -> Iterator[Tensor]:
    for module in net.modules():
        leaves = pytree.tree_leaves(dict(vars(module)))
        yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))


@contextmanager
def kept_as_it_is(net: nn.Module) -> Generator[None]:
    """Undo whatever happens to `net`'s attributes, gradients and to random states inside.

    A twin can reach the model that it was copied from: through functions, which no copy enters.
    """
    python_state = random.getstate()
    devices = {t.device.index for t in _state_tensors(net) if t.device.type == "cuda"}
    devices = devices if torch.cuda.is_available() else set[int]()
    gradients = [(parameter, parameter.grad) for parameter in net.parameters()]
    rng_devices = [index or 0 for index in devices]
    with torch.random.fork_rng(devices=rng_devices), kept_state(net.modules()):
        try:
            yield
        finally:
            random.setstate(python_state)
            for parameter, gradient in gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient
