"""The methods that the memory benchmark compares, each run in a process of its own.

A process holds one method applied to one network, and answers commands from the benchmark. So no
method's memory, compile caches or settings meet another's, and the benchmark can still take one
step of each in turn, so that a slow minute of the machine hits all of them alike.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from measure import gradients_of, largest_relative_error, measure_memory, time_step
from models import Workload, build


@dataclass(frozen=True)
class Task:
    """One method on one network.

    Attributes:
        model: name of the network.
        method: a key of `METHODS`.
        level: level of snnmem.
        threads: CPU threads.
        build: further arguments of `models.build`.
        options: further options of snnmem.
    """

    model: str
    method: str
    level: int
    threads: int
    build: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


Options = dict[str, Any]
Apply = Callable[[Workload, Options], Callable[..., Tensor]]
"""Makes what is called in place of the model; the second argument has the options of snnmem."""


def eager(workload: Workload, options: Options) -> Callable[..., Tensor]:
    """The network as it is: backpropagation through time keeps everything."""
    return workload.model


def inductor(workload: Workload, options: Options) -> Callable[..., Tensor]:
    """What `torch.compile` does by default."""
    return torch.compile(workload.model)


def checkpointed(workload: Workload, options: Options) -> Callable[..., Tensor]:
    """`torch.utils.checkpoint` around each weight-norm-neuron layer."""
    for module in workload.model.modules():
        if isinstance(module, workload.layer_types):
            module.forward = _checkpointed_forward(module)
    return workload.model


def _checkpointed_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    original = module.forward
    nodes = [m for m in module.modules() if hasattr(m, "v_threshold") and hasattr(m, "reset")]

    def from_rest(x: Tensor) -> Tensor:
        # The recomputation must start from the state that the forward pass started from.
        for node in nodes:
            node.reset()
        return original(x)

    return lambda x: checkpoint(from_rest, x, use_reentrant=False)


def spikingjelly(workload: Workload, options: Options) -> Callable[..., Tensor]:
    """SpikingJelly's `optimize_memory` at level 1; its higher levels search on a CUDA device."""
    from spikingjelly.activation_based.memopt import optimize_memory

    def example_forward(model: nn.Module) -> Tensor:
        workload.before_step()
        return model(*workload.inputs)

    optimize_memory(workload.model, workload.layer_types, example_forward, level=1)
    return workload.model


def memopt(workload: Workload, options: Options) -> Callable[..., Tensor]:
    """This project's `memory_optimization`, without `torch.compile`."""
    import snnfx

    workload.before_step()
    result = snnfx.memory_optimization(
        workload.model,
        workload.layer_types,
        workload.inputs,
        level=options["level"],
        return_summary=True,
    )
    assert isinstance(result, tuple)
    options["summary"] = result[1]
    return workload.model


def snnmem(lowering: str) -> Apply:
    """The backend of this project with the given lowering."""

    def apply(workload: Workload, options: Options) -> Callable[..., Tensor]:
        chosen = {**options, "lowering": lowering}
        return torch.compile(workload.model, backend="snnmem", options=chosen)

    return apply


@dataclass(frozen=True)
class Method:
    """How a method is named in the table, applied, and whether it compiles."""

    title: str
    apply: Apply
    compiles: bool = False
    needs: str | None = None


METHODS: dict[str, Method] = {
    "eager": Method("eager", eager),
    "inductor": Method("torch.compile", inductor, compiles=True),
    "checkpoint": Method("torch.utils.checkpoint per layer", checkpointed),
    "spikingjelly": Method("SpikingJelly memopt level 1", spikingjelly, needs="spikingjelly"),
    "memopt": Method("snnfx memory_optimization", memopt),
    "snnmem-eager": Method("snnmem, eager lowering", snnmem("eager"), compiles=True),
    "snnmem": Method("snnmem, inductor lowering", snnmem("inductor"), compiles=True),
}


def unavailable(task: Task) -> str | None:
    """Why `task` cannot run here, or None."""
    needs = {METHODS[task.method].needs}
    if task.model.endswith("_spikingjelly"):
        needs.add("spikingjelly")
    for package in sorted(needs - {None}):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if task.method.startswith("snnmem") and "snnmem" not in torch.compiler.list_backends():
        return "the backend is not registered: pip install snnfx"
    return None


class Session:
    """One method applied to one network; its public methods are the commands of the benchmark."""

    def __init__(self, task: Task) -> None:
        self.task = task
        torch.set_num_threads(task.threads)
        self.workload = build(task.model, **task.build)
        self.options = {"level": task.level, **task.options}
        started = time.perf_counter()
        self.run = METHODS[task.method].apply(self.workload, self.options)
        self._applied_s = time.perf_counter() - started

    def step(self) -> None:
        """Forward and backward, from no gradients."""
        _step(self.workload, self.run)

    def start(self) -> float:
        """The first step, which compiles, less a later one, in seconds; 0 where nothing compiles.

        Importing the compiler and looking for a C++ compiler happen once for each process, not
        for each model: they are done before.
        """
        if METHODS[self.task.method].compiles:
            _warm_up_compiler()
        first_ms = time_step(self.step)
        later_ms = min(time_step(self.step) for _ in range(2))
        return (first_ms - later_ms) / 1e3 if METHODS[self.task.method].compiles else 0.0

    def applied(self) -> dict[str, Any]:
        """What changing the model took in seconds, and what `memory_optimization` says it did."""
        summary = self.options.get("summary")
        return {"seconds": self._applied_s, **({} if summary is None else vars(summary))}

    def time(self) -> float:
        """Milliseconds of one step."""
        return time_step(self.step)

    def memory(self) -> dict[str, int]:
        """The fields of `measure.Memory`, in bytes."""
        memory = measure_memory(self.step, self.workload.model, self.workload.inputs)
        return {**vars(memory), "peak_less_all": memory.peak_less_all}

    def prediction(self) -> dict[str, Any]:
        """The plan's predicted peaks of activation memory and the measured one, in bytes.

        Needs a method of snnmem. `point` is the place of the predicted peak in the schedule.
        """
        from snnfx import last_plan

        for _ in range(2):  # the first step compiles, the second fills caches
            self.step()
        plan = last_plan()
        assert plan is not None, f"{self.task.method} makes no plan"
        timeline = plan.predicted
        names = (*(f"forward {n}" for n in timeline.forward_names),
                 *(f"backward {n}" for n in timeline.backward_names))  # fmt: skip
        points = (*timeline.forward, *timeline.backward)
        return {
            "predicted_bytes": plan.predicted_peak_bytes,
            "measured_bytes": self.memory()["activation_bytes"],
            "baseline_bytes": plan.baseline_peak_bytes,
            "point": names[points.index(max(points))] if points else "",
            "applied": plan.applied,
        }

    def plan(self) -> tuple[int, list[tuple[str, int]]]:
        """The predicted peak of activation memory, and what is alive at it, largest first.

        Needs a method of snnmem.
        """
        from snnfx import last_plan

        plan = last_plan()
        assert plan is not None, f"{self.task.method} makes no plan"
        alive = plan.predicted.alive_at(plan.predicted.peak_step)
        found = sorted(((a.name, a.bytes) for a in alive), key=lambda item: -item[1])
        return plan.predicted_peak_bytes, found

    def error(self, dtype_name: str) -> float:
        """The largest relative error of a gradient against the plain network's, in one dtype."""
        dtype: torch.dtype = getattr(torch, dtype_name)
        arguments = {**self.task.build, "dtype": dtype}
        plain = build(self.task.model, **arguments)
        reference = _gradients(plain, plain.model)
        if dtype == torch.float32:
            return largest_relative_error(_gradients(self.workload, self.run), reference)
        other = build(self.task.model, **arguments)
        run = METHODS[self.task.method].apply(other, self.options)
        return largest_relative_error(_gradients(other, run), reference)


def _step(workload: Workload, run: Callable[..., Tensor]) -> None:
    workload.before_step()
    workload.model.zero_grad(set_to_none=True)
    workload.loss_fn(run(*workload.inputs)).backward()


def _gradients(workload: Workload, run: Callable[..., Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    _step(workload, run)
    return [gradient.clone() for gradient in gradients_of(workload.model)]


def _warm_up_compiler() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    torch.compile(lambda x: (x @ x).exp().sum())(x).backward()
    torch.compiler.reset()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes started inside."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Worker:
    """A process that holds a `Session`.

    Raises:
        RuntimeError: from `ask`, when the process has died; its traceback is on stderr.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._folder = tempfile.TemporaryDirectory(prefix="snnfx-bench-")
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, task), daemon=True)
        # No compiled code from an earlier run, and none from another method's process.
        settings = {
            "TORCHINDUCTOR_CACHE_DIR": self._folder.name,
            "SNNFX_CACHE_DIR": self._folder.name,
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "OMP_NUM_THREADS": str(task.threads),
        }
        with _environment(settings):
            self._process.start()
        far_end.close()

    def ask(self, command: str, *arguments: object) -> Any:
        """Call a public method of the session and wait for its result."""
        try:
            self._pipe.send((command, arguments))
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"{self.task.method} failed at '{command}'") from error

    def close(self) -> None:
        """End the process and remove its compile cache."""
        self._process.terminate()
        self._process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, task: Task) -> None:
    session = Session(task)
    while True:
        command, arguments = pipe.recv()
        pipe.send(getattr(session, command)(*arguments))
