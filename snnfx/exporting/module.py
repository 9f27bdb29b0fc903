"""A rewritten model as a module that trains as the model did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from snnfx.errors import ExportError
from snnfx.exporting.signature import StepSignature
from snnfx.exporting.step import Step, check_primals
from snnfx.exporting.structure import flatten, unflatten
from snnfx.passes.plan.memory_plan import MemoryPlan

TRAIN, EVAL = "train", "eval"


class RewrittenModule(nn.Module):
    """A model whose forward and backward are the planned graphs.

    It has the model's parameters and buffers under the model's names, and so its `state_dict`. In
    training mode it runs the step of the model as it was rewritten, in evaluation mode that of
    ``model.eval()``; where no gradient is asked for, it runs the forward alone and keeps nothing.
    Each call starts from the state (membrane potentials, say) that the model had when it was
    rewritten; only buffers that are written to carry something to the next call. What a call gives
    has memory of its own, also where the model gave a view of an input.

    Dtypes and devices are those of the graphs: after ``.to(...)`` another one is refused by the
    next call. Autocast around a call changes nothing; autocast around `rewrite` is in the graphs.
    Gradients of gradients are refused.
    """

    def __init__(self, steps: Mapping[str, Step], state: Mapping[str, tuple[Tensor, bool]]) -> None:
        """Make the module.

        Args:
            steps: by mode, ``"train"`` or ``"eval"``.
            state: each parameter and buffer by its name, and whether `state_dict` has it; a tensor
                that has several names is shared by them.
        """
        super().__init__()
        self._steps = dict(steps)
        self._slots: dict[str, tuple[Mapping[str, Any], str]] = {}
        for name, (tensor, persistent) in state.items():
            self._hold(name, tensor, persistent)
        self.train(TRAIN in steps)

    def _hold(self, name: str, tensor: Tensor, persistent: bool) -> None:
        *path, leaf = name.split(".")
        module: nn.Module = self
        for part in path:  # not by add_module, which refuses names that modules have themselves
            module = module._modules.setdefault(part, _Part())  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = tensor
            self._slots[name] = (module._parameters, leaf)
            return
        module._buffers[leaf] = tensor
        self._slots[name] = (module._buffers, leaf)
        if not persistent:
            module._non_persistent_buffers_set.add(leaf)

    @property
    def steps(self) -> Mapping[str, Step]:
        """The rewritten steps by mode, ``"train"`` or ``"eval"``."""
        return self._steps

    def check_names(self, signature: StepSignature) -> None:
        """Hold that each parameter and buffer of a signature is there.

        Raises:
            ExportError: it is not.
        """
        for spec in signature.primals:
            if spec.kind != "input" and spec.name not in self._slots:
                raise ExportError(f"there is no {spec.kind} '{spec.name}'")

    @property
    def plan(self) -> MemoryPlan | None:
        """The plan of the step in the present mode; None where it has no backward."""
        return self._step().plan

    def print_readable(self) -> str:
        """Print the forward and the backward of the present mode as Python code, and return it."""
        step = self._step()
        halves = {"forward": step.forward, "backward": step.backward}
        text = "\n".join(
            f"# {name}\n{module.print_readable(print_output=False)}"
            for name, module in halves.items()
            if module is not None
        )
        print(text)
        return text

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The results of the model.

        Raises:
            ExportError: arguments, parameters or buffers are not such as the model was rewritten
                for.
        """
        step = self._step()
        tensors = _arguments(step.signature, args, kwargs)
        state = [self._held(s.name) for s in step.signature.primals if s.kind != "input"]
        primals = [*state, *tensors]
        check_primals(step.signature, primals)
        return unflatten(step.signature.outputs, iter(step(primals)))

    def _held(self, name: str) -> Tensor:
        holder, leaf = self._slots[name]
        return holder[leaf]

    def _step(self) -> Step:
        mode = TRAIN if self.training else EVAL
        if mode not in self._steps:
            (other,) = self._steps
            raise ExportError(
                f"this module has no step for {mode}ing, only for {other}: the model was in "
                f"{other} mode when it was rewritten. Call .{other}() on this module"
            )
        return self._steps[mode]


class _Part(nn.Module):
    """Holds the parameters and buffers of one module of the model."""


def _arguments(
    signature: StepSignature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    names = signature.arguments[len(args) :]
    if set(kwargs) - set(names):
        raise ExportError(
            f"unexpected arguments {sorted(set(kwargs) - set(names))}; allowed by name after "
            f"{len(args)} others: {list(names)}"
        )
    given = (*args, *(kwargs[name] for name in names if name in kwargs))
    tensors, structure = flatten(given)
    if structure != signature.inputs:
        raise ExportError(
            f"the arguments are {structure[1]}, but the model was rewritten for "
            f"{signature.inputs[1]}; what is not a tensor must have the same value"
        )
    return tensors
